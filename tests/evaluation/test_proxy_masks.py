"""Proxy masks by a tiny SAM 2 with random weights: painting, files that can be scored, interruption, ranks and refusals."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2Processor,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
)

from evaluation import proxy_masks
from evaluation.data_sets import open_images
from evaluation.mask_samples import open_mask_dataset, read_mask_samples
from evaluation.mask_shards import MaskShards
from evaluation.part_scoring import evaluate_parts
from evaluation.sam_masks import MaskSettings, WholeImageProcessor, load_sam, paint_masks, segment_image
from modeling_rats import RatsModel

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64  # of the model's input, in pixels
ALL_MASKS = {"points_per_side": 4, "pred_iou_threshold": 0.0, "stability_score_threshold": 0.0}  # an untrained SAM is unsure
FLAGS = [f"--{name}={value}" for name, value in ALL_MASKS.items()] + ["--shard_size=3"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More only get in each other's way on a model of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_sam(config=Sam2Config, prompt_encoder=Sam2PromptEncoderConfig, mask_decoder=Sam2MaskDecoderConfig):
    return config(
        vision_config=Sam2VisionConfig(
            backbone_config=Sam2HieraDetConfig(
                hidden_size=8,
                image_size=[SIDE, SIDE],
                blocks_per_stage=[1, 1, 2, 1],
                embed_dim_per_stage=[8, 16, 24, 32],
                num_attention_heads_per_stage=[1, 1, 1, 1],
                global_attention_blocks=[3],
                window_size_per_stage=[4, 4, 4, 4],
                window_positional_embedding_background_size=[4, 4],
            ),
            backbone_channel_list=[32, 24, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=16,
        ),
        prompt_encoder_config=prompt_encoder(image_size=SIDE, patch_size=16, mask_input_channels=4, hidden_size=16),
        mask_decoder_config=mask_decoder(
            hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )


def processor():
    return Sam2ImageProcessor(size={"height": SIDE, "width": SIDE}, mask_size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam2Model(tiny_sam())
    for name, parameter in model.named_parameters():
        if "mask_decoder" in name:
            parameter.data *= 3  # so that masks of different points differ
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sam(sam_folder):
    return load_sam(sam_folder)


def picture(seed, height=40, width=60):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_images(folder, contents, split="validation"):
    """A data set of one parquet file; each image is a file's bytes, or None."""
    rows = [None if content is None else {"bytes": content, "path": f"{index}.png"} for index, content in enumerate(contents)]
    features = datasets.Features({"image": datasets.Image()})
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(path)
    return str(folder)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), [file_of(picture(seed)) for seed in range(8)])


@pytest.fixture
def segmented(monkeypatch):
    """The sizes of the images that were segmented, in order; after `most` of them the run is interrupted."""
    calls = []

    def counted(sam, image, *arguments):
        if len(calls) == calls_allowed["most"]:
            raise KeyboardInterrupt
        calls.append(image.size)
        return segment_image(sam, image, *arguments)

    calls_allowed = {"most": None}
    monkeypatch.setattr(proxy_masks, "segment_image", counted)
    return calls, calls_allowed


def run(sam_folder, dataset, output, *options):
    return proxy_masks.main(["--model", sam_folder, "--dataset", dataset, "--output", str(output), *FLAGS, *options])


def shards_of(folder):
    return {path.name: path.read_bytes() for path in sorted((Path(folder) / "data").glob("*.parquet"))}


def test_small_masks_lie_on_large_ones_and_better_ones_on_their_equals():
    whole, part, right, better, speck, none = masks = np.zeros((6, 6, 8), bool)
    whole[:, :6], part[1:3, 1:3], right[4:6, 5:7], better[4:6, 6:8], speck[0, 7] = True, True, True, True, True
    expected = np.zeros((6, 8), int)
    expected[:, :6] = 1
    expected[4:6, 5:7], expected[4:6, 6:8] = 3, 4
    expected[1:3, 1:3] = 2
    scores = [0.9, 0.5, 0.6, 0.8, 1.0, 1.0]
    painted = paint_masks(masks, scores, (6, 8), min_area_px=2)
    np.testing.assert_array_equal(painted, expected)
    # The order in which they come does not matter.
    np.testing.assert_array_equal(paint_masks(masks[::-1], scores[::-1], (6, 8), min_area_px=2), expected)
    assert paint_masks(masks, scores, (6, 8), min_area_px=1)[0, 7] == 5
    assert not paint_masks([none], [1.0], (6, 8), min_area_px=0).any() and not paint_masks([], [], (6, 8)).any()


