# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Warm start: everything but the registers from a ViT or DINO checkpoint, with a report of what was taken.

B batch  L patches  N registers  H heads  D hidden

Patch and position embeddings, q, k, v and output projections, MLPs and LayerNorms of RATS are those of a ViT and are taken as
they are. The paper trains from scratch: that one may start so, and how the registers start (`_registers`), is ours.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import nn

from .configuration_rats import RatsConfig
from .modeling_rats import RatsModel, RatsPreTrainedModel
from .vit_checkpoint_rats import (
    TOLD_BY_CONFIGURATIONS,
    Checkpoint,
    VitCheckpoint,
    check_fit,
    fold_layer_scales,
    read_vit_checkpoint,
)

REGISTERS_PER_HEAD = 16  # RATS-B/16 of the paper: 192 registers over 12 heads
DINO_HEAD_SIZE = 64  # channels a head has in every DINO and DINOv2


@dataclass
class WarmStartReport:
    """What a warm start took and what not; `print` shows a summary.

    Every tensor of the source is in exactly one of `taken` (as a value, thrice if it is a fused qkv), `folded` and
    `not_taken`; every parameter of RATS in exactly one of `taken` and `initialised`.

    Attributes:
        source: Where the weights come from.
        taken: Parameter of RATS -> tensor of the source.
        adapted: Parameter of RATS among the taken -> what was changed (position embeddings).
        folded: Tensor of the source -> module of RATS into whose weight and bias it was multiplied (LayerScale).
        initialised: Parameter of RATS that was not taken -> how it starts.
        not_taken: Tensor of the source, or entry of its file -> why it was not taken.
        assumed: Setting that matters to the weights and that the source does not tell -> the value used.
    """

    heading: ClassVar[str] = "Warm start from"

    source: str
    taken: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    not_taken: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        in_layers = sum(name.startswith("encoder.layer.") for name in self.taken)
        lines = [
            f"{self.heading} {self.source}",
            f"  taken        {len(self.taken)} parameters, {in_layers} of them in layers",
        ]
        lines += [f"  adapted      {name}: {change}" for name, change in self.adapted.items()]
        if self.folded:
            lines += [f"  folded       {len(self.folded)} LayerScale vectors, into the projections before them"]
        lines += [f"  initialised  {name}: {how}" for name, how in self.initialised.items()]
        for reason in dict.fromkeys(self.not_taken.values()):
            names = [name for name, why in self.not_taken.items() if why == reason]
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            lines += [f"  not taken    {', '.join(names[:2])}{more}: {reason}"]
        lines += [f"  assumed      {name}={value}, not stated in the source" for name, value in self.assumed.items()]
        return "\n".join(lines)


def warm_start(
    checkpoint: Checkpoint, num_registers: int | None = None, **config_overrides
) -> tuple[RatsModel, WarmStartReport]:
    """A RatsModel of the sizes of a ViT or DINO checkpoint, filled with its weights, in float32 and evaluation mode.

    Args:
        checkpoint: A folder or Hub name of transformers (ViT, DINOv2, DINOv2 with registers; heads on top are left out); a
            `.pth`, `.pt` or `.safetensors` file in the original DINO, DINOv2 or timm layout; or such a model or state dict.
        num_registers: N; 16 per head if None, as RATS-B/16 of the paper.
        config_overrides: Fields of RatsConfig. What the weights fix (`hidden_size`, `patch_size` ...) can only be repeated;
            another `image_size` resizes the position embeddings. A file does not tell its `num_attention_heads`: unless
            given here, a head is assumed to have the 64 channels of DINO.

    Returns:
        The model and the report. The registers are random: `torch.manual_seed` repeats them.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The source is no ViT with a class token, learned positions and a plain MLP, is incomplete or not finite,
            does not fit `config_overrides`, or is a file that holds more than tensors.
    """
    known = {*RatsConfig.__dataclass_fields__, "num_labels", "out_features", "out_indices"}
    unknown = [name for name in config_overrides if name not in known]
    if unknown:
        raise ValueError(f"{unknown} are no fields of RatsConfig; its documentation lists them.")
    source = read_vit_checkpoint(checkpoint)
    check_fit(source, config_overrides)
    fields = source.open_fields | source.fixed_fields | config_overrides
    if "num_attention_heads" not in fields:
        if fields["hidden_size"] % DINO_HEAD_SIZE:
            raise ValueError(
                f"{source.label} does not tell its number of heads, and its hidden_size={fields['hidden_size']} is no multiple "
                f"of the {DINO_HEAD_SIZE} channels a head has in DINO; give num_attention_heads."
            )
        fields["num_attention_heads"] = fields["hidden_size"] // DINO_HEAD_SIZE
    if num_registers is None:
        num_registers = REGISTERS_PER_HEAD * fields["num_attention_heads"]
    model = RatsModel(RatsConfig(num_registers=num_registers, **fields))
    return model.eval(), _fill(model, source)


