"""Textures and colours of the synthetic data set.

A texture is a small grey tile; a part type prefers the same one everywhere, while the two colours that it runs between
are drawn anew from a palette which all parts share, and the background as far as the difficulty lets it. So structure
tells a part, colour does not, unless the difficulty gives part types colours of their own.
Tiles are made once per process; drawing a texture is one affine warp and one table look-up. Lengths are in image
widths, so that a picture looks alike at every size.
"""

from functools import cache

import cv2
import numpy as np

TILE_PX = 64
VARIANTS = 15  # of each texture that has a number of spokes, rays or quills, or is noise

# The part's own texture. Fitted textures are stretched over the part's frame, the others repeat.
PART_TEXTURES = {
    "head": "grain",
    "neck": "waves",
    "torso": "scales",
    "leg": "rings",
    "arm": "lines",
    "tail": "chevrons",
    "wing": "feathers",
    "fin": "rays",
    "wheel": "spokes",
    "window": "glint",
    "chassis": "bricks",
    "fuselage": "lattice",
    "frame": "dashes",
    "saddle": "dots",
    "handlebar": "checks",
}
FITTED_TEXTURES = ("feathers", "rays", "spokes", "eye")
REPEATING_TEXTURES = tuple(name for name in PART_TEXTURES.values() if name not in FITTED_TEXTURES)

# Length of one repeat in image widths: as fine as 64 px can show, coarser where a motif needs room.
PERIODS = {
    "grain": 0.34,
    "scales": 0.11,
    "bricks": 0.13,
    "lattice": 0.085,
    "glint": 0.16,
    "chevrons": 0.1,
    "waves": 0.075,
    "lines": 0.07,
    "dots": 0.07,
    "dashes": 0.1,
    "checks": 0.09,
    "rings": 0.075,
    "speckle": 1.0,
}


def edge(signal: np.ndarray, sharpness: float = 3.0) -> np.ndarray:
    """Turns a wave in [-1, 1] into soft-edged bands in [0, 1]."""
    return 0.5 + 0.5 * np.tanh(sharpness * signal)


def noise(seed: int, highest_frequency: int) -> np.ndarray:
    """Repeating smooth noise in [-1, 1], (TILE_PX, TILE_PX), with at most that many waves in a tile."""
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE_PX, 1 / TILE_PX), np.fft.fftfreq(TILE_PX, 1 / TILE_PX)))
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((TILE_PX, TILE_PX)))
    spectrum *= (frequencies > 0) * np.exp(-((frequencies / highest_frequency) ** 2))
    field = np.fft.ifft2(spectrum).real
    return np.clip(field / (2.5 * field.std()), -1, 1)


@cache
def tile(name: str, variant: int = 0) -> np.ndarray:
    """Grey values uint8 (TILE_PX, TILE_PX): columns run along the part, rows across.

    A repeating tile spans one period; a fitted one -1 to 1 in units of the part's reach, its origin in the middle.

    Args:
        name: A texture.
        variant: Below `VARIANTS`; sets the number of spokes, rays or quills, seeds noise, and means nothing else.
    """
    axis = (np.arange(TILE_PX) + 0.5) / TILE_PX
    u, v = np.meshgrid(axis, axis)
    values = _fitted(name, 2 * u - 1, 2 * v - 1, variant) if name in FITTED_TEXTURES else _repeating(name, u, v, variant)
    return np.round(255 * values).astype(np.uint8)


def _repeating(name: str, u: np.ndarray, v: np.ndarray, variant: int) -> np.ndarray:
    wave_u, wave_v = np.sin(2 * np.pi * u), np.sin(2 * np.pi * v)
    match name:
        case "rings":
            return edge(wave_u)
        case "lines":
            return edge(wave_v)
        case "chevrons":
            return edge(np.sin(2 * np.pi * (u + 2 * np.abs(v - 0.5))))
        case "waves":
            return edge(np.sin(2 * np.pi * (u + 0.18 * wave_v)), 1.0)
        case "checks":
            return edge(wave_u * wave_v, 6.0)
        case "dots":
            return edge(0.3 - np.hypot(u - 0.5, v - 0.5), 12.0)
        case "dashes":
            return edge(np.minimum(wave_u + 0.3, 0.8 - np.abs(2 * v - 1)), 4.0)
        case "lattice":
            return 1 - edge(np.maximum(np.cos(2 * np.pi * (u + v)), np.cos(2 * np.pi * (u - v))) - 0.6, 4.0)
        case "bricks":
            row = np.floor(2 * v)
            from_joint = 1 - 2 * np.maximum(np.abs((u + 0.5 * row) % 1 - 0.5), np.abs(2 * v % 1 - 0.5))
            return edge(from_joint - 0.25, 8.0) * np.where(row == 0, 1.0, 0.75)
        case "scales":
            row = np.floor(2 * v)
            radius = np.hypot((u + 0.5 * row) % 1 - 0.5, 0.5 * ((2 * v) % 1))
            return np.clip(1.9 * radius, 0, 1) ** 1.5
        case "glint":
            return edge(np.sin(2 * np.pi * (u + v)) + 0.3 * np.sin(4 * np.pi * (u + v)), 1.5)
        case "grain":
            return edge(noise(variant, 5), 2.5)
        case "clouds":
            return 0.5 + 0.5 * noise(variant, 2)
        case "speckle":
            return edge(noise(variant, 24), 2.0)
    raise ValueError(
        f"texture={name!r} is unknown; use one of {', '.join((*REPEATING_TEXTURES, *FITTED_TEXTURES))} or clouds, speckle."
    )