def test_labels_count_what_stays_visible():
    whole, left, right = masks = np.zeros((3, 2, 4), bool)
    whole[:], left[:, :2], right[:, 2:] = True, True, True
    painted = paint_masks(masks, [0.1, 0.2, 0.3], (2, 4))
    np.testing.assert_array_equal(painted, [[1, 1, 2, 2]] * 2)
    assert painted.dtype == np.uint16


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40), (50, 50), (7, 90)])
def test_the_grid_covers_the_whole_image_where_the_model_sees_it(height, width):
    image, side = picture(0, height, width), 4
    whole = WholeImageProcessor(size={"height": SIDE, "width": SIDE})
    boxes, points, crops, labels = whole.generate_crop_boxes(image, SIDE, 0, 0.3, side, 1)
    centers = (np.arange(side) + 0.5) / side
    given = [[[[[x * width, y * height]] for y in centers for x in centers]]]
    expected = Sam2Processor(processor())(images=image, input_points=given[0], return_tensors="pt")["input_points"]
    torch.testing.assert_close(points, expected.to(points.dtype).reshape(points.shape))
    assert boxes.tolist() == [[0, 0, width, height]] and len(crops) == 1 and labels.shape == (1, side**2, 1)


def test_masks_are_those_of_the_model_at_the_points(sam):
    """Each label is a mask that the model gives at one of the points, cut at 0 after enlarging to the image."""
    image, settings = picture(3), MaskSettings(**ALL_MASKS, min_area_share=0.0)
    centers = (np.arange(4) + 0.5) / 4
    points = [[[[x * 60, y * 40]] for y in centers for x in centers]]
    inputs = Sam2Processor(processor())(images=image, input_points=points, return_tensors="pt")
    with torch.no_grad():
        outputs = sam.model(inputs["pixel_values"], input_points=inputs["input_points"].float())
    logits = torch.nn.functional.interpolate(outputs.pred_masks[0], (40, 60), mode="bilinear")  # (points, 3, height, width)
    possible = (logits > 0).flatten(0, 1).numpy()
    label_map = segment_image(sam, image, settings, points_per_batch=5)
    assert label_map.shape == (40, 60) and label_map.dtype == np.uint8 and label_map.max() >= 3
    smallest = label_map == label_map.max()  # nothing lies on it
    assert any((mask == smallest).all() for mask in possible)
    for label in range(1, label_map.max() + 1):
        assert any((mask >= (label_map == label)).all() for mask in possible)


def test_thresholds_and_areas_drop_masks(sam):
    image = picture(3)
    labels = {
        name: segment_image(sam, image, MaskSettings(**(ALL_MASKS | {"min_area_share": 0.0} | {name: value}))).max()
        for name, value in (("points_per_side", 4), ("pred_iou_threshold", 1.0), ("stability_score_threshold", 1.0))
    }
    assert labels["points_per_side"] >= 3 and labels["pred_iou_threshold"] == labels["stability_score_threshold"] == 0
    few = segment_image(sam, image, MaskSettings(**ALL_MASKS, min_area_share=0.1))
    assert 0 < few.max() < labels["points_per_side"]


def test_of_a_large_image_a_small_copy_is_seen(sam, monkeypatch):
    seen = []
    preprocess = sam.preprocess
    monkeypatch.setattr(sam, "preprocess", lambda image, **options: seen.append(image.size) or preprocess(image, **options))
    label_map = segment_image(sam, picture(3, 50, 100), MaskSettings(**ALL_MASKS, max_image_side=40))
    assert seen == [(40, 20)] and label_map.shape == (50, 100) and label_map.max() >= 1


def test_mixed_precision_is_autocast(sam):
    dtypes = []
    hook = sam.model.mask_decoder.register_forward_pre_hook(lambda *_: dtypes.append(torch.is_autocast_enabled("cpu")))
    for precision in ("no", "bf16"):
        segment_image(sam, picture(3), MaskSettings(**ALL_MASKS, mixed_precision=precision))
    hook.remove()
    assert dtypes == [False, True]


def odd_images():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    sixteen = Image.fromarray((np.arange(30 * 50).reshape(30, 50) * 43).astype(np.uint16))
    return [
        file_of(picture(0).convert("L")),
        file_of(sixteen),
        b"no image",
        file_of(picture(1), "JPEG", exif=exif),
        None,
        file_of(picture(2))[:-900],
        file_of(picture(4, 1, 1)),
    ]


