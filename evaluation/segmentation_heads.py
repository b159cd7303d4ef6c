"""Simple heads that tell the class of each pixel from frozen patch features, and how they are trained and used.

B batch  D hidden  K classes; the patch grid is rows, columns; pixels are height, width
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

HEADS = ("linear", "fcn")
IGNORED = -1  # class of pixels that do not count
WEIGHT_DECAY = 1e-4
WARMUP_SHARE = 1500 / 40_000  # of the steps, as DINOv2 has it on ADE20K
FCN_CHANNELS, FCN_CONVOLUTIONS, FCN_DROPOUT = 256, 2, 0.1


class Recipe(NamedTuple):
    """How a head is trained.

    Attributes:
        epochs: Times that each image is learnt from.
        batch_size: Images a step.
        learning_rate: The highest, after warm-up.
        seed: Of the first weights, of dropout and of the order of the images.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int


class TrainedHead(NamedTuple):
    """A head, in evaluation mode, and the mean of its losses over the last epoch."""

    head: nn.Module
    loss: float


def build_head(kind: str, num_dimensions: int, num_classes: int) -> nn.Sequential:
    """Logits of K classes, (B, K, rows, columns), from features, (B, D, rows, columns).

    - linear: batch normalisation with scale and shift, then a 1x1 convolution (`BNHead` of DINOv2's
      dinov2/eval/segmentation/models/decode_heads/linear_head.py, without dropout as in its published configurations).
    - fcn: two 3x3 convolutions of 256 channels, each with batch normalisation and ReLU, dropout of channels, then a 1x1
      convolution (`FCNHead` of mmsegmentation with num_convs=2, channels=256, concat_input=False; MoCo, arXiv 1911.05722,
      has such a head on VOC, with dilation).

    First weights as in mmsegmentation: the last convolution normal with a standard deviation of 0.01, the others He.

    Raises:
        ValueError: If there is no such head.
    """
    if kind not in HEADS:
        raise ValueError(f"head={kind} is not known; it must be one of: {', '.join(HEADS)}.")
    layers: list[nn.Module] = []
    channels = num_dimensions
    if kind == "linear":
        layers.append(nn.BatchNorm2d(channels))
    else:
        for _ in range(FCN_CONVOLUTIONS):
            convolution = nn.Conv2d(channels, FCN_CHANNELS, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(FCN_CHANNELS), nn.ReLU()]
            channels = FCN_CHANNELS
        layers.append(nn.Dropout2d(FCN_DROPOUT))
    classifier = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers, classifier)


def train_head(
    kind: str,
    features: Sequence[torch.Tensor],
    classes: Sequence[torch.Tensor],
    num_classes: int,
    recipe: Recipe,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> TrainedHead:
    """Trains a head on frozen features by the cross-entropy of all pixels that count.

    The logits are upsampled bilinearly to the masks. AdamW, learning rate 1e-3, weight decay 1e-4, a linear warm-up over 3.75 %
    of the steps and a linear decay to 0 are those of DINOv2's published configurations for ADE20K (arXiv 2304.07193, section
    7.4; dinov2_vits14_ade20k_linear_config.py: AdamW, lr 1e-3, weight_decay 1e-4, warmup_iters 1500 of max_iters 40000, poly
    of power 1, read in public copies of it). Departs from DINOv2 in that features are computed once, of the whole image: no
    random scales, crops, flips and colours.

    Args:
        kind: One of `HEADS`.
        features: Of each image, (D, rows, columns), all alike; any float type, float32 is computed with.
        classes: Of each image, integers from 0 to K - 1 or `IGNORED`, (height, width), all alike.
        num_classes: K.
        recipe: Epochs, batch, learning rate, seed. Torch's own generators are left as they were.
        device: Where the head computes.
        quiet: No progress bar.

    Raises:
        ValueError: If there are no images, or the learning rate is not above 0 or so high that the weights are not finite.
    """
    if not features or not 0 < recipe.learning_rate < math.inf:
        raise ValueError(
            f"A head cannot learn from {len(features)} images with learning_rate={recipe.learning_rate}; both must be above 0."
        )
    order = torch.Generator().manual_seed(recipe.seed)  # on the CPU: the same order for all models and devices
    total_steps = recipe.epochs * math.ceil(len(features) / recipe.batch_size)
    losses: list[float] = []
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(recipe.seed)
        head = build_head(kind, len(features[0]), num_classes).to(device)
        optimizer = torch.optim.AdamW(head.parameters(), recipe.learning_rate, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(share_of_learning_rate, total_steps=total_steps))
        for _ in tqdm(range(recipe.epochs), f"{kind} head", unit="epoch", leave=False, disable=quiet or None):
            losses.clear()
            for batch in torch.randperm(len(features), generator=order).split(recipe.batch_size):
                own = torch.stack([features[i] for i in batch]).to(device).float()  # (B, D, rows, columns)
                true = torch.stack([classes[i] for i in batch]).to(device).long()  # (B, height, width)
                loss = pixel_loss(head(own), true)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
    if not all(parameter.isfinite().all() for parameter in head.parameters()):
        raise ValueError(
            f"learning_rate={recipe.learning_rate} is so high that the {kind} head's weights are not finite; use a lower one."
        )
    return TrainedHead(head.eval(), sum(losses) / len(losses))


def share_of_learning_rate(step: int, total_steps: int) -> float:
    """Of the highest learning rate, in step 0, 1, 2 ...: a linear warm-up times a linear decay to 0 (mmcv's poly, power 1)."""
    warmup_steps = WARMUP_SHARE * total_steps
    return min((step + 1) / max(warmup_steps, 1), 1) * (1 - step / total_steps)


def pixel_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the pixels that count, 0 where none does.

    Args:
        logits: (B, K, rows, columns).
        classes: 0 to K - 1 or `IGNORED`, int64, (B, height, width).
    """
    upsampled = resize_logits(logits, (classes.shape[-2], classes.shape[-1]))  # (B, K, height, width)
    total = nn.functional.cross_entropy(upsampled, classes, ignore_index=IGNORED, reduction="sum")
    return total / (classes != IGNORED).sum().clamp(min=1)


def resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits of pixels, (B, K, height, width), from logits of patches, (B, K, rows, columns), bilinearly.

    As torch's `interpolate` without aligned corners, side by side as matrices: half the time on a CPU, and on a GPU torch's own
    has gradients that differ from run to run.
    """
    down, across = (
        nn.functional.interpolate(torch.eye(patches)[None], size=pixels, mode="linear", align_corners=False)[0].T.to(logits)
        for patches, pixels in zip(logits.shape[-2:], size, strict=True)
    )  # (height, rows) and (width, columns)
    return down @ logits @ across.T


@torch.no_grad()
def predict_classes(head: nn.Module, features: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """The class of each pixel, of each image at its own size: B tensors (height, width), int64, on the CPU.

    Args:
        head: In evaluation mode.
        features: (B, D, rows, columns).
        sizes: Height and width in pixels, an entry an image.
    """
    logits = head(features.to(next(head.parameters()).device).float())  # (B, K, rows, columns)
    return [
        resize_logits(own, size)[0].argmax(dim=0).cpu()  # one by one: K x height x width is large
        for own, size in zip(logits.split(1), sizes, strict=True)
    ]
