"""Articulated silhouettes of the synthetic data set: ten super-categories composed of shared parts.

A category is a function `(rng) -> list[Shape]`, back to front, that poses one object facing right. Units are free, x
points right, y down, angles are degrees from +x towards +y (90 is down); the renderer fits the result into the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

PART_NAMES = (
    "background",
    "head",
    "neck",
    "torso",
    "leg",
    "arm",
    "tail",
    "wing",
    "fin",
    "wheel",
    "window",
    "chassis",
    "fuselage",
    "frame",
    "saddle",
    "handlebar",
)

CIRCLE = np.stack([np.cos(np.arange(32) * np.pi / 16), np.sin(np.arange(32) * np.pi / 16)], axis=1)  # (32, 2)

# Outlines of plates in their own frame: x runs from the root (0) to the tip (1), the rows are x and y.
FISH = ((0.8, 0.45, 0, -0.5, -0.85, -0.85, -0.5, 0, 0.45), (0, -0.9, -1, -0.6, -0.2, 0.2, 0.6, 1, 0.9))
FISH_HEAD = ((0.48, 0.32, -0.1, 0.02, 0.04, -0.1, 0.32), (0.06, -0.5, -0.93, -0.4, 0.4, 0.93, 0.55))
FORKED_TAIL = ((-0.1, 0.5, 1, 0.7, 1, 0.5, -0.1), (-0.25, -0.75, -1, 0, 1, 0.75, 0.25))
SAIL = ((-0.1, 0.25, 0.9, 0.8, 1), (0.25, -0.8, -0.7, -0.2, 0.35))
PADDLE = ((0, 0.9, 1, 0), (-0.3, -0.6, 0.4, 0.4))
FAN = ((0, 1, 1.1, 1, 0), (-0.25, -0.6, 0, 0.6, 0.25))
BIRD_WING = ((0, 0.35, 0.75, 1, 0.72, 0.35, 0.02), (-0.25, -0.5, -0.4, 0, 0.3, 0.5, 0.35))
SWEPT_WING = ((0, 1, 1, 0), (-0.35, -0.15, 0.15, 0.5))
COCKPIT = ((0, 0.02, 0.12, 0.2), (0.04, -0.09, -0.07, 0.04))


Numbers = Sequence[float] | np.ndarray
Points = Sequence[np.ndarray] | np.ndarray


@dataclass(frozen=True)
class Shape:
    """One piece of a part: the union of simple polygons, and the frame in which its texture lies.

    Attributes:
        part: Name in `PART_NAMES`; distractors and occluders are "background".
        polygons: Each (points, 2); their union is the shape.
        origin: (2,) where the texture starts: a wheel's hub, the root of a wing, the hip of a leg.
        along: (2,) from the origin to the far end; its length is the reach of textures that are fitted, not repeated.
        texture: A texture that replaces the part's own (an eye on a head).
    """

    part: str
    polygons: tuple[np.ndarray, ...]
    origin: np.ndarray
    along: np.ndarray
    texture: str | None = None

    def moved(self, matrix: np.ndarray, shift: np.ndarray) -> "Shape":
        """Applies `matrix` (2, 2), then adds `shift` (2,)."""
        return replace(
            self,
            polygons=tuple(polygon @ matrix.T + shift for polygon in self.polygons),
            origin=matrix @ self.origin + shift,
            along=matrix @ self.along,
        )


# Primitives


def point(x: float, y: float) -> np.ndarray:
    """A point or an offset, (2,)."""
    return np.array([x, y], float)


def direction(degrees: float) -> np.ndarray:
    """Unit vector (2,) at an angle."""
    return point(np.cos(np.radians(degrees)), np.sin(np.radians(degrees)))


def rotation(degrees: float) -> np.ndarray:
    """Matrix (2, 2) that turns +x to `degrees`."""
    x, y = direction(degrees)
    return np.array([[x, -y], [y, x]])


def chain(start: np.ndarray, degrees: Numbers, lengths: Numbers) -> np.ndarray:
    """Joints (segments + 1, 2) of a limb whose segments point at absolute angles."""
    steps = [length * direction(angle) for angle, length in zip(degrees, lengths, strict=True)]
    return np.cumsum([start, *steps], axis=0)


def capsule(start: np.ndarray, end: np.ndarray, start_radius: float, end_radius: float) -> np.ndarray:
    """Tapered segment with round ends: the convex hull of two discs, (points, 2)."""
    discs = np.concatenate([start + start_radius * CIRCLE[::2], end + end_radius * CIRCLE[::2]])
    return cv2.convexHull(discs.astype(np.float32))[:, 0].astype(float)


def limb(part: str, joints: Points, radii: Numbers) -> Shape:
    """Tube through joints with a radius at each of them."""
    polygons = tuple(map(capsule, joints[:-1], joints[1:], radii[:-1], radii[1:]))
    return Shape(part, polygons, joints[0], joints[-1] - joints[0])


def ellipse(part: str, centre: np.ndarray, radii: Numbers, degrees: float = 0.0) -> Shape:
    """Ellipse whose first radius points at `degrees`."""
    turn = rotation(degrees)
    return Shape(part, ((CIRCLE * radii) @ turn.T + centre,), centre, turn[:, 0] * radii[0])


def smooth(corners: np.ndarray, steps: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through corners (K, 2), as a polygon (K * steps, 2)."""
    before, here, after, later = (np.roll(corners, shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 2 * here + (after - before) * t + (2 * before - 5 * here + 4 * after - later) * t**2
    return ((curve + (3 * here - before - 3 * after + later) * t**3) / 2).reshape(-1, 2)


def plate(
    part: str,
    outline: tuple[Numbers, Numbers],
    root: np.ndarray,
    degrees: float,
    scale: Numbers,
    rounded: bool = True,
) -> Shape:
    """Flat part (wing, fin, body shell): an outline (x, y), scaled, turned to `degrees` and put at `root`."""
    turn = rotation(degrees)
    corners = np.array(outline, float).T
    polygon = ((smooth(corners) if rounded else corners) * scale) @ turn.T + root
    return Shape(part, (polygon,), root, turn[:, 0] * scale[0])


# Parts that several categories share


def leg(rng: np.random.Generator, hip: np.ndarray, length: float, radius: float) -> Shape:
    """Thigh, shin and a foot that points forward; hip and knee bend at random."""
    thigh, shin = 90 + rng.uniform(-25, 25, 2)
    joints = chain(hip, (thigh, shin, 15), (0.5 * length, 0.45 * length, 0.2 * length))
    return limb("leg", joints, (radius, 0.8 * radius, 0.65 * radius, 0.55 * radius))


def eye(centre: np.ndarray, radius: float) -> Shape:
    """Belongs to the head and looks the same on all of them."""
    return replace(ellipse("head", centre, (radius, radius)), texture="eye")


def skull(centre: np.ndarray, radius: float, facing: float, muzzle: float, base: float = 0.75, tip: float = 0.45) -> Shape:
    """Round skull with a muzzle that reaches `muzzle` radii beyond it; `base` and `tip` are the muzzle's, in radii."""
    forward = direction(facing)
    chin = rotation(90) @ forward
    nose = centre + radius * ((1 + muzzle) * forward + 0.15 * chin)
    snout = capsule(centre + 0.3 * radius * forward, nose, base * radius, tip * radius)
    return Shape("head", (centre + CIRCLE * radius, snout), centre, radius * forward)


def profile(head: Shape, ears: float = 0.0) -> list[Shape]:
    """A skull seen from the side: its one eye, and two pointed ears of that height in radii (0: none)."""
    radius = np.hypot(*head.along)
    frame = np.stack([head.along, rotation(-90) @ head.along])  # (2, 2): rows are forward and up
    pointed = [
        head.origin + np.array([(back, 0.6), (back - 0.2, 1 + ears), (back - 0.6, 0.5)]) @ frame
        for back in (0.1, -0.3)
        if ears > 0
    ]
    return [
        replace(head, polygons=(*head.polygons, *pointed)),
        eye(head.origin + point(0.3, 0.3) @ frame, 0.36 * radius),
    ]


def wheel(rng: np.random.Generator, hub: np.ndarray, radius: float) -> Shape:
    """Disc; tyre and spokes come with its texture, turned to a random angle."""
    return ellipse("wheel", hub, (radius, radius), rng.uniform(0, 360))


def pane(left: tuple[float, float], right: tuple[float, float], top: float, sill: float) -> Shape:
    """Window with slanted sides, each given as (x at the sill, x at the top)."""
    outline = ((left[0], left[1], right[1], right[0]), (sill, top, top, sill))
    return plate("window", outline, point(0, 0), 0, (1, 1), rounded=False)


# Animals


def bird(rng: np.random.Generator) -> list[Shape]:
    """Standing with a folded wing or taking off with both raised; beak, tail feathers, thin legs."""
    tilt, girth = rng.uniform(-25, 5), rng.uniform(0.28, 0.37)
    turn = rotation(tilt)
    chest, rump, shoulder = (turn @ place for place in ((0.38, -0.12), (-0.42, -0.02), (0.2, -0.1)))
    neck = limb("neck", chain(chest, [rng.uniform(-75, -35)], [rng.uniform(0.28, 0.5)]), (0.18, 0.13))
    head = skull(neck.origin + neck.along, 0.2, rng.uniform(-15, 20), rng.uniform(0.7, 1.3), base=0.4, tip=0.06)
    tail = plate("tail", FAN, rump, 180 + tilt + rng.uniform(-20, 20), (rng.uniform(0.45, 0.7), 0.4), rounded=False)
    legs = [leg(rng, turn @ point(x, 0.7 * girth), rng.uniform(0.4, 0.6), 0.075) for x in (-0.08, 0.12)]
    if rng.random() < 0.5:
        lift = rng.uniform(-125, -85)
        far = [plate("wing", BIRD_WING, shoulder, lift + 35, (0.85, 0.4))]
        near = plate("wing", BIRD_WING, shoulder, lift, (rng.uniform(0.8, 1.0), 0.5))
    else:
        far, near = [], plate("wing", BIRD_WING, shoulder, 180 + tilt + rng.uniform(-15, 5), (0.72, 0.42))
    return [*far, tail, *legs, neck, ellipse("torso", point(0, 0), (0.55, girth), tilt), near, *profile(head)]


def fish(rng: np.random.Generator) -> list[Shape]:
    """Swimming: head behind a gill arc, forked tail, fins above, below and on the flank."""
    height, reach = rng.uniform(0.3, 0.55), rng.uniform(0.35, 0.55)
    torso = plate("torso", FISH, point(0, 0), 0, (1, height))
    head = plate("head", FISH_HEAD, point(0.55, 0), 0, (1, height))
    tail = plate("tail", FORKED_TAIL, point(-0.75, 0), 180 + rng.uniform(-20, 20), (0.5, rng.uniform(0.3, 0.45)))
    dorsal = plate("fin", SAIL, point(0.3, -0.9 * height), 180, (0.85, -reach))
    pelvic = plate("fin", SAIL, point(0.2, 0.85 * height), 180, (rng.uniform(0.4, 0.6), reach))
    flank = plate("fin", PADDLE, point(0.3, 0.15 * height), 180 + rng.uniform(-55, 5), (0.4, 0.22))
    return [tail, dorsal, pelvic, torso, head, eye(point(0.76, -0.22 * height), 0.085), flank]


def quadruped(rng: np.random.Generator) -> list[Shape]:
    """From dog to giraffe: neck and leg lengths vary, each leg swings."""
    half, girth, reach = rng.uniform(0.42, 0.62), rng.uniform(0.25, 0.35), rng.uniform(0.5, 0.85)
    hips, shoulders = point(-half, 0), point(half, rng.uniform(-0.1, 0.04))
    legs = [leg(rng, end + point(x, 0.5 * girth), reach, 0.4 * girth) for x in (-0.13, 0.1) for end in (hips, shoulders)]
    rise, stem = rng.uniform(-75, -35), rng.uniform(0.4, 0.75)
    neck = limb("neck", chain(shoulders + point(0.05, -0.1), [rise], [stem]), (0.65 * girth, 0.45 * girth))
    head = skull(neck.origin + neck.along, 0.2, rng.uniform(-5, 40), rng.uniform(0.4, 0.9))
    swish = rng.uniform(-40, 40, 2)
    tail = limb("tail", chain(hips + point(-0.1, -0.1), (180 + swish[0], 150 + swish[1]), (0.32, 0.32)), (0.11, 0.09, 0.06))
    torso = limb("torso", (hips, (hips + shoulders) / 2, shoulders), (0.95 * girth, 0.88 * girth, girth))
    return [*legs[:2], tail, neck, torso, *legs[2:], *profile(head, ears=rng.uniform(0.4, 1.0))]


def snake(rng: np.random.Generator) -> list[Shape]:
    """A travelling wave that thins out into a tail."""
    radius, waves = rng.uniform(0.14, 0.19), rng.uniform(0.8, 1.6)
    position = np.linspace(0, 1, 25)  # from the neck to the tip of the tail
    sway = np.sin(2 * np.pi * (waves * position + rng.random())) * (1 - 0.4 * position)
    spine = np.stack([1 - 2 * position, rng.uniform(0.3, 0.5) * sway], axis=1)  # (25, 2)
    facing = float(np.degrees(np.arctan2(*(spine[0] - spine[1])[::-1])))
    torso = limb("torso", spine[:18], np.linspace(0.85, 1.05, 18) * radius)
    tail = limb("tail", spine[17:], np.linspace(1.0, 0.3, 8) * radius)
    return [tail, torso, *profile(skull(spine[0] + 0.1 * direction(facing), 1.4 * radius, facing, 0.35))]


def lizard(rng: np.random.Generator) -> list[Shape]:
    """Seen from above: legs splayed to both sides, the spine bends on into a long tail."""
    bend, curl, facing = rng.uniform(-25, 25), rng.uniform(-35, 35), rng.uniform(-20, 20)
    spine = chain(point(0.45, 0), (180 - bend / 2, 180 + bend / 2), (0.45, 0.45))
    tail = limb("tail", chain(spine[-1], 180 + bend / 2 + curl * np.arange(4) / 2, [0.25] * 4), (0.18, 0.16, 0.12, 0.09, 0.05))
    legs = []
    for root, lean in ((spine[0], -30), (spine[2], 35)):
        for side in (-1, 1):
            thigh, shin = 90 + lean + rng.uniform(-25, 25), 90 + lean + rng.choice((-70, 70)) + rng.uniform(-15, 15)
            legs.append(limb("leg", chain(root, (side * thigh, side * shin), (0.42, 0.28)), (0.11, 0.09, 0.08)))
    head = skull(spine[0] + 0.33 * direction(facing), 0.21, facing, 0.7)
    eyes = [eye(head.origin + rotation(facing) @ (0.04, side * 0.12), 0.075) for side in (-1, 1)]
    return [tail, *legs, limb("torso", spine, (0.2, 0.28, 0.2)), head, *eyes]


def biped(rng: np.random.Generator) -> list[Shape]:
    """A figure seen from the front, arms in any gesture; some have a monkey's tail."""
    girth, tail_side = rng.uniform(0.18, 0.25), rng.choice((-1, 1))
    hips, chest = point(0, 0.3), point(rng.uniform(-0.1, 0.1), -0.22)
    legs = [leg(rng, hips + point(side * 0.7 * girth, 0.05), rng.uniform(0.65, 0.85), 0.12) for side in (-1, 1)]
    arms = []
    for side in (-1, 1):
        upper, lower = 90 - side * (90 - rng.uniform(-40, 70)), 90 - side * (90 - rng.uniform(-80, 80))
        shoulder = chest + point(side * 1.1 * girth, -0.05)
        arms.append(limb("arm", chain(shoulder, (upper, lower), (0.36, 0.34)), (0.1, 0.09, 0.075)))
    curl = chain(hips, 90 - tail_side * np.array([60, 100, 170]), (0.38, 0.3, 0.25))
    tail = [limb("tail", curl, (0.08, 0.08, 0.07, 0.05))] if rng.random() < 0.4 else []
    head = skull(chest + point(rng.uniform(-0.08, 0.08), -0.54), 0.22, 90, -0.15)
    eyes = [eye(head.origin + point(side * 0.09, -0.03), 0.07) for side in (-1, 1)]
    neck = limb("neck", (chest - point(0, 0.15), head.origin), (0.1, 0.1))
    return [*tail, *legs, neck, limb("torso", (hips, chest), (0.9 * girth, 1.25 * girth)), *arms, head, *eyes]


# Vehicles


def car(rng: np.random.Generator) -> list[Shape]:
    """Hatchback to saloon from the side: the cabin's ends and the roof move."""
    rear, front, roof = rng.uniform(-0.95, -0.6), rng.uniform(0.4, 0.6), rng.uniform(-0.64, -0.5)
    back, screen = rear + rng.uniform(0.1, 0.22), front - rng.uniform(0.25, 0.4)
    shell = (
        (-1, -1.02, -0.96, rear, back, screen, front, 0.92, 1.02, 1),
        (0.2, -0.05, -0.16, -0.18, roof, roof, -0.16, -0.08, 0.04, 0.2),
    )
    middle, top, sill = (back + screen) / 2, roof + 0.07, -0.16
    windows = [
        pane((rear + 0.1, back + 0.05), (middle - 0.04, middle - 0.04), top, sill),
        pane((middle + 0.04, middle + 0.04), (front - 0.1, screen - 0.03), top, sill),
    ]
    radius = rng.uniform(0.21, 0.27)
    wheels = [wheel(rng, point(x, 0.2), radius) for x in (-0.58, 0.58)]
    return [plate("chassis", shell, point(0, 0), 0, (1, 1), rounded=False), *windows, *wheels]


def bus(rng: np.random.Generator) -> list[Shape]:
    """A long box with a row of panes on two or three axles."""
    roof, panes = 0.25 - rng.uniform(0.65, 0.9), int(rng.integers(3, 6))
    shell = ((-1, -1, -0.92, 0.9, 0.98, 1.02), (0.25, roof + 0.08, roof, roof, roof + 0.08, 0.25))
    pitch, top, sill = 1.8 / panes, roof + 0.1, 0.55 * roof + 0.12
    lefts = -0.9 + pitch * np.arange(panes) + 0.04
    windows = [pane((left, left), (left + pitch - 0.08, left + pitch - 0.08), top, sill) for left in lefts]
    wheels = [wheel(rng, point(x, 0.27), 0.2) for x in ((-0.6, 0.62) if rng.random() < 0.6 else (-0.74, -0.3, 0.62))]
    return [plate("chassis", shell, point(0, 0), 0, (1, 1), rounded=False), *windows, *wheels]


def bicycle(rng: np.random.Generator) -> list[Shape]:
    """Two wheels, a diamond of tubes, saddle and handlebar."""
    radius, tube = rng.uniform(0.4, 0.48), 0.06
    rear, front, pedals = point(-0.6, 0), point(0.6, 0), point(rng.uniform(-0.12, 0), 0.06)
    seat, stem = point(rng.uniform(-0.32, -0.2), -0.55), point(rng.uniform(0.36, 0.46), -0.6)
    joint, fork = 0.8 * seat + 0.2 * pedals, 0.75 * stem + 0.25 * front
    diamond = limb("frame", (joint, rear, pedals, joint, fork, pedals), (tube,) * 6)
    post, blades = limb("frame", (pedals, seat), (tube, tube)), limb("frame", (front, stem), (tube, tube))
    saddle = limb("saddle", (seat - point(0.15, 0.02), seat + point(0.18, 0)), (0.1, 0.06))
    grip = chain(stem - point(0.12, 0), (-20, rng.uniform(30, 120)), (0.27, 0.18))
    wheels = [wheel(rng, hub, radius) for hub in (rear, front)]
    return [*wheels, diamond, blades, post, saddle, limb("handlebar", grip, (0.07, 0.07, 0.07))]


def aeroplane(rng: np.random.Generator) -> list[Shape]:
    """An airliner from the side and a little above: swept wings, tail fins, windows, sometimes its wheels out."""
    radius, sweep, span = rng.uniform(0.15, 0.2), rng.uniform(100, 130), rng.uniform(0.6, 0.85)
    spine = np.array([(-1, -0.1), (-0.5, -0.02), (0.6, 0), (0.92, 0.04)])
    fuselage = limb("fuselage", spine, (0.35 * radius, 0.9 * radius, radius, 0.55 * radius))
    near = plate("wing", SWEPT_WING, point(0.12, 0.3 * radius), sweep, (span, 0.55), rounded=False)
    far = plate("wing", SWEPT_WING, point(0.2, -0.6 * radius), -sweep, (0.6 * span, -0.4), rounded=False)
    upright = plate("fin", SWEPT_WING, point(-0.78, -0.1), -rng.uniform(110, 130), (0.5, -0.42), rounded=False)
    level = plate("fin", SWEPT_WING, point(-0.82, -0.04), rng.uniform(135, 160), (0.4, 0.3), rounded=False)
    row = [ellipse("window", point(x, -0.35 * radius), (0.075, 0.07)) for x in (-0.42, -0.2, 0.02, 0.24, 0.46)]
    cockpit = plate("window", COCKPIT, point(0.7, -0.3 * radius), 0, (1, 1), rounded=False)
    gear = [wheel(rng, point(x, radius + 0.1), 0.12) for x in (-0.12, 0.62)] if rng.random() < 0.5 else []
    return [far, *gear, upright, fuselage, level, cockpit, *row, near]


ANIMALS = (bird, fish, quadruped, snake, lizard, biped)
VEHICLES = (car, bus, bicycle, aeroplane)
CATEGORIES: dict[str, Callable[[np.random.Generator], list[Shape]]] = {pose.__name__: pose for pose in ANIMALS + VEHICLES}
CATEGORY_NAMES = tuple(CATEGORIES)


# Clutter


def clutter(rng: np.random.Generator, centre: np.ndarray, radius: float) -> Shape:
    """A distractor that belongs to no category: a blob, a jagged polygon or a bent stick."""
    kind = rng.choice(("blob", "polygon", "stick"))
    if kind == "stick":
        joints = chain(centre, rng.uniform(0, 360) + np.cumsum(rng.uniform(-60, 60, 2)), (radius, radius))
        return limb("background", joints - (joints[-1] - centre) / 2, rng.uniform(0.15, 0.4, 3) * radius)
    corners = int(rng.integers(5, 9))
    angles = np.arange(corners) * 2 * np.pi / corners
    reach = rng.uniform(0.5, 1.0, corners)
    outline = (reach * np.cos(angles), reach * np.sin(angles))
    return plate("background", outline, centre, rng.uniform(0, 360), (radius, radius), rounded=kind == "blob")
