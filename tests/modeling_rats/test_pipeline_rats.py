"""Images in whatever form they come, parts out; and the library's own pipelines with our models."""

import base64
import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_rats import (
    RatsForImageClassification,
    RatsForPartSegmentation,
    RatsImageProcessor,
    RatsModel,
)
from modeling_rats.image_inputs_rats import read_image
from modeling_rats.pipeline_rats import PartSegmentationPipeline


def random_image(width=60, height=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def file_of(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def saved(folder, model_class, config):
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def same(results, others):
    """Whether two lists of parts are equal, masks included; scores may differ by rounding."""
    return len(results) == len(others) and all(
        one["score"] == pytest.approx(other["score"], abs=1e-5)
        and np.array_equal(one["mask"], other["mask"])
        and all(one[name] == other[name] for name in one.keys() - {"score", "mask"})
        for one, other in zip(results, others, strict=True)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_config):
    # Weights large enough that several registers win patches, and others for other images.
    return saved(tmp_path_factory.mktemp("model"), RatsForPartSegmentation, make_config(initializer_range=0.3))


@pytest.fixture(scope="module")
def segmenter(folder):
    return pipeline("part-segmentation", model=str(folder))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A web site of a folder, as its address and the folder."""
    site = tmp_path_factory.mktemp("site")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", site
        http.shutdown()


# Parts out


def test_the_parts_are_the_map_of_the_processor(segmenter):
    image = random_image()
    inputs = segmenter.image_processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.model(**inputs)
    (expected,) = segmenter.image_processor.post_process_part_segmentation(outputs, target_sizes=[(40, 60)])
    parts = segmenter(image)
    assert len(parts) == len(expected["segments_info"]) > 1
    for part, segment in zip(parts, expected["segments_info"], strict=True):
        mask = np.asarray(part["mask"])
        assert part["mask"].mode == "L" and mask.shape == (40, 60) and set(np.unique(mask)) <= {0, 255}
        assert np.array_equal(mask == 255, (expected["segmentation"] == segment["id"]).numpy())
        assert part["label"] == f"register {segment['register']}" and part["register"] == segment["register"]
        assert part["registers"] == [part["register"]] and part["head"] == part["register"] // 2
        assert part["score"] == pytest.approx(segment["score"]) and -1 <= part["score"] <= 1
        assert part["area"] == np.count_nonzero(mask)
        assert tuple(part["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")) == part["mask"].getbbox()
    areas = [part["area"] for part in parts]
    assert sum(areas) == 40 * 60 and areas == sorted(areas, reverse=True)


def test_labels_are_registers_even_where_the_model_names_classes(tmp_path, make_config):
    config = make_config(initializer_range=0.3, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    parts = pipeline("part-segmentation", model=saved(tmp_path, RatsForPartSegmentation, config))(random_image())
    assert all(part["label"] == f"register {part['register']}" for part in parts) and len(parts) > 1


def test_without_partition_no_head_owns_a_register(tmp_path, make_config):
    config = make_config(initializer_range=0.3, partition_registers=False)
    segmenter = pipeline("part-segmentation", model=saved(tmp_path, RatsForPartSegmentation, config))
    for parts in (segmenter(random_image()), *segmenter([random_image()] * 2, batch_size=2)):
        assert parts and all(part["head"] is None for part in parts)


def test_nothing_but_model_and_image_processor_is_loaded(segmenter):
    others = (segmenter.tokenizer, segmenter.feature_extractor, segmenter.processor, segmenter.video_processor)
    assert others == (None, None, None, None)
    assert isinstance(segmenter, PartSegmentationPipeline) and segmenter.task == "part-segmentation"


# Images in


@pytest.mark.parametrize("form", ["path", "Path", "bytes", "bytearray", "data URL", "base64", "lines of base64", "URL"])
def test_every_form_of_an_image_gives_the_same_parts(segmenter, server, tmp_path, form):
    image = random_image()
    content, (address, site) = file_of(image), server
    (site / "image.png").write_bytes(content)
    text = base64.b64encode(content).decode()
    source = {
        "path": str(site / "image.png"),
        "Path": site / "image.png",
        "bytes": content,
        "bytearray": bytearray(content),
        "data URL": f"data:image/png;base64,{text}",
        "base64": text,
        "lines of base64": base64.encodebytes(content).decode(),
        "URL": f"{address}/image.png",
    }[form]
    assert same(segmenter(source, timeout=10), segmenter(image))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode(segmenter, mode):
    image = random_image()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    content = file_of(image, "TIFF" if mode == "CMYK" else "PNG")
    parts = segmenter(content)
    assert parts[0]["mask"].size == (60, 40) and same(parts, segmenter(image))


def test_images_of_16_bits_are_scaled_and_not_clipped_to_white():
    grey = random_image().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    read = np.asarray(read_image(file_of(deep)), int)
    assert np.abs(read - np.asarray(grey.convert("RGB"), int)).max() <= 1


def test_the_rotation_of_a_photograph_is_applied(segmenter):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by a quarter, clockwise
    content = file_of(random_image(60, 40), "JPEG", exif=exif)
    parts = segmenter(content)
    assert all(part["mask"].size == (40, 60) for part in parts)
    stored = np.asarray(Image.open(io.BytesIO(content)))
    assert same(parts, segmenter(Image.fromarray(np.rot90(stored, -1).copy())))
    assert same(parts, segmenter(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize(
    "source, name",
    [
        ("no/such/file.jpg", "'no/such/file.jpg' cannot be read as an image.*no such file"),
        (b"no image", "A file of 8 bytes cannot be read as an image"),
        (base64.b64encode(b"no image" * 1000).decode(), r"'bm8gaW1hZ2.{0,200}\.\.\. cannot be read as an image"),
        (file_of(random_image(400, 400), "JPEG")[:1000], "A file of 1000 bytes cannot be read as an image.*truncated"),
        (3, "3 cannot be read as an image.*int"),
        ({"image": None}, "{'image': None} cannot be read as an image.*dict"),
    ],
)
def test_what_is_no_image_is_named(segmenter, source, name):
    with pytest.raises(ValueError, match=name):
        segmenter(source)


def test_a_url_without_an_image_is_named(segmenter, server):
    address, site = server
    (site / "page.html").write_text("<html></html>")
    with pytest.raises(ValueError, match=rf"{address}/none\.png.*404"):
        segmenter(f"{address}/none.png")
    with pytest.raises(ValueError, match=rf"{address}/page\.html.*cannot be read"):
        segmenter([f"{address}/page.html"])


# Many images


def test_no_images_give_no_results(segmenter):
    assert segmenter([]) == [] and list(segmenter(image for image in [])) == []


@pytest.mark.parametrize("options", [{}, {"ensure_multiple_of": 8}], ids=["one shape", "many shapes"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("container", ["list", "generator", "data set"])
def test_many_images_give_what_each_gives_alone(segmenter, container, batch_size, options):
    images = [random_image(*size, seed=seed) for seed, size in enumerate([(60, 40), (40, 60), (60, 40), (32, 32), (200, 20)])]
    inputs = {
        "list": lambda: images,
        "generator": lambda: (image for image in images),
        "data set": lambda: KeyDataset([{"image": image} for image in images], "image"),
    }[container]()
    results = segmenter(inputs, batch_size=batch_size, **options)
    assert isinstance(results, list) == (container == "list")
    for image, parts in zip(images, results, strict=True):
        assert same(parts, segmenter(image, **options)) and parts[0]["mask"].size == image.size


def test_the_images_of_a_batch_run_together(segmenter):
    batches = []
    hook = segmenter.model.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape))
    try:
        segmenter([random_image(seed=seed) for seed in range(6)], batch_size=4)
    finally:
        hook.remove()
    assert batches == [(4, 3, 32, 32), (2, 3, 32, 32)]


def test_worker_processes_read_images(segmenter):
    images = [random_image(seed=seed) for seed in range(3)]
    results = segmenter(images, num_workers=1, batch_size=2)
    assert all(same(parts, segmenter(image)) for parts, image in zip(results, images, strict=True))


# Options


@pytest.mark.parametrize(
    "options", [{"size": {"height": 64, "width": 64}}, {"size": {"height": 64, "width": 64}, "ensure_multiple_of": 8}]
)
def test_the_working_resolution_goes_to_the_processor(segmenter, folder, options):
    image, seen = random_image(80, 40), []
    hook = segmenter.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-2:]))
    try:
        parts = segmenter(image, **options)
        segmenter(image)
    finally:
        hook.remove()
    assert seen == [(48, 88) if "ensure_multiple_of" in options else (64, 64), (32, 32)]
    assert same(parts, pipeline("part-segmentation", model=folder, **options)(image))


def test_a_size_that_does_not_fit_the_patches_is_refused(segmenter):
    with pytest.raises(ValueError, match="multiple of the patch"):
        segmenter(random_image(), size={"height": 36, "width": 32})


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.45},
        {"mask_threshold": 0.5},
        {"merge_threshold": 0.2},
        {"max_parts": 2},
        {"min_area": 500},
        {"upsample_similarities": True},
        {"threshold": None, "mask_threshold": 0.2, "merge_threshold": 0.4, "min_area": 20, "upsample_similarities": True},
    ],
    ids=str,
)
def test_options_of_parts_go_to_the_processor(segmenter, folder, options):
    image = random_image()
    with torch.no_grad():
        outputs = segmenter.model(**segmenter.image_processor(image, return_tensors="pt"))
    (expected,) = segmenter.image_processor.post_process_part_segmentation(outputs, target_sizes=[(40, 60)], **options)
    parts = segmenter(image, **options)
    assert [part["registers"] for part in parts] == [segment["registers"] for segment in expected["segments_info"]]
    for part, segment in zip(parts, expected["segments_info"], strict=True):
        assert np.array_equal(np.asarray(part["mask"]) == 255, (expected["segmentation"] == segment["id"]).numpy())
    assert not same(parts, segmenter(image)), "the option changes nothing on this image"
    assert same(parts, pipeline("part-segmentation", model=folder, **options)(image))
    assert same(parts, segmenter([image, image], batch_size=2, **options)[1])


def test_no_part_is_an_empty_list(segmenter):
    assert segmenter(random_image(), min_area=60 * 40 + 1) == []


def test_unknown_options_are_refused(segmenter, folder):
    with pytest.raises(TypeError, match=r"unknown options treshold; there are.*threshold"):
        segmenter(random_image(), treshold=0.5)
    with pytest.raises(TypeError, match="unknown options treshold"):
        pipeline("part-segmentation", model=folder, treshold=0.5)
    pipeline("part-segmentation", model=folder, local_files_only=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(segmenter, folder, dtype):
    half = pipeline("part-segmentation", model=folder, dtype=dtype, device="cpu")
    assert half.model.dtype == dtype and half.device.type == "cpu"
    for parts in half([random_image(), random_image(32, 32)], batch_size=2):
        assert sum(part["area"] for part in parts) == parts[0]["mask"].width * parts[0]["mask"].height
    assert half(random_image())[0]["score"] == pytest.approx(segmenter(random_image())[0]["score"], abs=0.1)


# Saved and loaded


def test_a_saved_pipeline_loads_again(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path)
    # The saved folder carries its code, too; where the package is installed, its own class serves without being trusted.
    again = pipeline("part-segmentation", model=str(tmp_path))
    trusted = pipeline("part-segmentation", model=str(tmp_path), trust_remote_code=True)
    assert type(trusted) is type(again)
    assert type(again) is PartSegmentationPipeline and again.image_processor.size == segmenter.image_processor.size
    assert same(again(random_image()), segmenter(random_image()))


def test_a_model_that_is_loaded_already(segmenter, folder):
    model, processor = RatsForPartSegmentation.from_pretrained(folder), RatsImageProcessor.from_pretrained(folder)
    loaded = pipeline("part-segmentation", model=model, image_processor=processor)
    direct = PartSegmentationPipeline(model=model, image_processor=processor)
    assert same(loaded(random_image()), segmenter(random_image()))
    assert same(direct(random_image()), segmenter(random_image()))


# The library's own pipelines


def test_image_segmentation(folder):
    image = random_image()
    segments = pipeline("image-segmentation", model=str(folder))(image)
    assert isinstance(segments, list) and len(segments) > 1
    assert {segment["label"] for segment in segments} <= {f"register {register}" for register in range(8)}
    assert sum(np.count_nonzero(segment["mask"]) for segment in segments) == 60 * 40
    assert all(segment["mask"].size == (60, 40) for segment in segments)


def test_image_segmentation_by_own_labels(tmp_path, make_config):
    config = make_config(initializer_range=0.3, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    segmenter = pipeline("image-segmentation", model=saved(tmp_path, RatsForPartSegmentation, config))
    for segments in segmenter([random_image(), random_image(32, 48)], batch_size=2):
        assert {segment["label"] for segment in segments} <= {"cat", "dog"} and segments


@pytest.mark.parametrize("model_class", [RatsModel, RatsForPartSegmentation])
def test_image_feature_extraction(tmp_path, make_config, model_class):
    extractor = pipeline("image-feature-extraction", model=saved(tmp_path, model_class, make_config()))
    images = [random_image(seed=0), random_image(32, 48, seed=1)]
    with torch.no_grad():
        outputs = extractor.model(**extractor.image_processor(images, return_tensors="pt"))
    assert isinstance(extractor.model, RatsModel)
    for index, image in enumerate(images):
        tokens, pooled = extractor(image), extractor(image, pool=True)
        torch.testing.assert_close(torch.tensor(tokens), outputs.last_hidden_state[index : index + 1])
        torch.testing.assert_close(torch.tensor(pooled), outputs.pooler_output[index : index + 1])
    together = extractor(images, pool=True, batch_size=2)
    torch.testing.assert_close(torch.tensor(together)[:, 0], outputs.pooler_output)


def test_image_classification(tmp_path, make_config):
    config = make_config(id2label={0: "cat", 1: "dog", 2: "bird"}, label2id={"cat": 0, "dog": 1, "bird": 2})
    classifier = pipeline("image-classification", model=saved(tmp_path, RatsForImageClassification, config))
    image = random_image()
    with torch.no_grad():
        logits = classifier.model(**classifier.image_processor(image, return_tensors="pt")).logits
    answers = classifier(image)
    assert {answer["label"]: pytest.approx(answer["score"], abs=1e-5) for answer in answers} == {
        config.id2label[index]: probability for index, probability in enumerate(logits.softmax(-1)[0].tolist())
    }
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    assert len(classifier([image] * 3, batch_size=2, top_k=1)) == 3
