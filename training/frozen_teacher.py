"""The teacher of a distillation: a frozen backbone of any kind that `evaluation.backbones` reads, on the student's views.

B batch  L patches  T hidden of the teacher; the patch grid is rows, columns; pixels are height, width
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, model_info
from huggingface_hub.errors import GatedRepoError
from torch import nn
from transformers import PreTrainedModel

from evaluation.backbones import Backbone, load_backbone
from evaluation.records import fingerprint_of_weights

LOG_IN = (
    "if its repository is gated or private, accept its terms on its page, and log in with `hf auth login` or set HF_TOKEN to a "
    "token that may read it"
)


class TeacherFeatures(NamedTuple):
    """What the teacher says of B views.

    Attributes:
        patches: After its final LayerNorm, row by row, (B, L, T).
        pooled: The class token, or the mean register of a RATS, (B, T).
    """

    patches: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class FrozenTeacher:
    """A teacher and what is recorded of it.

    The student's grid of patches is also the teacher's: a view is resized, by antialiased bicubic interpolation, to as many of
    the teacher's patches as it has of the student's. With patches of the same size it stays as it is. The teacher's positions
    are those that it has for this grid (interpolated, or rotary), and features are never interpolated.

    Attributes:
        backbone: In evaluation mode, on the device that computes.
        fingerprint: A hash of its weights.
        licence: Of the weights, where their card says it.
        bf16: Whether it computes in bfloat16.
    """

    backbone: Backbone
    fingerprint: str
    licence: str | None = None
    bf16: bool = False

    @property
    def model(self) -> PreTrainedModel:
        return self.backbone.model

    @property
    def hidden_size(self) -> int:
        """The width T of its tokens."""
        return self.model.config.hidden_size

    def image_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels of an image that has this grid of patches."""
        patch_height, patch_width = self.backbone.patch_height_width
        return grid[0] * patch_height, grid[1] * patch_width

    @torch.no_grad()
    def features(self, views: torch.Tensor, grid: tuple[int, int]) -> TeacherFeatures:
        """
        Args:
            views: The student's, uint8, on this device, (B, height, width, 3).
            grid: Rows and columns of the student's patches.
        """
        pixel_values = self.normalize(views, self.image_size(grid))  # (B, 3, height, width)
        with torch.autocast(pixel_values.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            tokens = self.backbone.tokens(pixel_values)
        pooled = tokens.class_token
        if pooled is None:
            assert tokens.registers is not None  # a RATS
            pooled = tokens.registers.mean(dim=1)
        return TeacherFeatures(tokens.patches.float(), pooled.float())

    def normalize(self, views: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Views resized, and rescaled and normalised as the teacher's image processor does it.

        uint8 (B, h, w, 3) -> (B, 3, height, width)
        """
        processor = self.backbone.processor
        pixels = views.permute(0, 3, 1, 2).float()  # (B, 3, h, w)
        if pixels.shape[-2:] != size:
            pixels = nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 255)
        if getattr(processor, "do_rescale", True):
            pixels = pixels * processor.rescale_factor
        if getattr(processor, "do_normalize", True):
            mean, std = (pixels.new_tensor(one).view(-1, 1, 1) for one in (processor.image_mean, processor.image_std))
            pixels = (pixels - mean) / std
        return pixels

    def record(self) -> dict[str, Any]:
        """What the record of a training says of it."""
        return {
            "name": self.backbone.name,
            "on_hub": not Path(self.backbone.name).exists(),
            "model_type": self.model.config.model_type,
            "revision": self.backbone.revision,
            "licence": self.licence,
            "weights": self.fingerprint,
        }

    def refuse_another(self, recorded: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: If a checkpoint has recorded a teacher of other weights; the text follows on its path.
        """
        if recorded["weights"] != self.fingerprint:
            raise ValueError(
                f"was distilled from {recorded['name']} (hash of its weights {recorded['weights']}), and this run's teacher is "
                f"{self.backbone.name} (hash {self.fingerprint}); a student has one teacher from start to end. Name that one "
                "with --teacher and --teacher_revision, take another --output_dir, or start anew with --resume none."
            )


def load_teacher(name: str, revision: str | None, device: torch.device, bf16: bool) -> FrozenTeacher:
    """A frozen teacher from a folder or the Hub.

    Args:
        name: As `evaluation.backbones.load_backbone` takes it.
        revision: Branch, tag or commit on the Hub; main when None.
        device: That computes.
        bf16: Whether it computes in bfloat16.

    Raises:
        ValueError: If it is not found, may not be read, is of no kind with a grid of patches, or does not take RGB images.
    """
    try:
        backbone = load_backbone(name, revision or "main")
    except (OSError, ValueError) as error:
        on_hub = not Path(name).exists() and isinstance(error, OSError)
        remedy = f" For a model on the Hub: {LOG_IN}." if on_hub or _is_gated(error) else ""
        raise ValueError(f"teacher={name}: {error}{remedy}") from error
    channels = getattr(backbone.model.config, "num_channels", 3)
    if channels != 3:
        raise ValueError(
            f"teacher={name} takes images of {channels} channels, and the views are RGB, of 3; choose a teacher of RGB images."
        )
    backbone.model.to(device).requires_grad_(False)  # type: ignore[arg-type]
    return FrozenTeacher(backbone, fingerprint_of_weights(backbone.model), licence_of(name, backbone.revision), bf16)


def check_features(teacher: FrozenTeacher, side_px: int, patch_size: int) -> None:
    """Tries the teacher on one view of noise, of the size that the student gets.

    Raises:
        ValueError: If its features are not finite.
    """
    noise = torch.randint(0, 256, (1, side_px, side_px, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    grid = (side_px // patch_size, side_px // patch_size)
    features = teacher.features(noise.to(teacher.model.device), grid)
    for what, values in features._asdict().items():
        if not values.isfinite().all():
            share = float(values.isfinite().float().mean())
            raise ValueError(
                f"teacher={teacher.backbone.name} gives {what} that are not finite ({100 * share:.0f} % of the values are); a "
                "student can learn from finite features alone. Its weights diverged or are damaged, or overflow in "
                "mixed_precision: choose another teacher, or try --mixed_precision no."
            )


def has_random_weights(teacher: FrozenTeacher) -> bool:
    """Whether no layer normalisation of the teacher has moved from where it starts, scales of 1 and shifts of 0."""
    norms = [module for module in teacher.model.modules() if isinstance(module, nn.LayerNorm)]
    started = [bool((norm.weight == 1).all()) and (norm.bias is None or not norm.bias.any()) for norm in norms]
    return bool(norms) and all(started)


def licence_of(name: str, commit: str | None) -> str | None:
    """The licence that the card of a folder or repository names; None where it names none or cannot be read."""
    try:
        card = Path(name) / "README.md"
        data: Any = ModelCard.load(card).data if card.is_file() else None
        if data is None and not Path(name).exists():
            data = model_info(name, revision=commit, timeout=10).card_data
        licence = data.get("license") if data else None
    except Exception:  # whatever a card or a network has against it: the record says that it is not known
        return None
    return licence if isinstance(licence, str) else None


def _is_gated(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, GatedRepoError):
            return True
        error = error.__cause__ or error.__context__
    return False
