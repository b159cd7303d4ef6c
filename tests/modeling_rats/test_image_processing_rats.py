"""Images of any kind in, pixel values of the right size out; outputs back to maps of the right size."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import ModelOutput

from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.part_maps import part_map


def random_image(width=60, height=40, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def outputs_of(similarities, logits=None):
    return ModelOutput(similarities=similarities, logits=similarities if logits is None else logits)


@pytest.fixture
def similarities():
    return torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))


# Images in


@pytest.mark.parametrize("size", [(32, 32), (48, 16), (224, 224)])
@pytest.mark.parametrize("image_size", [(60, 40), (7, 300), (32, 32)])
def test_resizes_to_exactly_size(size, image_size):
    processor = RatsImageProcessor(size={"height": size[0], "width": size[1]})
    pixel_values = processor(random_image(*image_size), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, *size) and pixel_values.dtype == torch.float32


@pytest.mark.parametrize("width, height", [(60, 40), (40, 60), (100, 100), (300, 100), (500, 375), (1000, 9), (3000, 2)])
@pytest.mark.parametrize("multiple", [8, 14, 16])
def test_ensure_multiple_of_keeps_the_aspect_ratio(width, height, multiple):
    processor = RatsImageProcessor(size={"height": 224, "width": 224}, ensure_multiple_of=multiple)
    rows, columns = processor(random_image(width, height), return_tensors="pt").pixel_values.shape[2:]
    assert rows % multiple == columns % multiple == 0 and min(rows, columns) >= multiple
    scale = (224 * 224 / (width * height)) ** 0.5
    assert abs(rows - max(height * scale, multiple)) <= multiple / 2
    assert abs(columns - max(width * scale, multiple)) <= multiple / 2


def test_ensure_multiple_of_can_be_given_with_the_call():
    processor = RatsImageProcessor(size={"height": 32, "width": 32})
    image = random_image(80, 20)
    assert processor(image, ensure_multiple_of=8, return_tensors="pt").pixel_values.shape == (1, 3, 16, 64)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("multiple", [None, 8])
def test_without_resizing_the_size_stays(multiple):
    processor = RatsImageProcessor(do_resize=False, ensure_multiple_of=multiple)
    assert processor(random_image(60, 40), return_tensors="pt").pixel_values.shape == (1, 3, 40, 60)


def test_images_of_several_sizes_come_out_in_order():
    processor = RatsImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=8)
    images = [random_image(80, 20), random_image(20, 80), random_image(80, 20, seed=1), random_image(32, 32)]
    together = processor(images).pixel_values
    for image, pixel_values in zip(images, together, strict=True):
        torch.testing.assert_close(torch.as_tensor(pixel_values), processor(image, return_tensors="pt").pixel_values[0])


def test_normalises_with_imagenet_mean_and_std():
    pixel_values = RatsImageProcessor(do_resize=False)(random_image(), return_tensors="pt").pixel_values[0]
    levels = torch.from_numpy(np.array(random_image())).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixel_values, (levels - mean[:, None, None]) / std[:, None, None], atol=1e-5, rtol=1e-5)


def test_resizes_as_pil_does():
    image = random_image(100, 80)
    processor = RatsImageProcessor(size={"height": 32, "width": 48}, do_normalize=False)
    resized = processor(image, return_tensors="pt").pixel_values[0].permute(1, 2, 0).numpy() * 255
    expected = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(resized - expected).max() <= 1.5


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK", "RGB"])
def test_takes_images_of_any_mode(mode):
    image = random_image(mode=mode)
    processor = RatsImageProcessor(size={"height": 32, "width": 32})
    pixel_values = processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, processor(image.convert("RGB"), return_tensors="pt").pixel_values)


def test_settings_survive_saving(tmp_path):
    RatsImageProcessor(size={"height": 32, "width": 48}, ensure_multiple_of=16).save_pretrained(tmp_path)
    loaded = RatsImageProcessor.from_pretrained(tmp_path)
    assert (loaded.size.height, loaded.size.width, loaded.ensure_multiple_of) == (32, 48, 16)


# Outputs back


@pytest.mark.parametrize("target_sizes", [None, [(30, 41), (7, 5)]])
def test_part_segmentation_gives_each_image_its_size(similarities, target_sizes):
    results = RatsImageProcessor().post_process_part_segmentation(outputs_of(similarities), target_sizes)
    assert len(results) == 2
    for index, result in enumerate(results):
        size = target_sizes[index] if target_sizes else (3, 4)
        assert result["segmentation"].shape == size
        assert torch.equal(result["segmentation"], part_map(similarities[index], size))
        assert sum(segment["area"] for segment in result["segments_info"]) == size[0] * size[1]
        assert {segment["id"] for segment in result["segments_info"]} == set(result["segmentation"].unique().tolist())


def test_semantic_segmentation_reads_the_logits(similarities):
    logits = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    maps = RatsImageProcessor().post_process_semantic_segmentation(outputs_of(similarities, logits))
    for image in range(2):
        for row in range(3):
            for column in range(4):
                scores = logits[image, :, row, column].tolist()
                assert maps[image][row, column] == scores.index(max(scores))


def test_semantic_segmentation_interpolates_the_logits():
    logits = torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]])  # two labels on one row of two patches
    (label_map,) = RatsImageProcessor().post_process_semantic_segmentation(outputs_of(logits), [(2, 8)])
    # Label 0 leads by 3, 3, 2.5, 1.5, 0.5, -0.5, -1, -1: its stronger score carries it beyond the middle.
    assert label_map.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]] * 2


@pytest.mark.parametrize("sizes_as", [list, torch.tensor, np.array])
@pytest.mark.parametrize("name", ["post_process_part_segmentation", "post_process_semantic_segmentation"])
def test_target_sizes_may_be_tensors(similarities, name, sizes_as):
    results = getattr(RatsImageProcessor(), name)(outputs_of(similarities), sizes_as([(6, 8), (9, 4)]))
    maps = [result["segmentation"] if isinstance(result, dict) else result for result in results]
    assert [tuple(one.shape) for one in maps] == [(6, 8), (9, 4)]


@pytest.mark.parametrize("name", ["post_process_part_segmentation", "post_process_semantic_segmentation"])
def test_a_wrong_number_of_target_sizes_is_refused(similarities, name):
    with pytest.raises(ValueError, match="target_sizes has 3 entries for a batch of 2"):
        getattr(RatsImageProcessor(), name)(outputs_of(similarities), [(8, 8)] * 3)


def test_from_image_to_parts(make_config):
    config: RatsConfig = make_config()
    processor = RatsImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=config.patch_size)
    image = random_image(90, 30)
    with torch.no_grad():
        outputs = RatsForPartSegmentation(config).eval()(**processor(image, return_tensors="pt"))
    (result,) = processor.post_process_part_segmentation(outputs, [(image.height, image.width)])
    assert result["segmentation"].shape == (30, 90)
    assert sum(segment["area"] for segment in result["segments_info"]) == 2700
