"""The evaluation command end to end on a tiny model and data made here: protocol, record, pictures and refusals."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from evaluation import part_segmentation
from evaluation.benchmarks import BENCHMARKS, Benchmark
from evaluation.journal import Journal
from evaluation.mask_samples import MaskSample, open_mask_dataset, read_mask_samples
from evaluation.metrics.register_classes import RegisterClasses
from evaluation.part_scoring import evaluate_parts
from evaluation.records import write_json
from evaluation.scores import format_table
from evaluation.segmenters import load_rats, rats_segmenter, untrained_like
from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsForPreTraining, RatsImageProcessor, RatsModel

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("RATS_SHARED_DATA", ROOT.parent / "shared" / "data"))
NUM_REGISTERS = 8


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The command writes scores.json into the working folder by default."""
    monkeypatch.chdir(tmp_path)


def tiny_config():
    return RatsConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_registers=NUM_REGISTERS,
        patch_size=8,
        image_size=32,
        num_prototypes=16,
        head_hidden_size=16,
        head_bottleneck_size=8,
    )


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(123)
        RatsForPartSegmentation(tiny_config()).save_pretrained(folder)
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def make_rows(num_images=5, mask_mode="L"):
    """Images of several modes and shapes with three-region masks; the last has no foreground."""
    generator = np.random.default_rng(0)
    rows = {"image": [], "mask": [], "caption": []}
    for index in range(num_images):
        height, width = (40, 60) if index % 2 else (48, 48)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        if index < num_images - 1:
            mask[10:30, 5:20], mask[10:30, 20:40] = 1, 2
        rows["image"].append(Image.fromarray(pixels).convert(["RGB", "L", "RGBA"][index % 3]))
        rows["mask"].append(Image.fromarray(mask.astype(np.uint16) if mask_mode == "I;16" else mask).convert(mask_mode))
        rows["caption"].append(str(index))
    return rows


def save_rows(folder, rows, split="validation"):
    folder.mkdir(exist_ok=True, parents=True)
    images = {name: datasets.Image() for name in ("image", "mask") if isinstance(rows[name][0], Image.Image)}
    data = datasets.Dataset.from_dict(rows)
    for name, feature in images.items():
        data = data.cast_column(name, feature)
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("data"), make_rows())


def samples_of(folder, **options):
    return list(read_mask_samples(open_mask_dataset(folder), **options))


def run(model_folder, data_folder, *more):
    return part_segmentation.main(["--model", model_folder, "--dataset", data_folder, "--quiet", *more])


def test_the_command_scores_every_row_and_records_how(model_folder, data_folder, tmp_path, capsys):
    output, pictures = tmp_path / "new" / "scores.json", tmp_path / "pictures"
    record = run(
        model_folder, data_folder, "--untrained", "--output", str(output), "--pictures", str(pictures),
        "--num_pictures", "2", "--batch_size", "2",
    )  # fmt: skip
    rows = ["model", "untrained", "color k-means, same number of segments", "color k-means, 8 segments"]
    written = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(record)) and list(written["scores"]) == rows
    for scores in written["scores"].values():
        assert scores["images"] == 5 and scores["images_with_foreground"] == 4
        assert all(0 <= scores[name] <= 100 for name in ("m2o_miou", "m2o_miou_foreground", "o2o_miou"))
    used = {row: scores["segments_used"] for row, scores in written["scores"].items()}
    assert used[rows[2]] == used["model"] <= NUM_REGISTERS and used[rows[3]] == NUM_REGISTERS
    assert written["settings"]["model"] == model_folder and written["settings"]["split"] == "validation"
    assert written["settings"]["image_size"] == {"height": 32, "width": 32} and written["settings"]["revision"] is None
    assert written["model_config"]["num_registers"] == NUM_REGISTERS
    assert written["command"].startswith("python -m evaluation.part_segmentation --model")
    assert {"torch", "transformers", "python"} <= set(written["versions"])
    assert sorted(path.name for path in pictures.iterdir()) == ["0000.png", "0001.png", "inputs", "overview.png", "worst"]
    assert Image.open(pictures / "0000.png").width == 4 * 48 + 3 * 4  # image, model, untrained, true mask
    assert list(output.parent.iterdir()) == [output]  # no partial file is left behind
    captured = capsys.readouterr()
    assert all(row in captured.out for row in rows) and "image/s" not in captured.err