def test_odd_images_and_broken_ones(sam_folder, tmp_path):
    contents = odd_images()
    record = run(sam_folder, write_images(tmp_path / "in", contents), tmp_path / "out")
    rows = list(
        datasets.load_dataset(str(tmp_path / "out"), split="validation").cast_column("image", datasets.Image(decode=False))
    )
    assert [row["image_id"] for row in rows] == [0, 1, 3, 6]
    assert [row["file_name"] for row in rows] == ["0.png", "1.png", "3.png", "6.png"]
    assert [row["image"]["bytes"] for row in rows] == [contents[index] for index in (0, 1, 3, 6)]
    assert [row["mask"].size for row in rows] == [(60, 40), (50, 30), (40, 60), (1, 1)]
    assert [row["num_masks"] for row in rows] == [int(np.asarray(row["mask"]).max()) for row in rows]
    assert [(image["image_id"], image["file_name"]) for image in record["broken_images"]] == [
        (2, "2.png"),
        (4, None),
        (5, "5.png"),
    ]
    assert "no image" in record["broken_images"][1]["error"] and "truncated" in record["broken_images"][2]["error"].lower()
    masks = [row["num_masks"] for row in rows]
    assert record["counts"] == {
        "shards": 3,
        "images": 4,
        "masks": sum(masks),
        "images_without_mask": masks.count(0),
        "broken_images": 3,
    }
    assert record == json.loads((tmp_path / "out" / "proxy_masks.json").read_text())
    assert {"transformers", "torch"} <= record["versions"].keys() and record["settings"]["points_per_side"] == 4


def test_masks_can_be_scored(sam_folder, image_folder, tmp_path):
    record = run(sam_folder, image_folder, tmp_path / "out")
    samples = list(read_mask_samples(open_mask_dataset(str(tmp_path / "out"))))
    assert len(samples) == record["counts"]["images"] == 8
    answers = iter([sample.mask for sample in samples])
    segmenters = {"itself": lambda batch: [next(answers) for _ in batch.images]}
    summary = evaluate_parts(segmenters, samples)["itself"].summary()
    assert summary["m2o_miou"] == summary["ari"] == 100 and summary["segments_used"] > 2


def test_a_shard_of_broken_images_alone_is_read_as_empty(sam_folder, tmp_path):
    contents = [b"none"] * 3 + [file_of(picture(0))]
    run(sam_folder, write_images(tmp_path / "in", contents), tmp_path / "out")
    assert len(shards_of(tmp_path / "out")) == 2
    assert len(list(open_mask_dataset(str(tmp_path / "out")))) == 1


def test_more_than_255_masks_take_16_bits(sam_folder, tmp_path, monkeypatch):
    label_map = np.arange(400, dtype=np.uint16).reshape(20, 20)
    monkeypatch.setattr(proxy_masks, "segment_image", lambda *_: label_map)
    run(sam_folder, write_images(tmp_path / "in", [file_of(picture(0, 20, 20))]), tmp_path / "out")
    (sample,) = read_mask_samples(open_mask_dataset(str(tmp_path / "out")))
    np.testing.assert_array_equal(sample.mask, label_map)


