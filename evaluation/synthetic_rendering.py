"""Renders one image of the synthetic data set, with its exact part mask.

Edges: the scene is drawn without blending at twice the size, colours and part ids from the same polygons. The image is
the mean of each 2 x 2 block (anti-aliased); the mask takes the block's most frequent id, on a tie the one met first in
reading order.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from evaluation.synthetic_shapes import CATEGORIES, CATEGORY_NAMES, PART_NAMES, Shape, clutter, direction, rotation
from evaluation.synthetic_textures import (
    FITTED_TEXTURES,
    PART_TEXTURES,
    PERIODS,
    REPEATING_TEXTURES,
    TILE_PX,
    VARIANTS,
    colour_table,
    colourise,
    draw_palette,
    place_tile,
    typical_table,
)

SUPERSAMPLING = 2
MIN_IMAGE_SIZE_PX = 16
FIXED_POINT_BITS = 4  # OpenCV fills polygons with corners at 1/16 pixel
RIM_WIDTH = 0.006  # of dark outlines, in image widths; at least one pixel of the supersampled canvas
FLAT_GREY = 128  # of a flat ground
EYE_TABLE = colour_table(np.array([[0, 0, 0], [255, 255, 255]]))


@dataclass(frozen=True)
class Difficulty:
    """How much a picture hides its object; the defaults are "medium". Ranges are (low, high), lengths in image widths.

    Attributes:
        object_size: Longer side of the object's box.
        position_jitter: Share of the free room that the position may use; 0 centres the object.
        rotation_degrees: Largest turn to either side.
        palette_colours: Number of dark and of light colours in an image; the fewer, the more parts share each. With 0 all
            parts of all images have one dark and one light grey: texture and shape alone tell parts, and images, apart.
        texture_fidelity: Probability that a part wears its own type's texture and not any.
        colour_fidelity: Probability that a part wears its own type's hue, give or take `HUE_SPREAD`, and not the palette's
            colours.
        ground_colour: Share of the palette's colour that the ground and the things on it keep; at 0 they are grey, of the
            palette's brightness, so that what colours there are tell of the object.
        background_texture: Probability that the background repeats a part's texture instead of its own.
        background: Its own texture: "clouds" are smooth, "speckle" is fine noise, in which every place looks alike, "flat" is
            one grey in all images.
        background_period: Length over which clouds repeat; they have two waves in that length.
        distractors: Number of things behind the object, (least, most).
        distractor_size: Their radius, and the occluder's.
        distractor_texture: Probability that such a thing wears a part's texture instead of being smooth.
        occlusion: Probability of a thing in front of the object; its pixels are background.
        lighting: Strength of the light's gradient over the image.
        sensor_noise: Standard deviation in grey levels.
    """

    object_size: tuple[float, float] = (0.65, 0.92)
    position_jitter: float = 0.9
    rotation_degrees: float = 20
    palette_colours: int = 3
    texture_fidelity: float = 0.9
    colour_fidelity: float = 0.0
    ground_colour: float = 1.0
    background_texture: float = 0.4
    background: str = "clouds"
    background_period: float = 1.2
    distractors: tuple[int, int] = (1, 4)
    distractor_size: tuple[float, float] = (0.06, 0.14)
    distractor_texture: float = 0.3
    occlusion: float = 0.3
    lighting: float = 0.3
    sensor_noise: float = 3.0


EASY = Difficulty(
    object_size=(0.86, 0.97),
    position_jitter=0.5,
    rotation_degrees=10,
    palette_colours=2,
    texture_fidelity=1.0,
    ground_colour=0.0,
    background_texture=0.0,
    background="speckle",
    distractors=(0, 1),
    distractor_size=(0.05, 0.1),
    distractor_texture=0.0,
    occlusion=0.0,
    lighting=0.15,
    sensor_noise=0.0,
)
DIFFICULTIES = {
    "textures": replace(EASY, palette_colours=0, background="flat", distractors=(0, 0), lighting=0.1),
    "colours": replace(EASY, colour_fidelity=0.9),
    "easy": EASY,
    "medium": Difficulty(),
    "hard": Difficulty(
        object_size=(0.45, 0.75),
        position_jitter=1.0,
        rotation_degrees=35,
        texture_fidelity=0.75,
        background_texture=0.8,
        background_period=0.8,
        distractors=(4, 9),
        distractor_size=(0.06, 0.18),
        distractor_texture=0.8,
        occlusion=0.6,
        lighting=0.4,
        sensor_noise=6.0,
    ),
}


class SyntheticSample(NamedTuple):
    """An image uint8 (height, width, 3) RGB, its part ids uint8 (height, width) and the index of its category."""

    image: np.ndarray
    mask: np.ndarray
    category: int


def render(seed: int, index: int, image_size_px: int, difficulty: Difficulty | str = "medium") -> SyntheticSample:
    """Renders one image and its mask.

    Args:
        seed: Of the whole set, not negative.
        index: Of the image within the set, not negative.
        image_size_px: Side of the square image.
        difficulty: A preset's name or settings of one's own.

    Raises:
        ValueError: If an argument is out of range or the preset unknown.
    """
    settings = check_scene(seed, index, image_size_px, difficulty)
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    category = int(rng.integers(len(CATEGORIES)))
    canvas = Canvas(image_size_px * SUPERSAMPLING, settings, rng)
    canvas.paint_background()
    canvas.paint_clutter(rng.uniform(0, 1, (rng.integers(*settings.distractors, endpoint=True), 2)))
    shapes = fit_into_image(CATEGORIES[CATEGORY_NAMES[category]](rng), settings, rng)
    canvas.paint_object(shapes)
    if rng.random() < settings.occlusion:
        canvas.paint_clutter(occluder_centre(shapes, rng)[None])
    return SyntheticSample(light(reduce_image(canvas.colours), settings, rng), reduce_ids(canvas.ids), category)


def fit_into_image(shapes: list[Shape], settings: Difficulty, rng: np.random.Generator) -> list[Shape]:
    """Mirrors, turns, stretches, scales and moves an object so that all of it lies within the unit square."""
    stretch = rng.uniform(0.9, 1.1)
    mirror = rng.choice((-1, 1))
    turn = rotation(rng.uniform(-1, 1) * settings.rotation_degrees) @ np.diag([mirror * stretch, 1 / stretch])
    corners = np.concatenate([polygon for shape in shapes for polygon in shape.polygons]) @ turn.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = rng.uniform(*settings.object_size) / (high - low).max()
    room = 1 - scale * (high - low)
    shift = room * (0.5 + 0.5 * settings.position_jitter * rng.uniform(-1, 1, 2)) - scale * low
    return [shape.moved(scale * turn, shift) for shape in shapes]


def occluder_centre(shapes: list[Shape], rng: np.random.Generator) -> np.ndarray:
    """A random corner of a random shape: on the object, yet seldom in its middle."""
    shape = shapes[rng.integers(len(shapes))]
    polygon = shape.polygons[rng.integers(len(shape.polygons))]
    return polygon[rng.integers(len(polygon))]


class Canvas:
    """The scene at the supersampled size: colours uint8 (side, side, 3) and part ids uint8 (side, side)."""

    def __init__(self, side_px: int, settings: Difficulty, rng: np.random.Generator):
        self.side_px, self.settings, self.rng = side_px, settings, rng
        self.dark, self.light = draw_palette(rng, settings.palette_colours)
        self.colours = np.zeros((side_px, side_px, 3), np.uint8)
        self.ids = np.zeros((side_px, side_px), np.uint8)
        self.rim = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * max(1, round(RIM_WIDTH * side_px)) + 1,) * 2)

    def paint_background(self) -> None:
        """Ground over the whole canvas, its texture at any angle."""
        if self.settings.background == "flat":
            self.colours[:] = FLAT_GREY
            return
        square = 1.1 * np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) - 0.05
        ground = Shape("background", (square,), self.rng.uniform(0, 1, 2), direction(self.rng.uniform(0, 360)))
        if self.rng.random() < self.settings.background_texture:
            self.paint(ground, self.rng.choice(REPEATING_TEXTURES), self.fade(self.draw_table()))
        else:
            # The whole palette, dark and light in turn: whatever colours a part has, the ground has them too.
            palette = colour_table(np.stack([self.dark, self.light], axis=1).reshape(-1, 3))
            self.paint(ground, self.settings.background, self.fade(palette))

    def paint_clutter(self, centres: np.ndarray) -> None:
        """Things that count as background, at centres (things, 2)."""
        for centre in centres:
            thing = clutter(self.rng, centre, self.rng.uniform(*self.settings.distractor_size))
            self.paint(thing, self.draw_texture("clouds", 1 - self.settings.distractor_texture), self.fade(self.draw_table()))

    def paint_object(self, shapes: list[Shape]) -> None:
        """All shapes of a part type wear one texture in one pair of colours, eyes are black and white."""
        looks: dict[str, tuple[str, np.ndarray]] = {}
        for shape in shapes:
            if shape.part not in looks:
                texture = self.draw_texture(PART_TEXTURES[shape.part], self.settings.texture_fidelity)
                typical = self.settings.colour_fidelity > 0 and self.rng.random() < self.settings.colour_fidelity
                looks[shape.part] = texture, typical_table(self.rng, shape.part) if typical else self.draw_table()
            self.paint(shape, *(looks[shape.part] if shape.texture is None else (shape.texture, EYE_TABLE)))

    def draw_table(self) -> np.ndarray:
        """Colours of one thing: from one of the palette's dark colours to one of its light ones."""
        return colour_table(np.stack([self.rng.choice(self.dark), self.rng.choice(self.light)]))

    def fade(self, table: np.ndarray) -> np.ndarray:
        """A table's colours as far as the ground keeps them, their brightness as it is."""
        grey = cv2.cvtColor(cv2.cvtColor(table, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return cv2.addWeighted(table, self.settings.ground_colour, grey, 1 - self.settings.ground_colour, 0)

    def draw_texture(self, own: str, own_probability: float) -> str:
        """The given texture with a probability, else any that repeats."""
        return own if self.rng.random() < own_probability else self.rng.choice(REPEATING_TEXTURES)

    def paint(self, shape: Shape, texture: str, table: np.ndarray) -> None:
        """Fills a shape with a texture, darkens its rim and writes its id."""
        variant, fineness = int(self.rng.integers(VARIANTS)), self.rng.uniform(0.85, 1.2)
        inside, (left, top) = self.rasterise(shape.polygons)
        height, width = inside.shape
        if not inside.size:
            return
        tile_from_pixel = self.tile_from_pixel(shape, texture, fineness, np.array([left, top]))
        patch = colourise(place_tile(texture, variant, tile_from_pixel, height, width), table)
        patch[cv2.erode(inside, self.rim) == 0] //= 3
        cv2.copyTo(patch, inside, self.colours[top : top + height, left : left + width])
        self.ids[top : top + height, left : left + width][inside > 0] = PART_NAMES.index(shape.part)

    def rasterise(self, polygons: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels inside the union, 0 or 255, over the box that holds them; and the box's first corner (x, y)."""
        pixels = [polygon * self.side_px - 0.5 for polygon in polygons]  # pixel centres are whole numbers in OpenCV
        corners = np.concatenate(pixels)
        first = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, self.side_px)
        last = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, first, self.side_px)
        inside = np.zeros((last - first)[::-1], np.uint8)
        for polygon in pixels:
            fixed_point = np.round((polygon - first) * 2**FIXED_POINT_BITS).astype(np.int32)
            cv2.fillPoly(inside, [fixed_point], 255, shift=FIXED_POINT_BITS)
        return inside, first

    def tile_from_pixel(self, shape: Shape, texture: str, fineness: float, corner_px: np.ndarray) -> np.ndarray:
        """Affine map (2, 3) from pixels of the patch at `corner_px` to the tile, in the frame of the shape."""
        reach = float(np.hypot(*shape.along))
        along = shape.along / reach
        if texture in FITTED_TEXTURES:
            period = 2 * reach
        else:
            period = fineness * PERIODS.get(texture, self.settings.background_period)
        matrix = np.array([along, (-along[1], along[0])]) * (TILE_PX / period)  # unit square to tile
        shift = matrix @ ((corner_px + 0.5) / self.side_px - shape.origin) + (TILE_PX - 1) / 2
        return np.column_stack([matrix / self.side_px, shift])


def reduce_image(colours: np.ndarray) -> np.ndarray:
    """Mean of each 2 x 2 block: uint8 (2 height, 2 width, 3) -> (height, width, 3)."""
    return cv2.resize(colours, (colours.shape[1] // 2, colours.shape[0] // 2), interpolation=cv2.INTER_AREA)


def reduce_ids(ids: np.ndarray) -> np.ndarray:
    """Most frequent id of each 2 x 2 block, else the first: uint8 (2 height, 2 width) -> (height, width)."""
    a, b, c, d = ids[::2, ::2], ids[::2, 1::2], ids[1::2, ::2], ids[1::2, 1::2]
    without_a = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    return np.where((a == b) | (a == c) | (a == d), a, without_a)


def light(image: np.ndarray, settings: Difficulty, rng: np.random.Generator) -> np.ndarray:
    """Directional light, exposure and sensor noise; uint8 (height, width, 3) in and out."""
    height, width = image.shape[:2]
    across, down = settings.lighting * rng.uniform(-1, 1, 2)
    exposure = 1 + 0.5 * settings.lighting * rng.uniform(-1, 1)
    gain = exposure + across * np.linspace(-0.5, 0.5, width) + down * np.linspace(-0.5, 0.5, height)[:, None]
    lit = image * gain[..., None].astype(np.float32)
    if settings.sensor_noise:
        lit += settings.sensor_noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(lit, 0, 255).astype(np.uint8)


def check_scene(seed: int, index: int, image_size_px: int, difficulty: Difficulty | str) -> Difficulty:
    """Raises what `render` documents; returns the settings of the difficulty."""
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative; use 0, 1, 2 ...")
    if image_size_px < MIN_IMAGE_SIZE_PX:
        raise ValueError(f"image_size={image_size_px} must be at least {MIN_IMAGE_SIZE_PX} px; use 64 or more to see parts.")
    if isinstance(difficulty, Difficulty):
        return difficulty
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty={difficulty!r} must be a preset or a Difficulty; use {', '.join(DIFFICULTIES)}.")
    return DIFFICULTIES[difficulty]
