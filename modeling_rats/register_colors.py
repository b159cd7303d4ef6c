# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""One colour a register, the same in every picture, told apart with normal and with colour-deficient vision."""

from functools import cache

import numpy as np

DISTINCT_COLORS = 512  # then they repeat
LEVELS = np.linspace(0, 255, 16).round()  # of each channel of the colours to choose from
LEAST_LIGHTNESS, MOST_LIGHTNESS, LEAST_CHROMA = 30, 92, 30  # CIELAB: no colour that looks like white, black or grey
# Of linear RGB as protanopes, deuteranopes and tritanopes see it: Machado, Oliveira and Fernandes, "A Physiologically-based
# Model for Simulation of Color Vision Deficiency", IEEE TVCG 2009, severity 1.
DEFICIENCIES = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
RGB_TO_XYZ = np.array(  # of sRGB, divided by its white
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])


def register_colors(num_registers: int) -> np.ndarray:
    """Return one RGB colour a register, (num_registers, 3) uint8.

    Colour i depends on i alone, never on the number of registers: each is the one that is farthest from all before it, in the
    vision (normal, protanope, deuteranope or tritanope) in which it is nearest to one of them. With many registers colours
    come close to one another, and after `DISTINCT_COLORS` they repeat: pictures write a register's number as well.
    """
    return _distinct_colors()[np.arange(num_registers) % DISTINCT_COLORS]


def seen_colors(colors: np.ndarray) -> np.ndarray:
    """CIELAB of RGB colours, (..., 3) in 0 to 255, as each kind of vision sees them, (..., 4, 3): normal, then deficient."""
    channels = np.asarray(colors, dtype=np.float64) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    deficient = np.einsum("kij,...j->...ki", DEFICIENCIES, linear)
    seen = np.concatenate([linear[..., None, :], deficient], axis=-2).clip(0, 1)  # (..., 4, 3)
    x, y, z = np.moveaxis(_lightness_scale(seen @ RGB_TO_XYZ.T), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _lightness_scale(relative: np.ndarray) -> np.ndarray:
    return np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)


@cache
def _distinct_colors() -> np.ndarray:
    colors = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = seen_colors(colors)
    lightness, chroma = seen[:, 0, 0], np.hypot(seen[:, 0, 1], seen[:, 0, 2])
    usable = (lightness > LEAST_LIGHTNESS) & (lightness < MOST_LIGHTNESS) & (chroma > LEAST_CHROMA)
    colors, seen, chroma = colors[usable], seen[usable], chroma[usable]
    chosen = [int(chroma.argmax())]
    nearest = np.full(len(colors), np.inf)  # distance of each colour from the chosen ones
    while len(chosen) < DISTINCT_COLORS:
        distances = np.linalg.norm(seen - seen[chosen[-1]], axis=-1).min(axis=-1)
        nearest = np.minimum(nearest, distances)
        chosen.append(int(nearest.argmax()))
    return colors[chosen].astype(np.uint8)


__all__ = ["register_colors", "seen_colors"]
