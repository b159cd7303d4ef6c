"""The augmentation of the original DINO, on PIL and torchvision's first transforms (dino/main_dino.py, DataAugmentationDINO).

Slow; for those who want its arithmetic to the last level, and as the measure of `training/benchmark_crops.py`.
"""

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from training.crops import ViewSettings

BICUBIC = transforms.InterpolationMode.BICUBIC


def uniform(low: float, high: float) -> float:
    return torch.empty(1).uniform_(low, high).item()


class GaussianBlur:
    """PIL's blur of a random radius (dino/utils.py, GaussianBlur)."""

    def __init__(self, probability: float, radius_px: tuple[float, float]):
        self.probability, self.radius_px = probability, radius_px

    def __call__(self, image: Image.Image) -> Image.Image:
        if uniform(0, 1) > self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=uniform(*self.radius_px)))


class Solarization:
    """PIL's solarisation (dino/utils.py, Solarization)."""

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if uniform(0, 1) < self.probability else image


def original_view(settings: ViewSettings) -> transforms.Compose:
    """One view as DINO composes it, PIL image to PIL image."""
    jitter = transforms.ColorJitter(*settings.jitter)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(settings.size_px, scale=tuple(settings.scale), interpolation=BICUBIC),
            transforms.RandomHorizontalFlip(settings.flip),
            transforms.RandomApply([jitter], p=settings.jitter_probability),
            transforms.RandomGrayscale(settings.grayscale),
            GaussianBlur(settings.blur, (settings.blur_sigma_px[0], settings.blur_sigma_px[1])),
            Solarization(settings.solarize),
        ]
    )


class OriginalMultiCrop:
    """Makes the views of a `MultiCrop` by the original's transforms; same arguments and results as calling that.

    Args:
        views: How each view is made (`MultiCrop.views`).
    """

    def __init__(self, views: list[ViewSettings]):
        self.transforms = [original_view(settings) for settings in views]

    def __call__(self, image: Image.Image, random: np.random.Generator) -> list[np.ndarray]:
        """The views of an RGB image, each uint8, (size, size, 3)."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's generator
            torch.manual_seed(int(random.integers(2**63)))
            return [np.array(transform(image)) for transform in self.transforms]
