"""Images of any kind in, pixel values of the right size out; outputs back to maps of the right size. With both backends."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from evaluation.data_sets import decode_image
from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.image_inputs_rats import rgb_image
from modeling_rats.image_processing_pil_rats import RatsImageProcessorPil
from modeling_rats.part_maps import part_map, segment_parts

ORIENTATION = 0x0112  # the EXIF tag


def random_image(width=60, height=40, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def outputs_of(similarities, logits=None, **fields):
    return ModelOutput(similarities=similarities, logits=similarities if logits is None else logits, **fields)


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def reopened(image, file_format, **options):
    return Image.open(io.BytesIO(encoded(image, file_format, **options)))


@pytest.fixture
def similarities():
    return torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[RatsImageProcessor, RatsImageProcessorPil])
def processor_class(request):
    return request.param


# Images in


@pytest.mark.parametrize("size", [(32, 32), (48, 16), (224, 224)])
@pytest.mark.parametrize("image_size", [(60, 40), (7, 300), (32, 32), (1, 1), (1, 50)])
def test_resizes_to_exactly_size(processor_class, size, image_size):
    processor = processor_class(size={"height": size[0], "width": size[1]})
    pixel_values = processor(random_image(*image_size), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, *size) and pixel_values.dtype == torch.float32


@pytest.mark.parametrize("width, height", [(60, 40), (40, 60), (100, 100), (300, 100), (500, 375), (1000, 9), (3000, 2)])
@pytest.mark.parametrize("multiple", [8, 14, 16])
def test_ensure_multiple_of_keeps_the_aspect_ratio(processor_class, width, height, multiple):
    processor = processor_class(size={"height": 224, "width": 224}, ensure_multiple_of=multiple)
    rows, columns = processor(random_image(width, height), return_tensors="pt").pixel_values.shape[2:]
    assert rows % multiple == columns % multiple == 0 and min(rows, columns) >= multiple
    scale = (224 * 224 / (width * height)) ** 0.5
    assert abs(rows - max(height * scale, multiple)) <= multiple / 2
    assert abs(columns - max(width * scale, multiple)) <= multiple / 2


def test_ensure_multiple_of_can_be_given_with_the_call(processor_class):
    processor = processor_class(size={"height": 32, "width": 32})
    image = random_image(80, 20)
    assert processor(image, ensure_multiple_of=8, return_tensors="pt").pixel_values.shape == (1, 3, 16, 64)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)


def test_ensure_multiple_of_must_be_positive(processor_class):
    with pytest.raises(ValueError, match="ensure_multiple_of=0 must be at least 1"):
        processor_class()(random_image(), ensure_multiple_of=0)


def test_ensure_multiple_of_needs_height_and_width(processor_class):
    with pytest.raises(ValueError, match="must have height and width where ensure_multiple_of=8 is set"):
        processor_class(size={"shortest_edge": 32}, ensure_multiple_of=8)(random_image())


@pytest.mark.parametrize("multiple", [None, 8])
def test_without_resizing_the_size_stays(processor_class, multiple):
    processor = processor_class(do_resize=False, ensure_multiple_of=multiple)
    assert processor(random_image(60, 40), return_tensors="pt").pixel_values.shape == (1, 3, 40, 60)


@pytest.mark.parametrize("multiple", [None, 8])
def test_images_of_several_sizes_come_out_in_order(processor_class, multiple):
    processor = processor_class(size={"height": 32, "width": 32}, ensure_multiple_of=multiple)
    images = [random_image(80, 20), random_image(20, 80), random_image(80, 20, seed=1), random_image(32, 32)]
    together = processor(images).pixel_values
    for image, pixel_values in zip(images, together, strict=True):
        torch.testing.assert_close(torch.as_tensor(pixel_values), processor(image, return_tensors="pt").pixel_values[0])


def test_normalises_with_imagenet_mean_and_std(processor_class):
    pixel_values = processor_class(do_resize=False)(random_image(), return_tensors="pt").pixel_values[0]
    levels = torch.from_numpy(np.array(random_image())).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixel_values, (levels - mean[:, None, None]) / std[:, None, None], atol=1e-5, rtol=1e-5)


def test_resizes_as_pil_does(processor_class):
    image = random_image(100, 80)
    processor = processor_class(size={"height": 32, "width": 48}, do_normalize=False)
    resized = processor(image, return_tensors="pt").pixel_values[0].permute(1, 2, 0).numpy() * 255
    expected = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(resized - expected).max() <= 1.5


def kinds_of(image):
    """The same image as everything that a processor takes."""
    array = np.array(image)
    channels_first = np.ascontiguousarray(array.transpose(2, 0, 1))
    return {
        "PIL": image,
        "(h, w, c)": array,
        "(c, h, w)": channels_first,
        "reversed twice": array[..., ::-1].copy()[..., ::-1],  # as from OpenCV: negative strides
        "tensor (h, w, c)": torch.from_numpy(array),
        "tensor (c, h, w)": torch.from_numpy(channels_first),
        "int64": array.astype(np.int64),
        "big-endian uint16": array.astype(">u2"),
        "float32 0..255": array.astype(np.float32),
        "float16 tensor": torch.from_numpy(array).half(),
    }


@pytest.mark.parametrize("kind", kinds_of(random_image()))
def test_every_kind_of_image_gives_the_same_pixel_values(processor_class, kind):
    processor = processor_class(do_resize=False)
    expected = processor(random_image(), return_tensors="pt").pixel_values
    given = kinds_of(random_image())[kind]
    torch.testing.assert_close(processor(given, return_tensors="pt").pixel_values, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("as_tensors", [False, True])
def test_floats_are_resized_as_floats(processor_class, as_tensors):
    """As torch interpolates them: neither rounded to 8 bits nor clipped, whether they reach to 1 or to 255."""
    processor = processor_class(size={"height": 24, "width": 28}, do_rescale=False, do_normalize=False)
    levels = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(levels[None], (24, 28), mode="bicubic", antialias=True)
    for scale in (1, 200):
        image = levels * scale if as_tensors else (levels * scale).permute(1, 2, 0).numpy().astype(np.float64)
        pixel_values = processor(image, return_tensors="pt").pixel_values
        assert pixel_values.dtype == torch.float32
        torch.testing.assert_close(pixel_values / scale, expected, atol=1e-5, rtol=0)


def test_lists_and_batches_hold_one_image_each(processor_class):
    processor = processor_class(size={"height": 16, "width": 16})
    images = [random_image(seed=seed) for seed in range(3)]
    expected = processor(images, return_tensors="pt").pixel_values
    assert expected.shape == (3, 3, 16, 16) and not torch.equal(expected[0], expected[1])
    arrays = np.stack([np.array(image) for image in images])
    for batch in (tuple(images), [images], arrays, torch.from_numpy(arrays), [*arrays], [images[0], arrays[1], images[2]]):
        assert torch.equal(processor(batch, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 1), (1, 1, 1), (1, 1, 4), (4, 1, 1)])
def test_arrays_of_one_pixel(processor_class, shape):
    """A pixel of (10, 20, 30), grey 10 and, at full opacity, the same again: no channel is taken for a pixel."""
    array = np.array([10, 20, 30, 255][: max(shape)], np.uint8).reshape(shape)
    processor = processor_class(size={"height": 4, "width": 4}, do_rescale=False, do_normalize=False)
    expected = torch.tensor([10.0, 20.0, 30.0] if max(shape) > 1 else [10.0] * 3)[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(processor(array, return_tensors="pt").pixel_values[0].float(), expected)


def test_input_data_format_decides_between_two_readings(processor_class):
    processor = processor_class(do_resize=False)
    array = np.zeros((3, 5, 3), np.uint8)
    assert processor(array, return_tensors="pt").pixel_values.shape == (1, 3, 5, 3)
    last = processor(array, input_data_format="channels_last", return_tensors="pt").pixel_values
    assert last.shape == (1, 3, 3, 5)


def test_other_numbers_of_channels_can_be_kept(processor_class):
    processor = processor_class(image_mean=[0.0] * 5, image_std=[1.0] * 5, size={"height": 8, "width": 8})
    array = np.ones((40, 60, 5), np.float32)
    options = {"do_convert_rgb": False, "input_data_format": "channels_last", "return_tensors": "pt"}
    assert processor(array, **options).pixel_values.shape == (1, 5, 8, 8)


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "images is empty"),
        ([[]], "images is empty"),
        (np.zeros((0, 4, 4, 3), np.uint8), "images is empty"),
        (np.zeros((4, 4), np.uint8), r"the first is a ndarray of shape \(4, 4\)"),
        ([np.zeros((4, 4), np.uint8)], r"the first is a ndarray of shape \(4, 4\)"),
        ([random_image(), np.zeros((4, 4), np.uint8)], r"images\[1\]: an array of shape \(4, 4\) must be \(height, width"),
        (np.zeros((5, 6, 2), np.uint8), r"images\[0\]: an array of shape \(5, 6, 2\) must have 1, 3 or 4 channels"),
        ([random_image(), torch.zeros(5, 8, 8)], r"images\[1\]: an array of shape \(5, 8, 8\) must have 1, 3 or 4"),
        ([random_image(), Image.new("RGB", (0, 5))], r"images\[1\]: the image is 5 x 0 \(height x width\)"),
        (np.zeros((0, 5, 3), np.uint8), r"images\[0\]: the image is 0 x 5"),
        (torch.zeros(3, 7, 0), r"images\[0\]: the image is 7 x 0"),
        ([random_image(), np.full((4, 4, 3), np.nan)], r"images\[1\]: the image has pixels that are nan or infinite"),
        (np.full((4, 4, 3), -np.inf), r"images\[0\]: the image has pixels that are nan"),
        (torch.full((3, 4, 4), torch.inf, dtype=torch.bfloat16), r"images\[0\]: the image has pixels that are nan"),
        ([Image.fromarray(np.full((4, 4), np.nan, np.float32))], r'images\[0\]: the image of mode "F" has pixels that are nan'),
        (np.full((4, 4, 4), 2.0), r"images\[0\]: .*outside the range \[0, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(processor_class, images, message):
    with pytest.raises(ValueError, match=message):
        processor_class(size={"height": 8, "width": 8})(images)


def test_channels_that_cannot_be_rgb_are_refused_where_the_layout_is_given(processor_class):
    with pytest.raises(ValueError, match=r"has 5 channels \(channels_last\); 1, 3 or 4 can be converted"):
        processor_class()(np.zeros((4, 4, 5), np.uint8), input_data_format="channels_last")


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf])
def test_one_such_pixel_in_a_large_image_is_found(processor_class, pixel):
    image = np.random.default_rng(0).random((40, 60, 3))
    image[17, 31, 2] = pixel
    with pytest.raises(ValueError, match="nan or infinite"):
        processor_class()(image)


def test_paths_are_opened_as_pil_opens_them(processor_class, tmp_path):
    levels = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    random_image(mode="RGBA").save(tmp_path / "transparent.png")
    paths = [str(tmp_path / "grey.png"), str(tmp_path / "transparent.png")]
    processor = processor_class(size={"height": 16, "width": 16})
    expected = processor([Image.open(path) for path in paths], return_tensors="pt").pixel_values
    assert torch.equal(processor(paths, return_tensors="pt").pixel_values, expected)
    assert expected[0].std() > 0.5


def test_settings_survive_saving(processor_class, tmp_path):
    processor_class(size={"height": 32, "width": 48}, ensure_multiple_of=16).save_pretrained(tmp_path)
    for loaded_class in (RatsImageProcessor, RatsImageProcessorPil):
        loaded = loaded_class.from_pretrained(tmp_path)
        assert (loaded.size.height, loaded.size.width, loaded.ensure_multiple_of) == (32, 48, 16)


# Modes


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK", "YCbCr", "PA", "RGBX", "RGBa", "RGB"])
def test_modes_without_transparent_pixels_are_as_pil_converts_them(processor_class, mode):
    image = random_image(mode="RGBA" if mode in ("PA", "RGBa") else "RGB").convert(mode)
    processor = processor_class(size={"height": 32, "width": 32})
    expected = image.convert("RGBA").convert("RGB") if mode == "RGBa" else image.convert("RGB")
    assert rgb_image(image).mode == "RGB" and np.array_equal(rgb_image(image), expected)
    pixel_values = processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, processor(expected, return_tensors="pt").pixel_values)


def transparent_images():
    """A row of a half transparent red pixel, a transparent one and an opaque one, in every way of being transparent."""
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(200, 40, 80, 128), (200, 40, 80, 0), (200, 40, 80, 255)])
    palette = Image.new("P", (3, 1))
    palette.putpalette([200, 40, 80, 200, 40, 80, 200, 40, 80])
    palette.putdata([0, 1, 2])
    alphas = palette.copy()
    alphas.info["transparency"] = bytes([128, 0, 255])
    one_color = palette.copy()
    one_color.info["transparency"] = 1
    return {
        "RGBA": (rgba, [128, 0, 255]),
        "premultiplied": (rgba.convert("RGBa"), [128, 0, 255]),
        "P with alphas": (reopened(alphas, "PNG"), [128, 0, 255]),
        "P with a transparent color": (reopened(one_color, "PNG"), [255, 0, 255]),
    }


@pytest.mark.parametrize("kind", transparent_images())
def test_transparency_is_laid_on_white(kind):
    image, alphas = transparent_images()[kind]
    expected = [[level * alpha / 255 + 255 - alpha for level in (200, 40, 80)] for alpha in alphas]
    assert np.abs(np.asarray(rgb_image(image))[0] - np.array(expected)).max() <= 2
    if image.mode != "RGBa":  # which transformers does not know
        assert np.array_equal(rgb_image(image), convert_to_rgb(image, return_numpy=True))


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_grey_with_transparency_is_laid_on_white(mode):
    image = Image.new("LA", (2, 1))
    image.putdata([(100, 0), (100, 255)])
    assert np.asarray(rgb_image(image.convert(mode)))[..., 0].tolist() == [[255, 100]]


def test_a_transparent_grey_or_color_without_a_palette():
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 8])
    assert np.asarray(rgb_image(reopened(grey, "PNG", transparency=7)))[0].tolist() == [[255] * 3, [8] * 3]
    color = Image.new("RGB", (2, 1))
    color.putdata([(1, 2, 3), (1, 2, 4)])
    assert np.asarray(rgb_image(reopened(color, "PNG", transparency=(1, 2, 3))))[0].tolist() == [[255] * 3, [1, 2, 4]]


def levels_in(mode, levels):
    """All 256 grey levels, (16, 16), in a mode of more than 8 bits."""
    return {
        "I;16": lambda: Image.fromarray((levels * 257).astype(np.uint16)),
        "I;16 PNG": lambda: reopened(Image.fromarray((levels * 257).astype(np.uint16)), "PNG"),
        "I;16 TIFF": lambda: reopened(Image.fromarray((levels * 257).astype(np.uint16)), "TIFF"),
        "I;16B": lambda: Image.frombytes("I;16B", (16, 16), (levels * 257).astype(">u2").tobytes()),
        "I of 16 bits": lambda: Image.fromarray((levels * 257).astype(np.int32)),
        "I of 8 bits": lambda: Image.fromarray(levels.astype(np.int32)),
        "F up to 255": lambda: Image.fromarray(levels.astype(np.float32)),
        "F up to 1": lambda: Image.fromarray((levels / 255).astype(np.float32)),
    }[mode]()


@pytest.mark.parametrize(
    "mode", ["I;16", "I;16 PNG", "I;16 TIFF", "I;16B", "I of 16 bits", "I of 8 bits", "F up to 255", "F up to 1"]
)
def test_more_than_eight_bits_are_scaled_to_eight(processor_class, mode):
    levels = np.arange(256).reshape(16, 16)
    image = levels_in(mode, levels)
    assert image.mode == mode.split()[0]
    assert np.array_equal(rgb_image(image), np.stack([levels] * 3, axis=-1))
    pixel_values = processor_class(do_resize=False, do_rescale=False, do_normalize=False)(
        image, return_tensors="pt"
    ).pixel_values
    assert pixel_values[0, 2].tolist() == levels.tolist()


@pytest.mark.parametrize(
    "pixels, expected",
    [
        (np.array([[0, 128, 129, 65535]], np.uint16), [0, 0, 1, 255]),  # 128 / 257 is just below a half
        (np.array([[-5, 70_000, 257, 0]], np.int32), [0, 255, 1, 0]),
        (np.array([[-5, 0, 1, 255]], np.int32), [0, 0, 1, 255]),
        (np.array([[0, 1, 255, 256]], np.int32), [0, 0, 1, 1]),
        (np.array([[-0.5, 0.0, 0.5, 1.0]], np.float32), [0, 0, 128, 255]),
        (np.array([[-0.5, 0.6, 300.0, 1.5]], np.float32), [0, 1, 255, 2]),
    ],
)
def test_levels_outside_are_clipped(pixels, expected):
    assert np.asarray(rgb_image(Image.fromarray(pixels)))[0, :, 0].tolist() == expected


def test_the_image_given_is_left_as_it_is():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = reopened(random_image(mode="L"), "PNG", exif=exif)
    before = np.array(image)
    rgb_image(image)
    assert image.mode == "L" and image.getexif()[ORIENTATION] == 6 and np.array_equal(image, before)


# Orientation


TURNS = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # to PIL's transpositions, from the table of the EXIF standard


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(processor_class, file_format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(random_image(), file_format, exif=exif)
    stored = Image.open(io.BytesIO(encoded(random_image(), file_format)))
    upright = stored.copy() if TURNS[orientation] is None else stored.transpose(Image.Transpose(TURNS[orientation]))
    assert np.array_equal(rgb_image(Image.open(io.BytesIO(data))), upright)
    for do_convert_rgb in (True, False):
        processor = processor_class(do_resize=False, do_convert_rgb=do_convert_rgb)
        pixel_values = processor(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values
        assert torch.equal(pixel_values, processor(upright, return_tensors="pt").pixel_values)


def test_sixteen_bits_are_turned_too():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = reopened(Image.fromarray(np.array([[0, 65535]], np.uint16)), "PNG", exif=exif)
    assert np.asarray(rgb_image(image))[..., 0].tolist() == [[0], [255]]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0" + struct.pack("<I", 8) + b"\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_passed_over(exif):
    image = reopened(random_image(), "JPEG", exif=exif)
    assert np.array_equal(rgb_image(image), reopened(random_image(), "JPEG"))


def test_a_truncated_image_is_not_passed_over():
    with pytest.raises(OSError):
        rgb_image(Image.open(io.BytesIO(encoded(random_image(), "PNG")[:-600])))


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "CMYK", "L"])
def test_data_sets_are_decoded_as_the_processor_does(mode):
    image = (
        Image.fromarray(np.arange(2400).reshape(40, 60).astype(np.uint16) * 20) if mode == "I;16" else random_image(mode=mode)
    )
    if mode == "RGBA":
        image.putalpha(100)
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    decoded = decode_image({"bytes": data, "path": None})
    assert decoded.size == (40, 60) and np.array_equal(decoded, rgb_image(Image.open(io.BytesIO(data))))


# Outputs back


@pytest.mark.parametrize("target_sizes", [None, [(30, 41), (7, 5)]])
def test_part_segmentation_gives_each_image_its_size(processor_class, similarities, target_sizes):
    results = processor_class().post_process_part_segmentation(outputs_of(similarities), target_sizes)
    assert len(results) == 2
    for index, result in enumerate(results):
        size = target_sizes[index] if target_sizes else (3, 4)
        assert result["segmentation"].shape == size
        assert torch.equal(result["segmentation"], part_map(similarities[index], size))
        assert sum(segment["area"] for segment in result["segments_info"]) == size[0] * size[1]
        assert {segment["id"] for segment in result["segments_info"]} == set(result["segmentation"].unique().tolist())


PART_OPTIONS = {
    "threshold": 0.7,
    "mask_threshold": 0.6,
    "merge_threshold": 0.1,
    "max_parts": 4,
    "min_area": 60,
    "upsample_similarities": True,
}


@pytest.mark.parametrize("names", [[], *([name] for name in PART_OPTIONS), list(PART_OPTIONS)], ids=str)
def test_each_option_goes_to_the_parts_of_each_image(processor_class, similarities, names):
    options = {name: PART_OPTIONS[name] for name in names}
    sizes = [(20, 24), (16, 18)]
    results = processor_class().post_process_part_segmentation(outputs_of(similarities), sizes, **options)
    plain = processor_class().post_process_part_segmentation(outputs_of(similarities), sizes)
    for one, size, result in zip(similarities, sizes, results, strict=True):
        segmentation, segments = segment_parts(one, size, **options)
        assert torch.equal(result["segmentation"], segmentation) and result["segments_info"] == segments
    changed = any(not torch.equal(a["segmentation"], b["segmentation"]) for a, b in zip(results, plain, strict=True))
    assert changed == bool(names)  # or the option would not be tested


@pytest.mark.parametrize("heads", [None, torch.tensor([[0, 0, 1, 1, 2], [5, 6, 7, 8, 9]])])
def test_segments_name_the_head_of_their_register(processor_class, similarities, heads):
    outputs = outputs_of(similarities, register_heads=heads)
    results = processor_class().post_process_part_segmentation(outputs)
    for index, result in enumerate(results):
        for segment in result["segments_info"]:
            assert segment["head"] == (None if heads is None else heads[index, segment["register"]].item())


def test_a_list_of_similarities_will_do(processor_class, similarities):
    """Images of several shapes have no batch to be in."""
    outputs = outputs_of([similarities[0], similarities[1, :, :2]])
    results = processor_class().post_process_part_segmentation(outputs)
    assert [tuple(result["segmentation"].shape) for result in results] == [(3, 4), (2, 4)]


def test_semantic_segmentation_reads_the_logits(processor_class, similarities):
    logits = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    maps = processor_class().post_process_semantic_segmentation(outputs_of(similarities, logits))
    for image in range(2):
        for row in range(3):
            for column in range(4):
                scores = logits[image, :, row, column].tolist()
                assert maps[image][row, column] == scores.index(max(scores))


def test_semantic_segmentation_interpolates_the_logits(processor_class):
    logits = torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]])  # two labels on one row of two patches
    (label_map,) = processor_class().post_process_semantic_segmentation(outputs_of(logits), [(2, 8)])
    # Label 0 leads by 3, 3, 2.5, 1.5, 0.5, -0.5, -1, -1: its stronger score carries it beyond the middle.
    assert label_map.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]] * 2


@pytest.mark.parametrize("target_sizes", [None, [(30, 41), (7, 5)]])
def test_semantic_segmentation_gives_scores_as_in_transformers(processor_class, similarities, target_sizes):
    processor, outputs = processor_class(), outputs_of(similarities)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes)
    results = processor.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True)
    for index, (label_map, result) in enumerate(zip(maps, results, strict=True)):
        size = target_sizes[index] if target_sizes else (3, 4)
        expected = torch.nn.functional.interpolate(similarities[index : index + 1], size=size, mode="bilinear")[0]
        torch.testing.assert_close(result.segmentation_scores, expected)
        assert torch.equal(result.segmentation, label_map) and torch.equal(label_map, expected.argmax(dim=0))


METHODS = ["post_process_part_segmentation", "post_process_semantic_segmentation"]


@pytest.mark.parametrize("sizes_as", [list, torch.tensor, np.array])
@pytest.mark.parametrize("name", METHODS)
def test_target_sizes_may_be_tensors(processor_class, similarities, name, sizes_as):
    results = getattr(processor_class(), name)(outputs_of(similarities), sizes_as([(6, 8), (9, 4)]))
    maps = [result["segmentation"] if isinstance(result, dict) else result for result in results]
    assert [tuple(one.shape) for one in maps] == [(6, 8), (9, 4)]


@pytest.mark.parametrize(
    "target_sizes, message",
    [
        ([(8, 8)] * 3, "target_sizes has 3 entries for a batch of 2"),
        ((8, 8), r"target_sizes\[0\]=8 must be two positive integers"),
        ([(8, 8), (8, 0)], r"target_sizes\[1\]=\(8, 0\) must be two positive integers"),
        ([(8, 8), (-8, 8)], r"target_sizes\[1\]=\(-8, 8\)"),
        ([(8, 8.5), (8, 8)], r"target_sizes\[0\]=\(8, 8.5\)"),
        ([(8, 8, 3), (8, 8, 3)], r"target_sizes\[0\]=\(8, 8, 3\)"),
        (torch.tensor([[8.0, 8.0], [8.0, 8.0]]), r"target_sizes\[0\]=tensor\(\[8., 8.\]\)"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_wrong_target_sizes_are_refused(processor_class, similarities, name, target_sizes, message):
    with pytest.raises(ValueError, match=message):
        getattr(processor_class(), name)(outputs_of(similarities), target_sizes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 1.5}, r"threshold=1.5 must lie in \[-1, 1\]"),
        ({"mask_threshold": -2}, "mask_threshold=-2 must lie"),
        ({"merge_threshold": float("nan")}, "merge_threshold=nan must lie"),
        ({"max_parts": 0}, "max_parts=0 must be at least 1 part"),
        ({"min_area": -1}, "min_area=-1 must be 0 or more pixels"),
    ],
)
def test_options_out_of_range_are_refused(processor_class, similarities, options, message):
    with pytest.raises(ValueError, match=message):
        processor_class().post_process_part_segmentation(outputs_of(similarities), **options)


@pytest.mark.parametrize("name, field", [(METHODS[0], "similarities"), (METHODS[1], "logits")])
def test_outputs_of_other_models_are_refused(processor_class, name, field):
    with pytest.raises(ValueError, match=f"BaseModelOutput has no {field};.*RatsForPartSegmentation"):
        getattr(processor_class(), name)(BaseModelOutput(last_hidden_state=torch.zeros(1, 4, 8)))


def test_from_image_to_parts(processor_class, make_config):
    config: RatsConfig = make_config()
    processor = processor_class(size={"height": 32, "width": 32}, ensure_multiple_of=config.patch_size)
    image = random_image(90, 30)
    with torch.no_grad():
        outputs = RatsForPartSegmentation(config).eval()(**processor(image, return_tensors="pt"))
    (result,) = processor.post_process_part_segmentation(outputs, [(image.height, image.width)])
    assert result["segmentation"].shape == (30, 90)
    assert sum(segment["area"] for segment in result["segments_info"]) == 2700


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["part", "semantic"])
def test_maps_that_are_not_finite_are_refused(processor_class, similarities, name, bad):
    similarities[1, 2, 0, 3] = bad
    post_process = getattr(processor_class(), f"post_process_{name}_segmentation")
    with pytest.raises(ValueError, match=r"(similarities|logits) of image 1 are not all finite; its pixel values hold nan"):
        post_process(outputs_of(similarities))
