# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""What a model sees in one image: computed once, then asked for parts, registers and attention again and again.

N registers  n registers a head  H heads  D hidden; the patch grid is rows, columns
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .part_maps import pixel_to_patch

PARTS_READ = ("similarities", "register_heads", "patch_features")  # of the outputs of RatsForPartSegmentation


@dataclass(frozen=True)
class ImageParts:
    """One image and what a [`RatsForPartSegmentation`] gave for it.

    Attributes:
        image: RGB and upright.
        outputs: `similarities` (1, N, rows, columns), `register_heads` (1, N) if heads own registers, and `patch_features`
            (1, D, rows, columns), which a [`PartDictionary`] reads; on the CPU.
        image_processor: The model's.
    """

    image: Image.Image
    outputs: ModelOutput
    image_processor: Any

    @property
    def similarities(self) -> torch.Tensor:
        """Of each register and each patch, (N, rows, columns)."""
        return self.outputs["similarities"][0]

    def segment(self, target_size: tuple[int, int] | None = None, **options: Any) -> dict[str, Any]:
        """The part map, at `target_size` (height, width) or the image's own, as `post_process_part_segmentation` gives it."""
        size = target_size or (self.image.height, self.image.width)
        (result,) = self.image_processor.post_process_part_segmentation(self.outputs, target_sizes=[size], **options)
        return result

    def register_at(self, x: float, y: float) -> int:
        """The register that is most similar to the patch in which a pixel of the image lies; (0, 0) is its upper left corner.

        Raises:
            ValueError: If the pixel is not in the image.
        """
        if not (0 <= x < self.image.width and 0 <= y < self.image.height):
            raise ValueError(f"x={x}, y={y} must lie in the image, {self.image.width} x {self.image.height} px (x, y).")
        _, rows, columns = self.similarities.shape
        row = pixel_to_patch(self.image.height, rows)[int(y)]
        column = pixel_to_patch(self.image.width, columns)[int(x)]
        return int(self.similarities[:, row, column].argmax())


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one image, a tensor a layer, float32 on the CPU.

    Attributes:
        compress: How much each register takes from each patch, (H, n, rows, columns); a register's sum to 1.
        communicate: How much each register takes from each of its head, (H, n, n); rows ask and sum to 1.
        broadcast: How much each patch takes from each register, (H, n, rows, columns); of a head and a patch they sum to 1.
    """

    compress: list[torch.Tensor]
    communicate: list[torch.Tensor]
    broadcast: list[torch.Tensor]


@torch.inference_mode()
def look(image: Image.Image, model: PreTrainedModel, image_processor: Any, **image_options: Any) -> ImageParts:
    """Compute what there is to know of the parts of one image.

    Args:
        image: RGB and upright, as `read_image` gives it.
        model: A [`RatsForPartSegmentation`] in evaluation mode.
        image_processor: Its own.
        image_options: `size` and `ensure_multiple_of`: the resolution at which the model sees the image.
    """
    pixel_values = image_processor(images=image, return_tensors="pt", **image_options)["pixel_values"]
    outputs = model(pixel_values.to(model.device), output_patch_features=True)
    kept = {name: outputs[name].cpu() for name in PARTS_READ if outputs.get(name) is not None}
    return ImageParts(image, ModelOutput(kept), image_processor)


@torch.inference_mode()
def attention_maps(image: Image.Image, model: PreTrainedModel, image_processor: Any, **image_options: Any) -> AttentionMaps:
    """Compute the three attention maps of every layer and head for one image; arguments as for `look`.

    Raises:
        ValueError: If the model does not compute maps.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError(
            f"attn_implementation={model.config._attn_implementation!r} gives no attention maps; only eager attention does. "
            'Load the model with from_pretrained(..., attn_implementation="eager").'
        )
    pixel_values = image_processor(images=image, return_tensors="pt", **image_options)["pixel_values"]
    rows, columns = (
        side // patch for side, patch in zip(pixel_values.shape[-2:], model.config.patch_height_width, strict=True)
    )
    outputs = model(
        pixel_values.to(model.device),
        output_attentions=True,
        output_communicate_attentions=True,
        output_broadcast_attentions=True,
    )
    return AttentionMaps(
        compress=[of_layer[0].float().cpu().unflatten(-1, (rows, columns)) for of_layer in outputs.attentions],
        communicate=[of_layer[0].float().cpu() for of_layer in outputs.communicate_attentions],
        broadcast=[
            of_layer[0].float().cpu().transpose(-1, -2).unflatten(-1, (rows, columns))
            for of_layer in outputs.broadcast_attentions
        ],
    )


__all__ = ["AttentionMaps", "ImageParts", "attention_maps", "look"]