def test_an_interrupted_run_goes_on(sam_folder, image_folder, tmp_path, segmented):
    run(sam_folder, image_folder, tmp_path / "whole")
    calls, allowed = segmented
    calls.clear()
    allowed["most"] = 4
    with pytest.raises(KeyboardInterrupt):
        run(sam_folder, image_folder, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()
    with pytest.raises(FileNotFoundError, match="holds no data"):  # nobody scores on a part without knowing
        open_mask_dataset(str(tmp_path / "out"))
    calls.clear()
    allowed["most"] = None
    record = run(sam_folder, image_folder, tmp_path / "out", "--points_per_batch=7", "--quiet")
    assert len(calls) == 8 - 3
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole") and len(shards_of(tmp_path / "out")) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "data", "proxy_masks.json"]
    whole = json.loads((tmp_path / "whole" / "proxy_masks.json").read_text())
    assert record["counts"] == whole["counts"] and record["settings"] == whole["settings"]
    assert run(sam_folder, image_folder, tmp_path / "out") == record and len(calls) == 5  # there is nothing left to do


def test_a_run_killed_before_its_record_ends_it(sam_folder, image_folder, tmp_path, segmented):
    record = run(sam_folder, image_folder, tmp_path / "out")
    unfinished = {name: value for name, value in record.items() if name not in ("counts", "broken_images")}
    (tmp_path / "out" / "proxy_masks.json").write_text(json.dumps(unfinished | {"finished": False}))
    segmented[0].clear()
    again = run(sam_folder, image_folder, tmp_path / "out")
    assert again["finished"] and again["counts"] == record["counts"] and not segmented[0]


def test_other_settings_or_data_are_refused(sam_folder, image_folder, tmp_path):
    run(sam_folder, image_folder, tmp_path / "out", "--limit=1")
    before = shards_of(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"min_area_share was 0\.001 and is now 0\.5\); all masks"):
        run(sam_folder, image_folder, tmp_path / "out", "--limit=1", "--min_area_share=0.5")
    with pytest.raises(SystemExit, match="limit was 1 and is now None"):
        run(sam_folder, image_folder, tmp_path / "out")
    assert shards_of(tmp_path / "out") == before
    with pytest.raises(SystemExit, match="a folder data but no"):
        run(sam_folder, image_folder, image_folder)


def test_ranks_share_the_shards_and_the_last_one_finishes(sam, image_folder, tmp_path):
    def work(folder, rank, ranks):
        rows, column = open_images(image_folder, None, "validation", None)
        settings = MaskSettings(**ALL_MASKS)
        shards = MaskShards(folder, "minival", {"method": "any"}, {})  # a name of which `datasets` knows nothing
        return proxy_masks.write_proxy_masks(rows, column, sam, settings, shards, 3, 64, rank, ranks)

    assert work(tmp_path / "one", 0, 1)["finished"]
    assert work(tmp_path / "two", 1, 2) is None
    assert [path.name for path in (tmp_path / "two" / ".unfinished").iterdir()] == ["minival-00001.parquet"]
    assert work(tmp_path / "two", 0, 2)["counts"]["images"] == 8
    assert shards_of(tmp_path / "one") == shards_of(tmp_path / "two")
    assert len(list(open_mask_dataset(str(tmp_path / "two"), split="minival"))) == 8


def test_two_processes_write_what_one_does(sam_folder, image_folder, tmp_path):
    arguments = ["--model", sam_folder, "--dataset", image_folder, "--output", str(tmp_path / "two"), *FLAGS]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "evaluation.proxy_masks"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *launcher, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "Written to" in ended.stdout
    run(sam_folder, image_folder, tmp_path / "one")
    assert shards_of(tmp_path / "two") == shards_of(tmp_path / "one")


def test_a_lost_connection_ends_the_run_and_a_lost_file_does_not(sam_folder, tmp_path, monkeypatch):
    folder = tmp_path / "in" / "validation"
    folder.mkdir(parents=True)
    for seed in range(2):
        picture(seed).save(folder / f"{seed}.png")

    def failing(error):
        def opened(path, mode):
            if Path(path).name == "1.png":
                raise error
            return open(path, mode)

        return opened

    monkeypatch.setattr(proxy_masks, "xopen", failing(ConnectionError("no network")))
    with pytest.raises(SystemExit, match="no network"):
        run(sam_folder, str(tmp_path / "in"), tmp_path / "out")
    monkeypatch.setattr(proxy_masks, "xopen", failing(FileNotFoundError("1.png")))
    record = run(sam_folder, str(tmp_path / "in"), tmp_path / "out")
    assert [image["file_name"] for image in record["broken_images"]] == ["1.png"] and record["counts"]["images"] == 1


def test_video_checkpoints_are_sam_2(tmp_path):
    """Those of SAM 2.1 on the Hub are of this kind."""
    model = Sam2VideoModel(tiny_sam(Sam2VideoConfig, Sam2VideoPromptEncoderConfig, Sam2VideoMaskDecoderConfig))
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    loaded = load_sam(str(tmp_path)).model.state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.items())


def test_other_models_and_settings_are_refused(sam_folder, image_folder, tmp_path, make_config):
    RatsModel(make_config()).save_pretrained(tmp_path / "rats")
    with pytest.raises(SystemExit, match="model_type 'rats'; proxy masks need SAM 2"):
        run(str(tmp_path / "rats"), image_folder, tmp_path / "out")
    with pytest.raises(SystemExit, match="was not found"):
        run(str(tmp_path / "nothing"), image_folder, tmp_path / "out")
    model = Sam2Model.from_pretrained(sam_folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "no_memory_embedding"}
    model.save_pretrained(tmp_path / "less", state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 1 weights \(one: no_memory_embedding\)"):
        load_sam(str(tmp_path / "less"))
    with pytest.raises(SystemExit, match=r"min_area_share=1\.5 must be from 0 to 1"):
        run(sam_folder, image_folder, tmp_path / "out", "--min_area_share=1.5")
    assert not (tmp_path / "out").exists()
    empty = write_images(tmp_path / "empty", [])
    with pytest.raises(SystemExit, match="holds no rows"):
        run(sam_folder, empty, tmp_path / "out")