def test_the_same_command_gives_the_same_scores_whatever_the_batches(model_folder, data_folder):
    options = ("--untrained", "--baselines", "color_kmeans", "color_position_kmeans")
    first = run(model_folder, data_folder, *options, "--batch_size", "4")["scores"]
    assert len(first) == 6 and run(model_folder, data_folder, *options, "--batch_size", "4")["scores"] == first
    one_by_one = run(model_folder, data_folder, "--baselines", "--batch_size", "1")["scores"]
    assert one_by_one["model"] == pytest.approx(first["model"], abs=1)  # rounding may hand a patch to another register


def test_parts_can_be_read_from_another_layer(model_folder, data_folder):
    last, first = run(model_folder, data_folder), run(model_folder, data_folder, "--part_layer", "1")
    assert (last["model_config"]["part_layer"], first["model_config"]["part_layer"]) == (-1, 1)
    assert first["scores"]["model"] != last["scores"]["model"]
    with pytest.raises(SystemExit, match="part_layer=9 must index"):
        run(model_folder, data_folder, "--part_layer", "9")


def test_parts_can_be_read_from_claimed_patches(model_folder, data_folder, tmp_path):
    """The options do what a configuration that says so does."""
    options = ("--part_layer", "-2", "--part_similarity", "claimed_patches")
    record = run(model_folder, data_folder, *options)
    assert record["model_config"]["part_similarity"] == record["settings"]["part_similarity"] == "claimed_patches"
    model, processor = load_rats(model_folder)
    model.config.update({"part_layer": -2, "part_similarity": "claimed_patches"})
    for saved in (model, processor):
        saved.save_pretrained(tmp_path / "claimed")
    assert record["scores"]["model"] == run(str(tmp_path / "claimed"), data_folder)["scores"]["model"]
    assert record["scores"]["model"] != run(model_folder, data_folder, "--part_layer", "-2")["scores"]["model"]


def test_scores_are_those_of_the_register_maps_at_the_size_of_the_mask(model_folder, data_folder):
    model, processor = load_rats(model_folder)
    seen = []
    samples = samples_of(data_folder)
    rows = {"model": rats_segmenter(model, processor)}
    evaluate_parts(rows, samples, batch_size=3, watch=lambda index, sample, maps: seen.append((index, sample, maps)))
    assert [index for index, _, _ in seen] == [0, 1, 2, 3, 4]
    for _, sample, label_maps in seen:
        inputs = processor(images=[sample.image], return_tensors="pt")
        with torch.no_grad():
            winners = model(**inputs).similarities[0].argmax(dim=0).numpy()  # (4, 4) patches
        height, width = sample.mask.shape
        centres = (np.arange(height) + 0.5) * 4 / height, (np.arange(width) + 0.5) * 4 / width
        expected = winners[centres[0].astype(int)[:, None], centres[1].astype(int)]
        assert np.array_equal(label_maps["model"], expected)


def test_a_perfect_segmenter_scores_100_and_undefined_scores_are_null(tmp_path):
    mask = np.array([[0, 1], [0, 1]])
    samples = [MaskSample(Image.new("RGB", (2, 2)), mask), MaskSample(Image.new("RGB", (2, 2)), np.zeros((2, 2), int))]
    scores = evaluate_parts({"truth": lambda batch: [sample.mask for sample in samples]}, samples)["truth"]
    summary = scores.summary()
    assert (summary["m2o_miou"], summary["m2o_miou_foreground"]) == (100, 100)
    assert (summary["images"], summary["images_with_foreground"], summary["segments_used"]) == (2, 1, 1.5)
    empty = evaluate_parts({"truth": lambda batch: [samples[1].mask]}, samples[1:])["truth"].summary()
    assert math.isnan(empty["ari_foreground"]) and " -" in format_table({"truth": empty})
    write_json(tmp_path / "scores.json", {"truth": empty})
    assert json.loads((tmp_path / "scores.json").read_text())["truth"]["ari_foreground"] is None


