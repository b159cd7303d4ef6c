"""Images per second of the crops on one core, beside the original DINO's, in one run: python -m training.benchmark_crops

Both decode the same JPEG and make 2 x 224 and 8 x 96 px views. The original's end as normalised tensors, as its loader makes
them; ours end as bytes, and the training device normalises them (`student_teacher.py`). The rounds alternate; the last line is
the median of their ratios.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from modeling_rats import RatsImageProcessor
from training.crops import MultiCrop
from training.original_crops import OriginalMultiCrop


def photograph(width: int = 500, height: int = 375, seed: int = 0) -> bytes:
    """A JPEG of smooth colours and texture, about as large on disk as a photograph of this size."""
    random = np.random.default_rng(seed)
    smooth = cv2.resize(random.integers(0, 256, (24, 32, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def fast_views(multi_crop: MultiCrop, content: bytes, random: np.random.Generator) -> list[np.ndarray]:
    return multi_crop(Image.open(io.BytesIO(content)).convert("RGB"), random)


def original_views(multi_crop: MultiCrop) -> Callable[[bytes, np.random.Generator], list[torch.Tensor]]:
    original = OriginalMultiCrop(multi_crop.views)
    mean, std = RatsImageProcessor.image_mean, RatsImageProcessor.image_std
    normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def views(content: bytes, random: np.random.Generator) -> list[torch.Tensor]:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return [normalize(transform(image)) for transform in original.transforms]

    return views


def images_per_s(views: Callable, contents: Sequence[bytes], random: np.random.Generator) -> float:
    start = time.perf_counter()
    for content in contents:
        views(content, random)
    return len(contents) / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.benchmark_crops", description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=Path, help="JPEG files; when none is given, one 500 x 375 px image made here")
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed")
    parser.add_argument("--images_per_round", type=int, default=30)
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.images_per_round < 1:
        parser.error(f"--rounds {given.rounds} and --images_per_round {given.images_per_round} must be at least 1.")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = [path.read_bytes() for path in given.images] or [photograph()]
    contents = [files[index % len(files)] for index in range(given.images_per_round)]
    multi_crop = MultiCrop(224, 96, 8)
    original = original_views(multi_crop)
    rates: dict[str, list[float]] = {"original": [], "ours": []}
    for turn in range(given.rounds + 1):  # the first warms up
        for name, views in (("original", original), ("ours", lambda *image: fast_views(multi_crop, *image))):
            rate = images_per_s(views, contents, np.random.default_rng(turn))
            rates[name] += [rate] if turn else []
    for name, values in rates.items():
        print(f"{name:9} {statistics.median(values):6.1f} images/s on one core ({min(values):.1f} to {max(values):.1f})")
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["original"], strict=True)]
    print(f"ratio {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main(sys.argv[1:])
