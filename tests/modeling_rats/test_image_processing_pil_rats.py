"""The processor without torchvision: that it needs none, and that it agrees with the one that has it."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rats import RatsImageProcessor
from modeling_rats.image_processing_pil_rats import RatsImageProcessorPil

SHAPES = [(60, 40), (500, 375), (1, 1), (33, 1), (640, 480), (1000, 9)]  # width, height


def noise(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def levels_of_both(image, **options):
    processors = [one(do_normalize=False, **options) for one in (RatsImageProcessor, RatsImageProcessorPil)]
    return [processor(image, return_tensors="pt").pixel_values * 255 for processor in processors]


@pytest.mark.parametrize("width, height", SHAPES)
@pytest.mark.parametrize("size, multiple", [(32, None), (224, None), (448, None), (224, 14)])
def test_both_backends_agree_on_images(width, height, size, multiple):
    """Measured on noise, the worst case: at most 2 of 255 levels apart, 0.011 on average. Both round to 8 bits after each
    of two passes. Where an image is far narrower than high (7 x 300) they take the passes in another order: 18 and 0.41."""
    options = {"size": {"height": size, "width": size}, "ensure_multiple_of": multiple}
    torchvision, pil = levels_of_both(Image.fromarray(noise(width, height)), **options)
    assert torchvision.shape == pil.shape and torchvision.dtype == pil.dtype == torch.float32
    differences = (torchvision - pil).abs()
    assert differences.max() < 2.01 and differences.mean() < 0.015


@pytest.mark.parametrize("width, height", [*SHAPES, (7, 300)])
def test_both_backends_agree_on_floats(width, height):
    """Measured on noise: at most 0.02 levels apart, without any rounding to 8 bits."""
    torchvision, pil = levels_of_both(noise(width, height) * np.float32(0.97))
    assert (torchvision - pil).abs().max() < 0.03


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK", "I;16", "I", "F"])
def test_both_backends_agree_on_every_mode(mode):
    image = Image.fromarray(noise(60, 40)).convert(mode if mode in ("L", "RGBA", "P", "LA", "1", "CMYK") else "L")
    if image.mode == "RGBA":
        image.putalpha(Image.fromarray(noise(60, 40)[..., 0]))
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(np.asarray(image).astype(dtype) * (1 if mode == "F" else 257))
    torchvision, pil = levels_of_both(image)
    assert image.mode == mode and (torchvision - pil).abs().max() < 2.01


@pytest.mark.parametrize("resample", ["BILINEAR", "BICUBIC", "LANCZOS"])
def test_both_backends_know_the_same_filters(resample):
    image = noise(60, 40) * np.float32(0.97)
    torchvision, pil = levels_of_both(image, resample=Image.Resampling[resample], size={"height": 90, "width": 30})
    assert (torchvision - pil).abs().max() < 0.03


@pytest.mark.parametrize("size, expected", [({"shortest_edge": 20}, (20, 30)), ({"max_height": 30, "max_width": 30}, (20, 30))])
def test_other_kinds_of_size_are_those_of_transformers(size, expected):
    for image in (noise(60, 40), noise(60, 40) / np.float32(255)):
        assert RatsImageProcessorPil(size=size)(image, return_tensors="pt").pixel_values.shape[2:] == expected


def test_runs_without_torchvision(tmp_path):
    """In a process of its own, where every import of torchvision fails, as where it is not installed."""
    np.save(tmp_path / "image.npy", noise(60, 40))
    script = """
        import sys
        from importlib.abc import MetaPathFinder

        class NoTorchvision(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "torchvision":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, NoTorchvision())
        sys.modules["torchvision"] = None

        import numpy as np
        import torch
        from PIL import Image
        from modeling_rats.image_processing_pil_rats import RatsImageProcessorPil
        from transformers.utils import ModelOutput, is_torchvision_available

        assert not is_torchvision_available()
        processor = RatsImageProcessorPil(size={"height": 32, "width": 32}, ensure_multiple_of=8)
        image = Image.fromarray(np.load("image.npy"))
        np.save("pixel_values.npy", processor(image, return_tensors="np").pixel_values)
        similarities = torch.rand(1, 4, 3, 3)
        (result,) = processor.post_process_part_segmentation(ModelOutput(similarities=similarities), [(6, 6)])
        assert result["segmentation"].shape == (6, 6)
        assert not [name for name, module in sys.modules.items() if name.startswith("torchvision") and module]
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    processor = RatsImageProcessorPil(size={"height": 32, "width": 32}, ensure_multiple_of=8)
    expected = processor(noise(60, 40), return_tensors="np").pixel_values
    assert np.array_equal(np.load(tmp_path / "pixel_values.npy"), expected)


def test_is_saved_under_the_name_that_both_backends_share(tmp_path):
    RatsImageProcessorPil().save_pretrained(tmp_path)
    assert '"image_processor_type": "RatsImageProcessor"' in (tmp_path / "preprocessor_config.json").read_text()
