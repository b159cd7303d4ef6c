# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""The image processor for machines without torchvision: same options and methods, nearly the same pixel values."""

from typing import Any

import numpy as np
import PIL.Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import auto_docstring

from .image_processing_rats import RatsImageProcessorKwargs, RatsImageProcessorMixin


@auto_docstring(
    custom_intro="Image processor of RATS without torchvision: images of any mode to pixel values, and outputs to part maps."
)
class RatsImageProcessorPil(RatsImageProcessorMixin, PilBackend):  # type: ignore[misc]  # its backend spells options out
    valid_kwargs = RatsImageProcessorKwargs

    def __init__(self, **kwargs: Unpack[RatsImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]  # it takes any

    def resize(self, image: np.ndarray, size: SizeDict, resample: Any = None, *args, **kwargs) -> np.ndarray:
        """Floats stay floats, as with torchvision; the parent would round them to 8 bits, or refuse 0 to 255."""
        if image.dtype == np.uint8 or not (size.height and size.width and isinstance(resample, int)):
            return super().resize(image, size, resample, *args, **kwargs)
        channels = [PIL.Image.fromarray(channel).resize((size.width, size.height), resample) for channel in image]
        return np.stack([np.asarray(channel) for channel in channels])  # (channels, height, width)


__all__ = ["RatsImageProcessorPil"]
