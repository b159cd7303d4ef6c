# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Images of any kind and mode, as models want to see them: RGB, upright, in 8 bits or floats."""

import base64
import io
import math
import os
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension


def rgb_image(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, upright.

    - EXIF orientation is applied: the result has the size of the image as it is displayed.
    - Transparency (an alpha channel, or a transparent colour of a palette) is laid on white, as `convert_to_rgb` of
      transformers does.
    - 16-bit grey ("I;16") is scaled from 0..65535 to 0..255, where PIL would clip all above 255 to white.
    - 32-bit integers ("I") are 8-bit levels if none is above 255, else 16-bit ones; what lies outside is clipped.
    - Floats ("F") are 0..1 if none is above 1, else 8-bit levels; what lies outside is clipped.
    - All other modes are converted by PIL.

    Raises:
        ValueError: If pixels are nan or infinite.
    """
    image = upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bit_levels(image)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def read_image(source: Any, timeout: float | None = None) -> Image.Image:
    """Read one image of any kind and mode as RGB, upright.

    Departs from `load_image` of transformers, which does not take bytes, and clips images of 16 bits to white.

    Args:
        source: A PIL image, the path, http(s) URL, data URL or base64 text of an image file, or its bytes.
        timeout: Seconds to wait for a URL; no limit when None.

    Raises:
        ValueError: If this cannot be read as an image.
    """
    try:
        return rgb_image(source if isinstance(source, Image.Image) else Image.open(io.BytesIO(_file_content(source, timeout))))
    except Exception as error:  # each of Pillow's decoders has its own
        unknown = isinstance(error, UnidentifiedImageError)  # its message is the address of the bytes in memory
        reason = "of no known image format" if unknown else f"{type(error).__name__}: {error}"
        is_text = isinstance(source, str) and unknown and not os.path.isfile(source) and "://" not in source
        reason += ", read as base64 text since there is no such file" if is_text and not source.startswith("data:") else ""
        raise ValueError(
            f"{_name(source)} cannot be read as an image ({reason}); give a PIL image, the path, "
            "http(s) URL or base64 text of an image file, or its bytes."
        ) from error


def _file_content(source: Any, timeout: float | None) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return httpx.get(source, timeout=timeout, follow_redirects=True).raise_for_status().content
    if isinstance(source, os.PathLike) or (isinstance(source, str) and os.path.isfile(source)):
        with open(source, "rb") as file:
            return file.read()
    if isinstance(source, str):
        text = source.partition(",")[2] if source.startswith("data:") else source
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except ValueError as error:
            raise FileNotFoundError("there is no such file, and it is no URL and no base64 text") from error
    raise TypeError(f"it is a {type(source).__name__}")


def _name(source: Any) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return f"A file of {len(source)} bytes"
    name = repr(source)
    return name if len(name) <= 200 else f"{name[:200]}..."


def upright(image: Image.Image) -> Image.Image:
    image.load()  # so that what fails below is EXIF alone, not the image
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF, for which Pillow has many errors, tells no orientation
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _eight_bit_levels(image: Image.Image) -> np.ndarray:
    """The grey levels of a mode that PIL would clip to 0..255 (see `rgb_image`), uint8, (height, width)."""
    levels = np.asarray(image).astype(np.float64)
    if not np.isfinite(levels).all():
        raise ValueError('the image of mode "F" has pixels that are nan or infinite; replace them, e.g. by numpy.nan_to_num.')
    highest = levels.max(initial=0)
    if image.mode == "F":
        full = 1 if highest <= 1 else 255
    else:
        full = 255 if image.mode == "I" and highest <= 255 else 65535
    return (levels.clip(0, full) * (255 / full)).round().astype(np.uint8)


def check_sides(height: int, width: int) -> None:
    if not (height and width):
        raise ValueError(f"the image is {height} x {width} (height x width); each side must be at least one pixel.")


def data_format(
    shape: tuple[int, ...], do_convert_rgb: bool | None, input_data_format: str | ChannelDimension | None
) -> ChannelDimension:
    """Which axis of an array holds the channels (see `RatsImageProcessorMixin`)."""
    shape = tuple(shape)
    if len(shape) != 3:
        raise ValueError(f"an array of shape {shape} must be (height, width, channels) or (channels, height, width).")
    axes = {ChannelDimension.FIRST: 0, ChannelDimension.LAST: 2}
    if input_data_format is None:
        readings = [layout for channels in (3, 4, 1) for layout, axis in axes.items() if shape[axis] == channels]
        if not readings:
            raise ValueError(
                f"an array of shape {shape} must have 1, 3 or 4 channels, first or last; for other numbers give "
                'do_convert_rgb=False and input_data_format="channels_first" or "channels_last".'
            )
        layout = readings[0]
    else:
        layout = ChannelDimension(input_data_format)
    if do_convert_rgb and shape[axes[layout]] not in (1, 3, 4):
        raise ValueError(
            f"an array of shape {shape} has {shape[axes[layout]]} channels ({layout.value}); 1, 3 or 4 can be converted to "
            "RGB. Give do_convert_rgb=False to keep them."
        )
    check_sides(*(shape[1:] if layout == ChannelDimension.FIRST else shape[:2]))
    return layout


def bytes_or_floats(image: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """uint8 as it is, all else as float32: each backend would resize other integers in its own way, one of them wrongly."""
    pixels: np.ndarray | torch.Tensor
    if isinstance(image, torch.Tensor):
        is_bytes = image.dtype == torch.uint8
        pixels = image if is_bytes else image.float()
    else:
        is_bytes = image.dtype == np.uint8
        pixels = np.ascontiguousarray(image, dtype=np.uint8 if is_bytes else np.float32)  # torch takes no negative strides
    if not is_bytes and not (math.isfinite(pixels.min()) and math.isfinite(pixels.max())):
        raise ValueError("the image has pixels that are nan or infinite; replace them, e.g. by torch.nan_to_num.")
    return pixels


__all__ = ["bytes_or_floats", "check_sides", "data_format", "read_image", "rgb_image", "upright"]