def test_later_competitors_are_told_the_segments_of_the_first_per_image():
    samples = [MaskSample(Image.new("RGB", (3, 1)), np.zeros((1, 3), int)) for _ in range(3)]
    maps = iter([[np.array([[0, 0, 0]])], [np.array([[4, 9, 9]])], [np.array([[1, 2, 3]])]])
    told = []

    def second(batch):
        told.append(batch.reference_segments)
        return [np.zeros(size, int) for size in batch.target_sizes]

    evaluate_parts({"first": lambda batch: next(maps), "second": second, "third": second}, samples, batch_size=1)
    assert told == [[1], [1], [2], [2], [3], [3]]


def test_untrained_weights_are_fresh_by_seed_and_leave_the_random_state_alone(model_folder):
    model, _ = load_rats(model_folder)
    state = torch.get_rng_state()
    first, again, other = untrained_like(model, 0), untrained_like(model, 0), untrained_like(model, 1)
    assert torch.equal(torch.get_rng_state(), state)
    name = "rats.encoder.layer.0.attention.q_proj.weight"
    weights = [network.state_dict()[name] for network in (model, first, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert not first.training and first.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("model_class", [RatsModel, RatsForPreTraining])
def test_any_rats_checkpoint_gives_its_own_parts(model_class, tmp_path):
    saved = model_class(tiny_config())
    saved.save_pretrained(tmp_path)
    RatsImageProcessor().save_pretrained(tmp_path)
    model, _ = load_rats(str(tmp_path))
    backbone = saved if model_class is RatsModel else saved.rats
    assert all(torch.equal(model.rats.state_dict()[name], weight) for name, weight in backbone.state_dict().items())


def test_image_size_changes_the_grid(model_folder, data_folder):
    small, large = (run(model_folder, data_folder, "--image_size", str(side)) for side in (32, 64))
    assert small["settings"]["image_size"] == 32
    assert small["scores"]["model"] != large["scores"]["model"]


def test_processor_that_keeps_the_aspect_ratio(model_folder, data_folder):
    model, _ = load_rats(model_folder)
    processor = RatsImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=8)
    scores = evaluate_parts({"model": rats_segmenter(model, processor)}, samples_of(data_folder))
    assert scores["model"].summary()["images"] == 5


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "P"])
def test_masks_of_any_integer_mode(mode, tmp_path, data_folder):
    folder = save_rows(tmp_path, make_rows(mask_mode=mode))
    for sample, expected in zip(samples_of(folder), samples_of(data_folder), strict=True):
        assert np.array_equal(sample.mask, expected.mask) and sample.image.mode == "RGB"


def test_a_single_file_and_a_limit(data_folder):
    file = next(Path(data_folder).glob("*.parquet"))
    assert len(samples_of(str(file), limit=2)) == 2


def test_masks_at_another_scale_are_fine(tmp_path):
    rows = {"image": [Image.new("RGB", (101, 67))], "mask": [Image.new("L", (50, 33))], "caption": [""]}
    assert samples_of(save_rows(tmp_path, rows))[0].mask.shape == (33, 50)


@pytest.mark.parametrize(
    "image, mask, message",
    [
        (Image.new("RGB", (60, 40)), Image.new("L", (40, 60)), "row 0 is 60 x 40 and its mask 40 x 60.*aspect ratio"),
        (Image.new("RGB", (4, 4)), np.zeros((4, 4)).tolist(), "mask of row 0 has dtype float64"),
        (Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4)), r"mask of row 0 has shape \(4, 4, 3\)"),
        ("a text", Image.new("L", (4, 4)), "image of row 0 is a str"),
    ],
)
def test_samples_that_cannot_be_scored_are_refused(image, mask, message, tmp_path):
    folder = save_rows(tmp_path, {"image": [image], "mask": [mask], "caption": [""]})
    with pytest.raises(ValueError, match=message):
        samples_of(folder)


