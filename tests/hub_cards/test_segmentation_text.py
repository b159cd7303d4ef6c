"""The card of a fine-tuned model: what its records say, code that runs, limits that follow from the records."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hub_cards.assets import Assets
from hub_cards.card import write_card
from hub_cards.records import read_model
from hub_cards.results import adopt
from hub_cards.segmentation_text import describe_limitations, describe_model, describe_training, name_of_architecture
from tests.hub_cards.conftest import measure, save_segmenter
from tests.hub_cards.test_card import GAPS, sections, table

VIT = {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 16}


@pytest.fixture
def change_training(segmenter, edit_json):
    """Changes the record of training: settings by name, other entries in `entries`."""

    def change(entries=None, **settings):
        record = json.loads((segmenter / "training.json").read_text())
        edit_json(segmenter / "training.json", settings=record["settings"] | settings, **(entries or {}))
        return read_model(segmenter)

    return change


def test_the_card_tells_the_model_and_its_training(segmenter):
    text = write_card(segmenter).read_text()
    full = ["Model details", "Uses", "How to use it", "Training", "Limitations", "Licence", "Citation"]
    assert sections(text) == full and not GAPS.search(text) and "\n\n\n" not in text
    assert table(text, "Backbone")[1] == "RATS: 2 blocks, width 32, 4 attention heads, 8 registers, patches of 8 x 8 px"
    assert table(text, "Queries")[1] == "8, from registers" and table(text, "Labels")[1] == "3: ground, disc, box"
    assert table(text, "Image size")[1].startswith("shortest edge 32 px, longest edge at most 128 px by the image processor")
    assert table(text, "Steps")[1] == "2,468" and table(text, "Training time")[1] == "1 h 1 min"
    assert table(text, "Learning rate")[1] == "0.0001, times 0.1 in the backbone; schedule poly"
    assert table(text, "Started from")[1] == "[facebook/dino-vits16](https://huggingface.co/facebook/dino-vits16)"
    assert "[me/shapes](https://huggingface.co/datasets/me/shapes), split `train`" in table(text, "Data")[1]
    assert "the licence of those has to be kept, too" in text.split("## Licence")[1]
    assert "independent implementation" in text and "trained with this implementation" in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[1])
    assert recipe["backbone"] == "facebook/dino-vits16" and recipe["task"] == "semantic" and "output_dir" not in recipe


def test_without_a_record_of_training_its_absence_is_told(segmenter):
    (segmenter / "training.json").unlink()
    text = write_card(segmenter).read_text()
    assert "## Training" not in text and "which is not recorded" in text and "trained is not recorded" in text
    assert "base_model" not in ModelCard(text).data.to_dict() and not GAPS.search(text)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_the_code_in_the_card_runs(segmenter, change_training, task, tmp_path, monkeypatch, capsys):
    change_training(task=task)
    codes = re.findall(r"```python\n(.*?)```", write_card(segmenter, repo_id="someone/shapes").read_text(), flags=re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    by_pipeline, by_hand = {}, {}
    for code, names in zip(codes, (by_pipeline, by_hand), strict=True):
        assert '"someone/shapes"' in code
        exec(compile(code.replace("someone/shapes", str(segmenter)), "card", "exec"), names)
    assert f'subtask="{task}"' in codes[0] and f"post_process_{task}_segmentation" in codes[1]
    found = by_hand["labels"] if task == "semantic" else by_hand["found"]["segmentation"]
    assert found.shape == (40, 60)
    if task == "semantic":  # fresh weights are sure of no object
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 * len(found.unique()) and by_pipeline["segment"]["mask"].size == (60, 40)


def test_places_of_the_training_machine_are_not_told(segmenter, change_training, tmp_path):
    change_training(backbone=str(tmp_path / "rats-s" / "model"), dataset=str(tmp_path / "shapes"))
    text = write_card(segmenter, repo_id="someone/shapes").read_text()
    assert str(tmp_path) not in text
    assert table(text, "Started from")[1] == "`rats-s` (local folder)" and "`shapes` (local data)" in table(text, "Data")[1]
    data = ModelCard(text).data.to_dict()
    assert "base_model" not in data and "datasets" not in data and "licence of those" not in text


def test_a_backbone_in_a_folder_like_a_hub_name_is_no_base_model(segmenter, change_training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoints/rats-tiny").mkdir(parents=True)
    assert change_training(backbone="checkpoints/rats-tiny").base_model is None
    assert change_training(backbone="facebook/dino-vits16").base_model == "facebook/dino-vits16"


def test_official_files_go_by_their_layout(segmenter, change_training):
    model = change_training(layout="ade20k", dataset="/data/ADEChallengeData2016")
    assert describe_training(model.training)["Data"] == "`ade20k`, its official files, split `train`"
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", write_card(segmenter).read_text(), flags=re.DOTALL)[1])
    assert recipe["layout"] == "ade20k" and recipe["dataset"] == "ADEChallengeData2016"


def test_what_a_training_left_alone_is_told(change_training):
    rows = describe_training(change_training(freeze_backbone=True, schedule="cosine", backbone_revision="v1").training)
    assert rows["Trained"] == "the head alone, the backbone is frozen" and rows["Learning rate"] == "0.0001; schedule cosine"
    assert rows["Started from"].endswith(", revision `v1`")
    decayed = describe_training(change_training(freeze_backbone=False, layer_decay=0.8).training)
    assert "times 0.8 from each block to the one before" in decayed["Learning rate"]


def test_other_heads_and_backbones_are_told(segmenter, edit_json, tmp_path):
    alone = read_model(save_segmenter(tmp_path / "alone", segmentation_head="encoder_only", num_upscale_blocks=1))
    details = describe_model(alone)
    assert details["Head"] == "encoder only: registers as queries, the patch grid doubled 1 times"
    assert "one value for 4 x 4 px" in " ".join(describe_limitations(alone, []))
    assert "There is no decoder" in write_card(tmp_path / "alone").read_text()
    edit_json(segmenter / "config.json", backbone_config=VIT, query_source="learned", num_queries=5)
    model = read_model(segmenter)
    details = describe_model(model)
    assert details["Backbone"] == "ViT: 3 blocks, width 64, 2 attention heads, patches of 16 x 16 px"
    assert details["Queries"] == "5, learned, the same for all images" and name_of_architecture(model) == "vit-64x3-mask2former"
    assert "Its backbone is a ViT, for comparison with RATS" in write_card(segmenter).read_text()


def test_many_labels_are_cut_short(segmenter, edit_json):
    names = {str(label): f"label|{label}" for label in range(150)}
    edit_json(segmenter / "config.json", id2label=names, label2id={name: int(label) for label, name in names.items()})
    labels = describe_model(read_model(segmenter))["Labels"]
    assert labels.startswith("150: label\\|0, label\\|1, label\\|2, ") and labels.endswith("and 138 more, in `config.json`")


def test_limits_follow_from_the_records(change_training):
    told = " ".join(describe_limitations(change_training(), []))
    assert "its 3 labels alone" in told and "No scores have been measured" in told and "one value for 2 x 2 px" in told
    assert "segments in an image" not in told  # a matter of instance and panoptic segmentation
    assert "at most 8 segments in an image" in " ".join(describe_limitations(change_training(task="panoptic"), []))
    few = " ".join(describe_limitations(change_training({"training_images": 40}), []))
    assert "Fine-tuned on 40 images, which are few, each seen 987 times or so" in few
    assert "few" not in " ".join(describe_limitations(change_training({"training_images": 20_000}), []))


def test_scores_on_the_images_of_the_training_are_told_to_be_that(segmenter, shapes, change_training, tmp_path):
    model = change_training(dataset=str(shapes))
    seen, other = (
        adopt(measure(segmenter, shapes, tmp_path / "scores.json", "semantic", "--split", split), model)
        for split in ("train", "validation")
    )
    of_both = describe_limitations(model, [seen, other])
    assert sum("on images that it was trained on" in sentence for sentence in of_both) == 1
    assert "Measured on shapes alone: how it does on images of other kinds is not known." in of_both
    assert sum("are of 4 images, which are few" in sentence for sentence in of_both) == 1
    other.record["images"] = 2000
    assert not any("which are few" in sentence for sentence in describe_limitations(model, [other]))
    assert not any("that it was trained on:" in sentence for sentence in describe_limitations(model, [other]))


def test_pictures_of_parts_are_refused_and_curves_are_shown(segmenter, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    for assets in (Assets(pictures=(picture,)), Assets(efficiency=picture)):
        with pytest.raises(ValueError, match="the card shows curves alone"):
            write_card(segmenter, assets=assets)
    assert not (segmenter / "README.md").exists() and not (segmenter / "assets").exists()
    assert "(assets/curves.png)" in write_card(segmenter, assets=Assets(curves=picture)).read_text()
