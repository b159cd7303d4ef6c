"""The metadata: measurements of several kinds on one data set stay apart, and so do those of others."""

import yaml
from huggingface_hub import EvalResult, ModelCard

from hub_cards.card import with_metadata_of, write_card
from hub_cards.metadata import as_dict, personal_metadata


def entries(text):
    """Task's name and value of each entry, as the file has them."""
    (index,) = yaml.safe_load(text.split("---")[1])["model-index"]
    return [(result["task"]["name"], metric["value"]) for result in index["results"] for metric in result["metrics"]]


def test_an_entry_of_a_person_on_the_same_images_stays_theirs(model_folder, write_scores):
    """The library alone would join it with ours, under our task's name, and then it would go with ours."""
    card = write_card(model_folder, [write_scores()])
    ours = entries(card.read_text())
    read = ModelCard(card.read_text())
    place = {"dataset_type": "synthetic_parts", "dataset_name": "synthetic_parts", "dataset_split": "validation"}
    theirs = EvalResult("image-segmentation", metric_type="mean_iou", metric_value=12.5, task_name="Their own task", **place)
    read.data.eval_results.append(theirs)
    card.write_text(f"---\n{yaml.safe_dump(as_dict(read.data))}---\n{read.text}")
    for _ in range(2):
        assert entries(write_card(model_folder).read_text()) == [*ours, ("Their own task", 12.5)]
    assert entries(with_metadata_of(card.read_text(), card.read_text())) == [*ours, ("Their own task", 12.5)]


def test_no_generated_tag_is_taken_for_a_persons(model_folder, segmenter):
    for folder in (model_folder, segmenter):
        data = ModelCard(write_card(folder).read_text()).data.to_dict()
        assert "tags" not in personal_metadata(data)
        assert personal_metadata(data | {"tags": [*data["tags"], "birds"]})["tags"] == ["birds"]


def test_only_what_has_a_rats_in_it_is_tagged_so(segmenter, edit_json):
    assert "rats" in ModelCard(write_card(segmenter).read_text()).data.tags
    (segmenter / "README.md").unlink()
    vit = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    edit_json(segmenter / "config.json", backbone_config=vit, query_source="learned")
    assert not {"rats", "register-attention"} & {*ModelCard(write_card(segmenter).read_text()).data.tags}
