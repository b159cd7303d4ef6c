"""Multi-crop augmentation (arXiv 2006.09882) as DINO composes it (dino/main_dino.py, DataAugmentationDINO).

Images and views are uint8, (height, width, 3); normalisation happens on the training device. torch cuts and resizes, with the
antialiased bicubic filter of PIL on bytes; OpenCV changes colours and blurs. The tests bound how far both are from PIL, and
`training/benchmark_crops.py` measures what it saves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

cv2.setNumThreads(1)  # a loader worker is one of several processes


@dataclass(frozen=True)
class ViewSettings:
    """How one view is made. Defaults are DINO's.

    Attributes:
        size_px: Side of the square view.
        scale: Range of the share of the image's area that it covers.
        blur: Probability of a blur.
        solarize: Probability of a solarisation.
        blur_sigma_px: Range of the blur's standard deviation.
        jitter: Strengths of brightness, contrast, saturation and hue jitter (torchvision, ColorJitter).
        jitter_probability: Probability of the jitter.
        grayscale: Probability of grayscale.
        flip: Probability of a horizontal flip.
    """

    size_px: int
    scale: Sequence[float]
    blur: float
    solarize: float
    blur_sigma_px: Sequence[float] = (0.1, 2.0)
    jitter: Sequence[float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    flip: float = 0.5


class Crops:
    """Cuts one image into views.

    Args:
        views: How each is made.
    """

    def __init__(self, views: Sequence[ViewSettings]):
        self.views = list(views)

    def __call__(self, image: Image.Image, random: np.random.Generator) -> list[np.ndarray]:
        """The views of an RGB image, each uint8, (size, size, 3)."""
        pixels = np.array(image)  # once for all views
        return [make_view(pixels, settings, random) for settings in self.views]


class MultiCrop(Crops):
    """Cuts one image into two global views and some local ones, global ones first.

    Args:
        global_size_px: Side of the square global views.
        local_size_px: Side of the square local views.
        num_local_views: How many local views.
        global_scale: Range of the share of the image's area that a global view covers (DINO: 0.4 to 1).
        local_scale: The same for local views (DINO: 0.05 to 0.4).
        **settings: Fields of `ViewSettings` that all views share, where they differ from DINO's.
    """

    def __init__(
        self,
        global_size_px: int,
        local_size_px: int,
        num_local_views: int,
        global_scale: Sequence[float] = (0.4, 1.0),
        local_scale: Sequence[float] = (0.05, 0.4),
        **settings,
    ):
        # Blur 1.0, 0.1, 0.5 and solarisation 0.2 on the second global view are DINO's.
        super().__init__(
            [
                ViewSettings(global_size_px, global_scale, blur=1.0, solarize=0.0, **settings),
                ViewSettings(global_size_px, global_scale, blur=0.1, solarize=0.2, **settings),
                *[ViewSettings(local_size_px, local_scale, blur=0.5, solarize=0.0, **settings)] * num_local_views,
            ]
        )


def make_view(pixels: np.ndarray, settings: ViewSettings, random: np.random.Generator) -> np.ndarray:
    """One view: crop and resize, flip, colour jitter, grayscale, blur, solarisation, in DINO's order."""
    height, width, _ = pixels.shape
    view = resized_crop(pixels, random_box(width, height, settings.scale, random), settings.size_px)
    if random.random() < settings.flip:
        view = cv2.flip(view, 1)
    if random.random() < settings.jitter_probability:
        view = jitter_colors(view, settings.jitter, random)
    if random.random() < settings.grayscale:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if random.random() < settings.blur:
        view = cv2.GaussianBlur(view, (0, 0), sigmaX=random.uniform(settings.blur_sigma_px[0], settings.blur_sigma_px[1]))
    if random.random() < settings.solarize:
        view = np.where(view >= 128, 255 - view, view).astype(np.uint8)
    return view


def resized_crop(pixels: np.ndarray, box: tuple[int, int, int, int], size_px: int) -> np.ndarray:
    """A box, x0, y0, x1, y1 in pixels, of an image as a square of `size_px`, by antialiased bicubic interpolation."""
    x0, y0, x1, y1 = box
    cut = torch.from_numpy(pixels[y0:y1, x0:x1]).permute(2, 0, 1).unsqueeze(0)  # (1, 3, height, width), channels last in memory
    view = torch.nn.functional.interpolate(cut, size=(size_px, size_px), mode="bicubic", antialias=True)
    return cv2.merge([channel.numpy() for channel in view[0]])  # (size, size, 3); a transposing copy takes ten times longer


def random_box(width: int, height: int, scale: Sequence[float], random: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of random area and aspect ratio 3/4 to 4/3 (torchvision, RandomResizedCrop): x0, y0, x1, y1 in pixels."""
    for _ in range(10):
        area = width * height * random.uniform(scale[0], scale[1])
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            x, y = int(random.integers(width - box_width + 1)), int(random.integers(height - box_height + 1))
            return x, y, x + box_width, y + box_height
    # The image is too elongated for the ratio: its central part of the nearest ratio.
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    x, y = (width - box_width) // 2, (height - box_height) // 2
    return x, y, x + box_width, y + box_height


def jitter_colors(view: np.ndarray, jitter: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue jitter of the given strengths in random order (torchvision, ColorJitter)."""
    brightness, contrast, saturation, hue = jitter
    for operation in random.permutation(4):
        if operation == 0:
            view = cv2.addWeighted(view, _factor(brightness, random), view, 0, 0)
        elif operation == 1:
            factor = _factor(contrast, random)
            mean = cv2.mean(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))[0]
            view = cv2.addWeighted(view, factor, view, 0, (1 - factor) * mean)
        elif operation == 2:
            factor = _factor(saturation, random)
            gray = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            view = cv2.addWeighted(view, factor, gray, 1 - factor, 0)
        else:
            hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)  # a hue circle of 256 steps
            hsv[..., 0] += np.uint8(round(random.uniform(-hue, hue) * 255) % 256)
            view = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return view


def _factor(strength: float, random: np.random.Generator) -> float:
    return random.uniform(max(0.0, 1 - strength), 1 + strength)
