"""SAM 2 through the mask generation pipeline of transformers: an image -> overlapping masks -> one label map."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig, Sam2ImageProcessor, Sam2Model
from transformers.pipelines import MaskGenerationPipeline

METHOD = (
    "Masks by SAM 2 for a square grid of points over the whole image, three a point; those at or below the thresholds of "
    "predicted IoU and stability are dropped, and of those whose boxes overlap by more than 0.7 IoU the best is kept. Masks "
    "under the smallest area are dropped; the others are painted from the largest to the smallest, so that parts lie on top of "
    "wholes; of equal areas the one with the higher predicted IoU lies on top. Labels count from 1 in that order over what "
    "stays visible; 0 is in no mask. The paper (arXiv 2606.14701) does not tell how its SAM 2.1 proxy masks were made."
)


@dataclass(frozen=True)
class MaskSettings:
    """What decides the masks of an image, besides the model.

    Attributes:
        points_per_side: Of the grid; SAM 2's default.
        pred_iou_threshold: IoU with the truth that the model must expect of a mask to exceed, 0 to 1; SAM 2's default, where
            that of transformers, 0.88, is SAM 1's. All masks pass at 0.
        stability_score_threshold: IoU that a mask must exceed with itself at other cut-offs, 0 to 1; SAM 2's default. All
            masks pass at 0.
        min_area_share: Area of the smallest mask that counts, as a share of the image's; 0.001 is about one patch of 16 px in
            an image of 512 px.
        max_image_side: In pixels; of larger images SAM gets a smaller copy, and the label map is enlarged. SAM 2 itself sees
            1024 px and draws on 256, so more costs memory and adds nothing.
        mixed_precision: "no", or "bf16" for autocast.
    """

    points_per_side: int = 32
    pred_iou_threshold: float = 0.8
    stability_score_threshold: float = 0.95
    min_area_share: float = 0.001
    max_image_side: int = 1024
    mixed_precision: str = "no"

    def __post_init__(self):
        for name in ("pred_iou_threshold", "stability_score_threshold", "min_area_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1, as it is a share; choose one within.")


class WholeImageProcessor(Sam2ImageProcessor):
    """Sam2ImageProcessor with a grid of points that covers the whole image.

    Departs from transformers (seen in 5.23), whose grid is laid out as for SAM 1. That pads an image to a square; SAM 2
    squeezes it into one, as Sam2Processor does with the points of a user. The lower third of a 3:2 landscape would get no
    points.
    """

    def generate_crop_boxes(self, image: Any, target_size: int, *arguments: Any, **options: Any) -> tuple:
        """As in Sam2ImageProcessor, for the whole image as the only crop."""
        boxes, points, crops, labels = super().generate_crop_boxes(image, target_size, *arguments, **options)
        side = math.isqrt(points.shape[1])
        centers = (torch.arange(side) + 0.5) * (target_size / side)
        grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1)  # (side, side, 2): x, y
        return boxes, grid.view_as(points), crops, labels


def load_sam(model: str, revision: str = "main", device: torch.device | str = "cpu") -> MaskGenerationPipeline:
    """Load SAM 2 or 2.1 from a folder or the Hub, as the mask generation pipeline of transformers.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If it is another model, or lacks weights.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(model, revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"Model {model!r} was not found ({error}). It must be a Hub name (owner/name) or a folder that "
            "save_pretrained wrote, with config.json; check the spelling and the working folder."
        ) from error
    if config.get("model_type") not in ("sam2", "sam2_video"):  # checkpoints on the Hub serve videos as well
        raise ValueError(
            f"Model {model!r} has model_type {config.get('model_type')!r}; proxy masks need SAM 2 or 2.1 (sam2 or sam2_video). "
            "Choose one, such as facebook/sam2.1-hiera-large."
        )
    loaded, info = cast(tuple[Sam2Model, dict], Sam2Model.from_pretrained(model, revision=revision, output_loading_info=True))
    if info["missing_keys"]:
        raise ValueError(
            f"Model {model!r} lacks {len(info['missing_keys'])} weights (one: {min(info['missing_keys'])}), which would be "
            "random; masks need them all. Choose a whole checkpoint."
        )
    processor = WholeImageProcessor.from_pretrained(model, revision=revision)
    return MaskGenerationPipeline(model=loaded.eval(), image_processor=processor, device=device)


def paint_masks(
    masks: Sequence[np.ndarray], scores: Sequence[float], size: tuple[int, int], min_area_px: float = 1
) -> np.ndarray:
    """One label map of masks that may overlap.

    Masks under the smallest area are dropped. The others are painted from the largest to the smallest, so that parts lie on top
    of wholes; of equal areas the one with the higher score lies on top, and of equal scores the later one. Labels count from 1
    in the order of painting over the masks of which something stays visible, however little; 0 is in no mask.

    Args:
        masks: Each (height, width), booleans; there may be none.
        scores: One a mask.
        size: (height, width).
        min_area_px: Of a mask before others cover it, in pixels; empty masks are dropped in any case.

    Returns:
        (height, width), uint16.
    """
    areas = [int(mask.sum()) for mask in masks]
    kept = [index for index, area in enumerate(areas) if area >= max(min_area_px, 1)]
    kept.sort(key=lambda index: (-areas[index], scores[index]))
    painted = np.zeros(size, np.uint16)
    for label, index in enumerate(kept, start=1):
        painted[masks[index]] = label
    visible = np.unique(painted[painted > 0])
    new_labels = np.zeros(len(kept) + 1, np.uint16)
    new_labels[visible] = np.arange(1, len(visible) + 1)
    return new_labels[painted]


def segment_image(
    sam: MaskGenerationPipeline, image: Image.Image, settings: MaskSettings, points_per_batch: int = 64
) -> np.ndarray:
    """The proxy masks of one RGB image as a label map of its size: (height, width), uint8, or uint16 above 255 labels."""
    scale = min(1.0, settings.max_image_side / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    seen = image if scale == 1 else image.resize((width, height), Image.Resampling.BICUBIC)
    with _precision(sam, settings):
        found = sam(
            seen,
            points_per_batch=points_per_batch,
            points_per_crop=settings.points_per_side,
            pred_iou_thresh=settings.pred_iou_threshold,
            stability_score_thresh=settings.stability_score_threshold,
        )
    masks, scores = [mask.cpu().numpy() for mask in found["masks"]], found["scores"].tolist()
    label_map = paint_masks(masks, scores, (height, width), settings.min_area_share * height * width)
    label_map = label_map.astype(np.uint8) if label_map.max() < 256 else label_map
    return np.asarray(Image.fromarray(label_map).resize(image.size, Image.Resampling.NEAREST))


def _precision(sam: MaskGenerationPipeline, settings: MaskSettings) -> AbstractContextManager:
    return torch.autocast(sam.device.type, torch.bfloat16) if settings.mixed_precision == "bf16" else nullcontext()