def test_what_a_data_set_does_not_have_is_listed(data_folder, tmp_path):
    with pytest.raises(ValueError, match=r"split=test is not in .*; it has: validation"):
        open_mask_dataset(data_folder, split="test")
    with pytest.raises(ValueError, match=r"no column 'picture'; image_column must name one .*: image, mask, caption"):
        open_mask_dataset(data_folder, image_column="picture")
    with pytest.raises(ValueError, match="no column 'parts'; mask_column"):
        open_mask_dataset(data_folder, mask_column="parts")
    with pytest.raises(FileNotFoundError, match=r"nowhere was not found.*Hub name"):
        open_mask_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is an empty folder"):
        open_mask_dataset(str(tmp_path / "empty"))


def test_an_empty_split_is_refused(tmp_path):
    rows = {name: values[:1] for name, values in make_rows().items()}
    folder = tmp_path / "data"
    save_rows(folder, rows)
    data = datasets.load_dataset(str(folder), split="validation", cache_dir=str(tmp_path / "cache"))
    data.select([]).to_parquet(folder / "validation-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="no rows"):
        samples_of(str(folder))


def test_models_that_cannot_be_scored_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' was not found.*config\.json"):
        load_rats(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"model_type 'vit'.*registers"):
        load_rats(str(tmp_path))


def test_weights_that_do_not_fill_the_backbone_are_refused(model_folder, tmp_path):
    model, _ = load_rats(model_folder)
    state = {name: weight for name, weight in model.state_dict().items() if "register_tokens" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 1 weights of the backbone.*register_tokens"):
        load_rats(str(tmp_path))


def what_was_measured(path):
    """A record without what differs from run to run."""
    record = json.loads(Path(path).read_text())
    for name in ("time", "date", "command"):
        del record[name]
    for name in ("output", "quiet"):
        del record["settings"][name]
    return record


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(model_folder, data_folder, tmp_path, monkeypatch, lost):
    """With 3 batches, of which `lost` is the first that is not finished."""
    options = ("--untrained", "--batch_size", "2")
    run(model_folder, data_folder, *options, "--output", str(tmp_path / "whole.json"), "--pictures", str(tmp_path / "whole"))
    again = (*options, "--output", str(tmp_path / "rest.json"), "--pictures", str(tmp_path / "rest"))
    scored = []
    write = Journal.write

    def interrupted_write(self, batch, entry):
        if batch == lost:
            raise KeyboardInterrupt
        write(self, batch, entry)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "write", interrupted_write)
        run(model_folder, data_folder, *again)
    assert not (tmp_path / "rest.json").exists()
    if lost > 0:
        with pytest.raises(SystemExit, match="seed was 0 and is now 1"):
            run(model_folder, data_folder, *again, "--seed", "1")
    monkeypatch.setattr(Journal, "write", lambda self, batch, entry: (scored.append(batch), write(self, batch, entry)))
    run(model_folder, data_folder, *again)
    assert scored == list(range(lost, 3))
    assert what_was_measured(tmp_path / "rest.json") | {"settings": 0} == what_was_measured(tmp_path / "whole.json") | {
        "settings": 0
    }
    drawn = list((tmp_path / "whole").rglob("*.png"))
    assert {path.parent.name for path in drawn} == {"whole", "inputs", "worst"}
    for picture in drawn:
        assert (tmp_path / "rest" / picture.relative_to(tmp_path / "whole")).read_bytes() == picture.read_bytes()


def test_two_ranks_give_the_record_of_one(model_folder, data_folder, tmp_path):
    arguments = ["--model", model_folder, "--dataset", data_folder, "--batch_size", "2", "--untrained"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command = [sys.executable, *launcher, "evaluation.part_segmentation", *arguments, "--output", str(tmp_path / "two.json")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Written to") == 1
    record = part_segmentation.main([*arguments, "--output", str(tmp_path / "one.json")])
    assert json.loads((tmp_path / "two.json").read_text())["time"]["processes"] == 2 and record["time"]["processes"] == 1
    assert what_was_measured(tmp_path / "two.json") == what_was_measured(tmp_path / "one.json")


def test_the_order_of_the_images_does_not_matter(model_folder, tmp_path):
    rows = make_rows()
    turned = {name: values[::-1] for name, values in rows.items()}
    one, other = (
        run(model_folder, save_rows(tmp_path / str(place), some), "--batch_size", "1")
        for place, some in enumerate((rows, turned))
    )
    assert other["scores"] == one["scores"] and other["fingerprints"] == one["fingerprints"]


def test_a_record_tells_weights_data_and_time(model_folder, data_folder, tmp_path):
    record = run(model_folder, data_folder)
    fewer = run(model_folder, data_folder, "--limit", "4")
    assert fewer["fingerprints"]["weights"] == record["fingerprints"]["weights"]
    assert fewer["fingerprints"]["data"] != record["fingerprints"]["data"]
    assert 0 < record["time"]["share_outside_model"] < 1 and record["time"]["seconds"] > 0
    model, processor = load_rats(model_folder)
    with torch.no_grad():
        model.rats.embeddings.register_tokens += 1
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    assert run(str(tmp_path / "other"), data_folder)["fingerprints"]["weights"] != record["fingerprints"]["weights"]


def test_competitors_of_every_kind_are_rows(model_folder, data_folder, tmp_path):
    vit = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    kinds = ["grid", "slic", "random_registers", f"patch_kmeans:{tmp_path / 'vit'}", f"attention_heads:{tmp_path / 'vit'}"]
    record = run(model_folder, data_folder, "--baselines", *kinds, "--num_segments", "same", "3")
    rows = {title: (row["method"], row["num_segments"]) for title, row in record["competitors"].items()}
    assert rows == {
        "model": ("registers", None),
        "uniform grid, same number of segments": ("grid", "same"),
        "uniform grid, 3 segments": ("grid", 3),
        "SLIC superpixels, same number of segments": ("slic", "same"),
        "SLIC superpixels, 3 segments": ("slic", 3),
        "8 random registers, patches of the model": ("random_registers", None),
        "patch k-means of vit, same number of segments": ("patch_kmeans", "same"),
        "patch k-means of vit, 3 segments": ("patch_kmeans", 3),
        "attention heads of vit": ("attention_heads", None),
    }
    used = {title: scores["segments_used"] for title, scores in record["scores"].items()}
    assert used["uniform grid, 3 segments"] == used["patch k-means of vit, 3 segments"] == 3
    assert used["uniform grid, same number of segments"] == used["model"]
    assert used["attention heads of vit"] <= 4
    with pytest.raises(SystemExit, match="no registers"):
        run(model_folder, data_folder, "--baselines", f"registers:{tmp_path / 'vit'}")


def test_registers_are_matched_to_classes_over_all_images(model_folder, data_folder, tmp_path):
    options = ("--untrained", "--batch_size", "2", "--labels_are_classes")
    record = run(model_folder, data_folder, *options)
    assert set(record["register_classes"]) == {"model", "untrained"}
    model, processor = load_rats(model_folder)
    expected = RegisterClasses()
    segment = rats_segmenter(model, processor)

    def watch(index, sample, label_maps):
        expected.previous = None if index % 2 == 0 else expected.previous  # each batch begins anew
        expected.add(label_maps["model"], sample.mask)

    evaluate_parts({"model": segment}, samples_of(data_folder), 2, watch=watch)
    of_model = record["register_classes"]["model"]
    matches = of_model.pop("matches")
    assert of_model == expected.summary() and of_model["images"] == 5 and of_model["classes"] == 3
    assert matches == [match._asdict() for match in expected.matches()]
    assert run(model_folder, data_folder)["register_classes"] == {}  # labels may number the regions of an image


def test_a_benchmark_is_the_data_set_that_its_record_tells(model_folder, data_folder, monkeypatch):
    of_record = Benchmark(name="things", title="Things", ignore_label=1, num_labels=3, background=True)
    monkeypatch.setitem(BENCHMARKS, "things", of_record)
    options = ["--model", model_folder, "--quiet", "--limit", "3"]
    record = part_segmentation.main([*options, "--benchmark", "things", "--root", data_folder])
    assert (record["settings"]["dataset"], record["settings"]["ignore_label"]) == (data_folder, 1)
    assert record["scores"] == run(model_folder, data_folder, "--limit", "3", "--ignore_label", "1")["scores"]
    assert record["scores"] != run(model_folder, data_folder, "--limit", "3")["scores"]
    with pytest.raises(SystemExit, match=r"--benchmark things was given with --ignore_label"):
        part_segmentation.main([*options, "--benchmark", "things", "--root", data_folder, "--ignore_label", "0"])
    with pytest.raises(SystemExit, match=r"--benchmark things was given with --image_column, --labels_are_classes"):
        named = ["--image_column", "image", "--labels_are_classes"]
        part_segmentation.main([*options, "--benchmark", "things", "--root", data_folder, *named])
    with pytest.raises(SystemExit, match=r"images are missing: give --dataset"):
        part_segmentation.main([*options, "--root", data_folder])
    with pytest.raises(SystemExit, match=r"--root \S+ is the folder of a --benchmark's files, and --dataset \S+ was given"):
        run(model_folder, data_folder, "--root", data_folder)


@pytest.mark.parametrize(
    "mask, message",
    [
        (None, "mask of row 1 is missing; each image that is scored needs one"),
        ([[0, 1], [0]], r"mask of row 1 has rows of 1 to 2 pixels; all must be equally long"),
    ],
)
def test_masks_that_are_none_are_named(mask, message, model_folder, tmp_path):
    rows = make_rows(3)
    rows["mask"] = [[[0, 1], [0, 2]], mask, [[0, 0], [1, 1]]]
    with pytest.raises(SystemExit, match=message):
        run(model_folder, save_rows(tmp_path / "data", rows))


def test_images_of_which_no_pixel_counts_are_refused_and_bind_no_later_run(model_folder, tmp_path):
    rows = make_rows(3)
    rows["mask"] = [Image.new("L", image.size, 7) for image in rows["image"]]
    folder = save_rows(tmp_path / "data", rows)
    with pytest.raises(SystemExit, match=r"No pixel of the 3 images counts: all have the ignored label 7"):
        run(model_folder, folder, "--ignore_label", "7", "--output", str(tmp_path / "new" / "scores.json"))
    assert not list((tmp_path / "new").iterdir())
    run(model_folder, folder, "--output", str(tmp_path / "new" / "scores.json"))


@pytest.mark.parametrize(
    "more, message",
    [
        (("--output", "."), r"output=\. is a folder; it must be the name of a JSON file"),
        (("--image_size", "36"), r"image_size=36 px is no multiple of the model's patches of 8 x 8 px"),
        (("--baselines", "registers:empty"), r"'empty' is a folder without config\.json"),
        (("--reference", "grid"), r"makes a wanted number of segments; it must be a competitor"),
        (("--reference", "random_registers", "--baselines", "random_registers"), "is the reference, which is a row already"),
    ],
)
def test_runs_that_cannot_begin_end_with_a_sentence(more, message, model_folder, data_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=message):
        run(model_folder, data_folder, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_unreadable_image_is_named(model_folder, tmp_path):
    rows = make_rows(3)
    rows["image"][1] = {"bytes": b"no image", "path": None}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(SystemExit, match=r"image or mask of row 1 cannot be decoded.*all images that are scored"):
        run(model_folder, str(tmp_path / "validation.parquet"))


@pytest.mark.parametrize("name, ignore", [("car_parts", ()), ("coco_panoptic_200", ("--ignore_label", "0"))])
def test_real_masks(name, ignore, model_folder):
    if not (SHARED_DATA / name).is_dir():
        pytest.skip(f"{SHARED_DATA / name} is not there; set RATS_SHARED_DATA to the folder that holds {name}")
    scores = run(model_folder, str(SHARED_DATA / name), "--limit", "6", *ignore)["scores"]
    assert all(row["images"] == 6 and 0 < row["m2o_miou"] < 100 for row in scores.values())