def _fitted(name: str, x: np.ndarray, y: np.ndarray, variant: int) -> np.ndarray:
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if name == "eye":
        return edge(radius - 0.55, 8.0)
    if name == "rays":
        return edge(np.sin((14 + 2 * (variant % 3)) * angle), 2.0)
    if name == "feathers":  # scalloped rows of quills
        return edge(np.sin(2 * np.pi * ((3.5 + 0.5 * (variant % 3)) * radius + 0.25 * np.cos(16 * angle))), 2.0)
    spokes = edge(np.cos((5 + variant % 3) * angle) - 0.3, 4.0)
    rim = np.where(radius < 0.2, 1.0, np.where(radius < 0.66, spokes, 1.0))
    return np.where(radius < 0.74, rim, 0.0)


def place_tile(texture: str, variant: int, tile_from_pixel: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Grey values of a patch, uint8 (height_px, width_px); `tile_from_pixel` (2, 3) maps its (x, y) to the tile's."""
    return cv2.warpAffine(
        tile(texture, variant),
        tile_from_pixel,
        (width_px, height_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if texture in FITTED_TEXTURES else cv2.BORDER_WRAP,
    )


DARK_GREY, LIGHT_GREY = 45.0, 215.0
DARK, LIGHT = (0.08, 0.4), (0.65, 1.0)  # values of a palette's colours

GOLDEN_ANGLE = 137.5  # degrees between the hues of one part type and the next; of fifteen the nearest two are 12.5 apart
HUE_SPREAD = 15.0  # degrees to either side, so that near hues overlap


def draw_palette(rng: np.random.Generator, colours: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark and light colours of one image, each float (colours, 3) RGB in 0..255; every hue may be either.

    With no colours they are one dark and one light grey, (1, 3) each, the same in all images.
    """
    if not colours:
        return np.full((1, 3), DARK_GREY), np.full((1, 3), LIGHT_GREY)

    return _shades(rng, colours, DARK, (0.1, 0.8)), _shades(rng, colours, LIGHT, (0.1, 0.8))


def typical_table(rng: np.random.Generator, part: str) -> np.ndarray:
    """A table from a dark to a light colour, both saturated and of the hue that is typical of a part type."""
    hue = GOLDEN_ANGLE * list(PART_TEXTURES).index(part) + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    return colour_table(np.concatenate([_shades(rng, 1, values, (0.4, 0.8), hue) for values in (DARK, LIGHT)]))


def _shades(
    rng: np.random.Generator,
    colours: int,
    values: tuple[float, float],
    saturations: tuple[float, float],
    hue: float | None = None,
) -> np.ndarray:
    """Colours float (colours, 3) RGB in 0..255, uniform within these ranges of HSV; of any hue if none is given, in degrees."""
    hues = rng.uniform(0, 360, colours) if hue is None else np.full(colours, hue % 360)
    hsv = np.stack([hues, rng.uniform(*saturations, colours), rng.uniform(*values, colours)], axis=1)
    return cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * 255


def colour_table(stops: np.ndarray) -> np.ndarray:
    """Look-up table uint8 (1, 256, 3) that runs through RGB colours (stops, 3) from black to white texture."""
    where = np.linspace(0, 255, len(stops))
    return np.stack([np.interp(np.arange(256), where, channel) for channel in stops.T], axis=1).round().astype(np.uint8)[None]


def colourise(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Grey (height, width) to colour (height, width, 3) through a table (1, 256, 3)."""
    return cv2.LUT(cv2.merge((values, values, values)), table)
