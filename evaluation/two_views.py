"""Two augmented views each of some images, as DINO's global views without its strongest colours.

torchvision's transforms: the fast augmentation of pretraining lies above this folder, and speed does not matter here.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

SCALE = (0.4, 1.0)  # share of the image's area (dino/main_dino.py, global_crops_scale)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue


class TwoViews:
    """Images in, two normalised views of each out.

    Args:
        size_px: Side of the square views.
        mean: Of the channels, from 0 to 1.
        std: Of the channels.
        seed: An image's views depend on it, on the image's place and on the number of the draw alone.
        scale: Least and largest share of the image's area in a view.
        jitter: Strengths of brightness, contrast, saturation and hue jitter.
    """

    def __init__(
        self,
        size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        scale: Sequence[float] = SCALE,
        jitter: Sequence[float] = JITTER,
    ):
        self.seed = seed
        self._as_pixel_values = v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
        )
        self._augmented = v2.Compose(
            [
                v2.RandomResizedCrop(size_px, tuple(scale), interpolation=InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(*jitter)], p=0.8),
                self._as_pixel_values,
            ]
        )
        self._resized = v2.Resize((size_px, size_px), interpolation=InterpolationMode.BICUBIC)

    def __call__(self, images: Sequence[Image.Image], first: int = 0, draw: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Two views of each RGB image, (images, 3, size, size) each; `first` is the place of the first image."""
        views = []
        for place, image in enumerate(images, first):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence((self.seed, place, draw)).generate_state(1)[0]))
                views.append((self._augmented(image), self._augmented(image)))
        first_views, second_views = zip(*views, strict=True)
        return torch.stack(first_views), torch.stack(second_views)

    def whole(self, image: Image.Image) -> torch.Tensor:
        """The whole RGB image, resized, (1, 3, size, size)."""
        return self._as_pixel_values(self._resized(image)).unsqueeze(0)