def load_vit_weights(model: RatsPreTrainedModel, checkpoint: Checkpoint) -> WarmStartReport:
    """Fills an existing RATS from a ViT or DINO checkpoint, keeping its sizes, dtype and device.

    Args:
        model: A RatsModel, or a model with one inside, whose head is left alone. Its registers are initialised anew.
        checkpoint: As for `warm_start`. Where it does not tell its number of heads, the model's is trusted.

    Raises:
        FileNotFoundError: No such file.
        ValueError: As for `warm_start`, or the sizes differ. The model is then unchanged.
    """
    source = read_vit_checkpoint(checkpoint)
    check_fit(source, {name: getattr(model.config, name) for name in source.fixed_fields})
    return _fill(cast(RatsModel, model.base_model), source)


@torch.no_grad()
def _fill(model: RatsModel, source: VitCheckpoint) -> WarmStartReport:
    report = WarmStartReport(source.label, not_taken=dict(source.not_taken))
    tensors = {name: tensor.to("cpu", torch.float32) for name, tensor in source.tensors.items()}
    report.folded = {source.names[name]: projection for name, projection in fold_layer_scales(tensors).items()}
    positions = tensors.pop("embeddings.position_embeddings")
    class_position, patch_positions, change = _positions(positions, source, model.config)
    tensors["embeddings.position_embeddings"] = patch_positions
    report.adapted["embeddings.position_embeddings"] = change
    registers = _registers(tensors.pop("cls_token") + class_position, model.config)
    report.not_taken[source.names["cls_token"]] = "RATS has no class token; its registers start from it"
    if tensors.pop("register_tokens", None) is not None:
        # They keep artefacts out of the patches (arXiv 2309.16588); what asks the image is the class token.
        report.not_taken[source.names["register_tokens"]] = "they serve all heads at once, a register of RATS its own head"

    parameters = dict(model.named_parameters())
    if "embeddings.mask_token" in tensors:
        tensors["embeddings.mask_token"] = tensors["embeddings.mask_token"].reshape(1, 1, -1)  # (1, D) in DINOv2
        if "embeddings.mask_token" not in parameters:
            report.not_taken[source.names["embeddings.mask_token"]] = "the model has no mask token"
    report.taken = {name: source.names[name] for name in parameters if name in tensors}
    for name in report.taken:
        if tensors[name].shape != parameters[name].shape:
            raise ValueError(
                f"{source.names[name]} of {source.label} must give {name} the shape {tuple(parameters[name].shape)}, but gives "
                f"{tuple(tensors[name].shape)}; give a plain ViT, DINO or DINOv2."
            )
    as_it_was = "as the model had it (zeros in a new one), the source has none"
    report.initialised = dict.fromkeys((name for name in parameters if name not in report.taken), as_it_was)
    report.initialised["embeddings.register_tokens"] = "the class token at its position, plus noise"
    told = source.fixed_fields | source.open_fields
    report.assumed = {name: getattr(model.config, name) for name in TOLD_BY_CONFIGURATIONS if name not in told}
    for name in report.taken:
        parameters[name].copy_(tensors[name])
    parameters["embeddings.register_tokens"].copy_(registers)
    return report


def _positions(learned: torch.Tensor, source: VitCheckpoint, config: RatsConfig) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Position embeddings of the class token, zeros if it has none, and of the patches, and what was changed.

    Another grid is interpolated as the model's own embeddings do it, so it does not matter which of the two does. Departs
    from DINOv2 with registers, which antialiases there.
    """
    rows, columns = source.grid or config.grid_size
    before = learned.shape[1] - rows * columns
    if before not in (0, 1):  # timm's `no_embed_class` gives the class token none
        raise ValueError(
            f"{source.label} has {learned.shape[1]} position embeddings, but a class token and {rows} x {columns} patches have "
            f"{rows * columns + 1}; give image_size as the source was trained with."
        )
    class_position = learned[:, :before].sum(dim=1, keepdim=True)  # (1, 1, D)
    positions, change = learned[:, before:], "without the class token's" if before else "as they are"  # (1, L, D)
    if (rows, columns) != config.grid_size:
        positions = positions.transpose(1, 2).unflatten(-1, (rows, columns))  # (1, D, rows, columns)
        positions = nn.functional.interpolate(positions, size=config.grid_size, mode="bicubic", align_corners=False)
        positions = positions.flatten(2).transpose(1, 2)  # (1, L, D)
        change += f", {rows} x {columns} patches interpolated to {' x '.join(map(str, config.grid_size))}"
    return class_position, positions, change


def _registers(class_token: torch.Tensor, config: RatsConfig) -> torch.Tensor:
    """Registers that start as the class token, (1, 1, D) with its position, and differ by noise: (1, N, D).

    The class token is what the source learned to ask an image with. A register asks through the query of its own head alone,
    so registers of two heads differ already; those of one head would stay equal for ever, and nearly equal ones for long,
    without noise. Only its size beside the token matters, as LayerNorm comes next and takes the scale away: half of the
    token's standard deviation gives two registers a cosine of about 1 / (1 + 0.5^2) = 0.8, whatever the source; a fixed
    `initializer_range`, the least that is used, would vanish beside a large token.
    """
    deviation = max(config.initializer_range, 0.5 * class_token.std().item())
    noise = torch.empty(1, config.num_registers, config.hidden_size)
    nn.init.trunc_normal_(noise, std=deviation, a=-2 * deviation, b=2 * deviation)
    return class_token + noise


__all__ = ["WarmStartReport", "load_vit_weights", "warm_start"]
