"""The card end to end: metadata, numbers, code that runs, regeneration, the command and its refusals."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from evaluation import part_segmentation
from evaluation.synthetic_parts import write_dataset
from hub_cards.card import _told, find_assets, main, write_card
from hub_cards.regeneration import END, START
from tests.hub_cards.conftest import SCORES

GAPS = re.compile(r"\b(None|nan|NaN|inf|null|TODO|Undefined)\b|More Information Needed|\[\]|\{\{ |\{%")


@pytest.fixture
def drawn(tmp_path):
    """Curves, and a folder of more part maps than a card shows."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(6):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(pictures / f"{index:04d}.png")
    curves = tmp_path / "loss.png"
    Image.new("RGB", (8, 8)).save(curves)
    return curves, pictures


def card_of(*arguments, **options):
    return write_card(*arguments, **options).read_text()


def sections(text):
    return re.findall(r"^## (.*)$", text, flags=re.MULTILINE)


def table(text, first_cell):
    """Cells of the row with this first cell."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first_cell} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_metadata_is_what_the_hub_reads(model_folder, write_scores):
    data = ModelCard(card_of(model_folder, [write_scores()], repo_id="someone/rats-tiny")).data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-segmentation" and data.license == "mit"
    assert {"rats", "vision", "register-attention", "part-segmentation", "self-supervised", "dino"} <= set(data.tags)
    assert data.metrics == ["m2o_miou", "o2o_miou", "ari"]
    assert data.model_name == "rats-tiny"
    assert "datasets" not in data.to_dict()  # rendered, so no name on the Hub


def test_model_index_holds_the_models_scores_exactly_and_only_those_that_are_defined(model_folder, write_scores):
    text = card_of(model_folder, [write_scores()])
    metadata = yaml.safe_load(text.split("---")[1])  # safe: a NumPy scalar would be a tag, and fail
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"] == {"name": "synthetic_parts", "type": "synthetic_parts", "split": "validation"}
    found = {(metric["type"], metric.get("config")): metric["value"] for metric in result["metrics"]}
    assert found == {
        ("m2o_miou", None): 31.25781,
        ("m2o_miou", "foreground"): 21.5,
        ("o2o_miou", None): 25.125,
        ("ari", None): 17.75,
        ("ari", "foreground"): 9.5,
    }
    again = ModelCard(text)
    assert ModelCard(str(again)).data.to_dict() == again.data.to_dict()


def test_a_score_that_no_image_had_is_left_out(model_folder, write_scores):
    scores = {"model": {"images": 5, "segments_used": 2.0, "m2o_miou": None, "ari": 3.5}}
    card = ModelCard(card_of(model_folder, [write_scores(scores=scores)]))
    assert [result.metric_type for result in card.data.eval_results] == ["ari"]
    assert not GAPS.search(card.text)


def test_two_input_sizes_on_one_split_stay_apart(model_folder, write_scores):
    paths = [write_scores(), write_scores("larger.json", image_size=128)]
    card = ModelCard(card_of(model_folder, paths))
    sizes = [result.metric_args["image_size"] for result in card.data.eval_results if result.metric_type == "ari"]
    assert sizes == ["128 x 128 px"] * 2 + ["64 x 64 px"] * 2
    assert "split `validation`, 128 x 128 px, rendered colours 64px seed 1\n" in card.text
    assert card.text.count("Protocol: ") == 1


def test_the_same_measurement_twice_is_refused(model_folder, write_scores):
    with pytest.raises(ValueError, match=r"again\.json scores synthetic_parts like a file before it"):
        card_of(model_folder, [write_scores(), write_scores("again.json")])


def test_numbers_are_those_of_the_records(model_folder, write_scores):
    text = card_of(model_folder, [write_scores()])
    assert table(text, "this model")[1:] == ["1,234", "6.5", "31.3", "21.5", "25.1", "17.8", "9.5"]
    assert table(text, "color k-means, same number of segments")[1:] == ["1,234", "6.5", "20.5", "-", "-", "18.6", "-"]
    parameters = sum(p.numel() for p in AutoModelForSemanticSegmentation.from_pretrained(model_folder).parameters())
    assert table(text, "Parameters")[1] == f"{parameters:,}"
    assert table(text, "Registers")[1] == "8, 2 owned by each head"
    assert table(text, "Steps")[1] == "1,357" and table(text, "Images seen")[1] == "86,848"
    assert "4,321 images, 64 px, difficulty easy, seed 0" in table(text, "Data")[1]
    assert table(text, "Training time")[1] == "2 min 45 s"
    assert "1,234 images (1,200 of them with foreground)" in text
    assert "Measured 2026-11-23 with python 3.11.7, torch 2.14.1; seed 3, commit 37af77a." in text
    assert table(text, "Multiply-accumulates")[1] == "0.0181 GMACs at 224 x 224 px, 0.0944 GMACs at 512 x 512 px"
    assert part_segmentation.PROTOCOL in text


def test_the_card_says_how_parts_are_read(model_folder, edit_json):
    assert "as in the paper, layer -1" in table(card_of(model_folder), "Parts")[1]
    edit_json(model_folder / "config.json", part_similarity="claimed_patches", part_layer=-2)
    parts = table(card_of(model_folder), "Parts")[1]
    assert "five steps of k-means" in parts and "not the paper's reading" in parts and parts.endswith("layer -2")


def test_nothing_reads_as_a_gap(model_folder, write_scores, drawn):
    full = card_of(model_folder, [write_scores()], find_assets(*drawn))
    (model_folder / "training.json").unlink()
    for text in (full, card_of(model_folder)):
        assert not GAPS.search(text), GAPS.search(text)
        assert "\n\n\n" not in text


def test_sections_without_data_are_left_out(model_folder, write_scores, drawn):
    full = ["Model details", "Uses", "How to use it", "Training", "Results", "Pictures", "Training curves"]
    full += ["Limitations", "Licence", "Citation"]
    assert sections(card_of(model_folder, [write_scores()], find_assets(*drawn))) == full
    for path in ("README.md", "training.json", "results", "assets"):
        shutil.rmtree(model_folder / path) if (model_folder / path).is_dir() else (model_folder / path).unlink()
    text = card_of(model_folder)
    assert sections(text) == [name for name in full if name not in ("Training", "Results", "Pictures", "Training curves")]
    assert "dino" not in ModelCard(text).data.tags
    assert "metrics" not in ModelCard(text).data.to_dict() and "model-index" not in ModelCard(text).data.to_dict()


def test_the_recipe_tells_no_place_of_the_training_machine(model_folder, edit_json, tmp_path):
    record = json.loads((model_folder / "training.json").read_text())
    edit_json(model_folder / "training.json", settings=record["settings"] | {"dataset": str(tmp_path / "photographs")})
    text = card_of(model_folder, repo_id="someone/rats-tiny")
    assert str(tmp_path) not in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[1])
    assert recipe["dataset"] == "photographs" and recipe["learning_rate"] == 5e-4 and recipe["num_local_crops"] == 3
    assert "synthetic" not in text.split("## Limitations")[1]


def test_a_data_set_of_the_hub_is_linked_and_in_the_metadata(model_folder, edit_json):
    record = json.loads((model_folder / "training.json").read_text())
    edit_json(model_folder / "training.json", settings=record["settings"] | {"dataset": "someone/photographs"})
    text = card_of(model_folder)
    assert ModelCard(text).data.datasets == ["someone/photographs"]
    assert "[someone/photographs](https://huggingface.co/datasets/someone/photographs), split `train`" in text


@pytest.mark.parametrize("repo_id", [None, "someone/rats-tiny"])
def test_the_code_in_the_card_runs(model_folder, repo_id, tmp_path, monkeypatch, capsys):
    codes = re.findall(r"```python\n(.*?)```", card_of(model_folder, repo_id=repo_id), flags=re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    ran = []
    for code in codes:
        if repo_id:
            assert f'"{repo_id}"' in code
            code = code.replace(repo_id, str(model_folder))  # as if it had been pushed
        ran.append({})
        exec(compile(code, "card", "exec"), ran[-1])
    by_pipeline, by_hand, features = ran
    assert by_hand["parts"]["segmentation"].shape == (40, 60) and by_pipeline["part"]["mask"].size == (60, 40)
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(by_hand["parts"]["segments_info"]) > 0
    assert features["registers"].shape == (1, 8, 32) and features["patches"].shape == (1, 64, 32)
    assert features["of_the_image"].shape == (1, 32)


def test_pictures_are_copied_and_shown(model_folder, write_scores, drawn):
    curves, pictures = drawn
    text = write_card(model_folder, [write_scores()], find_assets(curves, pictures)).read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == [*(f"assets/parts_{index}.png" for index in range(4)), "assets/curves.png"]
    assert sorted(shown) == sorted(f"assets/{path.name}" for path in (model_folder / "assets").iterdir())
    assert (model_folder / "assets" / "parts_2.png").read_bytes() == (pictures / "0002.png").read_bytes()
    assert not list(model_folder.rglob("*.partial"))


def test_failures_inputs_and_efficiency_are_shown(model_folder, write_scores, drawn):
    curves, pictures = drawn
    for folder, names in (("inputs", ["0000", "0001", "0002"]), ("worst", ["012.5_0003", "003.0_0001", "040.0_0002"])):
        (pictures / folder).mkdir()
        for name in names:
            Image.new("RGB", (8, 8), (len(name), 7, 0)).save(pictures / folder / f"{name}.png")
    assets = find_assets(curves, pictures, efficiency=curves)
    card = ModelCard(card_of(model_folder, [write_scores()], assets, repo_id="someone/rats-tiny"))
    assert "(assets/efficiency.png)" in card.text.split("## Efficiency")[1].split("##")[0]
    limitations = card.text.split("## Limitations")[1].split("## Licence")[0]
    assert re.findall(r"\((assets/.*?)\)", limitations) == ["assets/failure_0.png", "assets/failure_1.png"]
    assert (model_folder / "assets" / "failure_0.png").read_bytes() == (pictures / "worst" / "003.0_0001.png").read_bytes()
    source = "https://huggingface.co/someone/rats-tiny/resolve/main/assets/input_"
    assert card.data.to_dict()["widget"] == [
        {"src": f"{source}{index}.png", "example_title": f"Example {index + 1}", "output": {"url": f"assets/parts_{index}.png"}}
        for index in range(2)
    ]


def test_the_model_that_a_training_started_from_is_told(model_folder, edit_json):
    settings = json.loads((model_folder / "training.json").read_text())["settings"]
    for warm_start, told in (("facebook/dino-vits16", "facebook/dino-vits16"), (str(model_folder), None)):
        edit_json(model_folder / "training.json", settings=settings | {"warm_start": warm_start})
        (model_folder / "README.md").unlink(missing_ok=True)
        assert ModelCard(card_of(model_folder)).data.base_model == told


def test_regeneration_gives_the_same_bytes(model_folder, write_scores, drawn):
    arguments = model_folder, [write_scores()], find_assets(*drawn)
    first = write_card(*arguments).read_bytes()
    assert write_card(*arguments).read_bytes() == first


def test_what_a_person_wrote_survives(model_folder, write_scores):
    card = write_card(model_folder, [write_scores()])
    text = card.read_text()
    note = "## Our birds\n\nWe tried it on birds.   \n\n\n\nIt liked beaks."
    text = text.replace(f"{START}\n## Limitations", f"{note}\n\n{START}\n## Limitations") + "\n*Thanks to the cat.*\n"
    text = text.replace("license: mit\n", "license: cc-by-4.0\nlanguage: en\nbase_model: someone/parent\nours:\n  birds: 3\n")
    text = text.replace("- dino\n", "- dino\n- birds\n")
    card.write_text(text)
    other = {row: {"images": 1234, "segments_used": 3.0, "ari": 44.5} for row in SCORES}
    again = write_card(model_folder, [write_scores(scores=other)]).read_text()
    assert f"{END}\n\n{note}\n\n{START}\n## Limitations" in again
    assert again.endswith(f"{END}\n\n*Thanks to the cat.*\n")
    data = ModelCard(again).data.to_dict()
    assert data["language"] == "en" and data["base_model"] == "someone/parent" and data["ours"] == {"birds": 3}
    assert data["license"] == "cc-by-4.0" and "under `cc-by-4.0`" in again and data["tags"].count("birds") == 1
    assert data["metrics"] == ["ari"] and "44.5" in again and "31.3" not in again and "31.25781" not in again
    assert write_card(model_folder, [write_scores(scores=other)]).read_text() == again


def test_results_stay_with_the_folder_until_they_are_measured_again(model_folder, write_scores, tmp_path):
    again = write_scores("again.json", SCORES | {"model": {"images": 1234, "segments_used": 6.5, "m2o_miou": 77.75}})
    fewer = write_scores("fewer.json", {"model": SCORES["model"]})
    write_card(model_folder, [write_scores()])
    folder = model_folder.rename(tmp_path / "moved")
    text = write_card(folder).read_text()
    assert "31.3" in text and "## Results" in text
    with pytest.raises(ValueError, match=r"has no 'untrained', 'color k-means.*does not lose its competitors unnoticed"):
        write_card(folder, [fewer])
    text = write_card(folder, [again]).read_text()
    assert "77.75" in text and "31.3" not in text and len(list((folder / "results").iterdir())) == 1
    next((folder / "results").iterdir()).unlink()
    text = write_card(folder).read_text()
    assert "## Results" not in text and "model-index" not in text and "metrics" not in text


def test_pictures_replace_those_of_their_kind(model_folder, drawn):
    curves, pictures = drawn
    write_card(model_folder, assets=find_assets(curves, pictures))
    (pictures / "0000.png").rename(pictures / "only.png")
    for path in pictures.glob("0*.png"):
        path.unlink()
    text = write_card(model_folder, assets=find_assets(pictures=pictures)).read_text()
    assert sorted(path.name for path in (model_folder / "assets").iterdir()) == ["curves.png", "parts_0.png"]
    assert "assets/curves.png" in text and text.count("assets/parts_") == 1
    assert write_card(model_folder).read_text() == text


def test_a_card_without_metadata_keeps_its_text(model_folder):
    (model_folder / "README.md").write_text("Notes of mine.\n")
    text = write_card(model_folder).read_text()
    assert text.endswith(f"{END}\n\nNotes of mine.\n") and ModelCard(text).data.library_name == "transformers"


def test_a_card_that_cannot_be_read_is_left_as_it_is(model_folder):
    card = model_folder / "README.md"
    for broken, reason in (
        ("---\nlicense: [\n---\n", "cannot be read"),
        (f"---\na: b\n---\n{START}\n", "in pairs|followed by"),
    ):
        card.write_text(broken)
        with pytest.raises(ValueError, match=reason):
            write_card(model_folder)
        assert card.read_text() == broken


def test_the_command_writes_a_card_from_a_real_evaluation(model_folder, drawn, capsys):
    data = model_folder.parent / "data"
    write_dataset(data, images=4, image_size_px=48, seed=5, split="validation", num_processes=1, quiet=True)
    scores = model_folder.parent / "scores.json"
    arguments = ["--model", str(model_folder), "--dataset", str(data), "--untrained", "--output", str(scores), "--quiet"]
    record = part_segmentation.main(arguments)
    capsys.readouterr()
    curves, pictures = drawn
    arguments = ["--model", str(model_folder), "--results", str(scores), "--curves", str(curves), "--pictures", str(pictures)]
    main(arguments)
    assert capsys.readouterr().out == f"Model card: {model_folder / 'README.md'}\n"
    card = ModelCard.load(model_folder / "README.md")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["Adjusted Rand index"] == record["scores"]["model"]["ari"]
    assert table(card.text, "this model")[3] == f"{record['scores']['model']['m2o_miou']:.1f}"
    assert "Measured on synthetic rendered objects only" in card.text
    main([*arguments, "--quiet"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--curves", "nowhere.png"], "Picture nowhere.png does not exist"),
        (["--pictures", "nowhere"], "Folder nowhere holds no PNG pictures"),
        (["--results", "nowhere.json"], "nowhere.json does not exist"),
        (["--repo_id", "a/b/c"], "Repo id must be"),
    ],
)
def test_the_command_refuses_and_writes_nothing(model_folder, arguments, reason, capsys):
    before = sorted(model_folder.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(model_folder), *arguments])
    assert stop.value.code == 2 and reason in capsys.readouterr().err
    assert sorted(model_folder.rglob("*")) == before


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_the_template_refuses_to_tell_nothing(value):
    with pytest.raises(ValueError, match="tells a reader nothing"):
        _told(value)


def test_metadata_below_an_empty_line_is_metadata(model_folder):
    card = write_card(model_folder)
    card.write_text("\n" + card.read_text().replace("license: mit", "license: apache-2.0"))
    again = write_card(model_folder).read_text()
    assert ModelCard(again).data.license == "apache-2.0" and again.count("library_name:") == 1
