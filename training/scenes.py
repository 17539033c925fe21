"""Drawn scenes of coloured shapes, and questions about them with the boxes of what they refer to.

A scene is laid out on a canvas of 96 x 96 units and can be drawn at any size: the same seed gives the same objects.
Shapes are drawn from their signed distance, so edges are antialiased at every size.

>>> scene = draw_scene(7)
>>> scene.image.shape, scene.image.dtype
((96, 96, 3), dtype('uint8'))
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CANVAS = 96.0
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
# Combinations that no training scene shows: they measure whether colour and shape are understood separately.
HELD_OUT = frozenset(
    {
        ("orange", "circle"),
        ("purple", "square"),
        ("white", "triangle"),
        ("green", "star"),
        ("yellow", "cross"),
        ("black", "ring"),
    }
)
# hue in degrees, saturation, value: the range that a name covers
_COLOR_RANGES = {
    "red": ((-10.0, 7.0), (0.78, 1.0), (0.70, 1.0)),
    "green": ((92.0, 150.0), (0.55, 1.0), (0.42, 1.0)),
    "blue": ((205.0, 243.0), (0.65, 1.0), (0.55, 1.0)),
    "yellow": ((49.0, 62.0), (0.70, 1.0), (0.85, 1.0)),
    "purple": ((268.0, 302.0), (0.50, 1.0), (0.42, 0.85)),
    "orange": ((20.0, 39.0), (0.85, 1.0), (0.88, 1.0)),
    "white": ((0.0, 360.0), (0.0, 0.05), (0.92, 1.0)),
    "black": ((0.0, 360.0), (0.0, 0.3), (0.0, 0.12)),
}
_MIN_CONTRAST = 0.34  # RGB distance (0 to sqrt 3) that an object keeps from every colour of its background

Box = tuple[float, float, float, float]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class SceneObject:
    """One object: names, place and size in canvas units, colour as RGB in [0, 1]."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]
    style: str  # "filled", "outline" or "bordered"
    detail: float  # the star's inner radius, the cross's and the ring's thickness, as a share of the radius
    border_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def vertices(self) -> FloatArray:
        """Corners [N, 2] in canvas units; for circle and ring the four extreme points."""
        r = self.radius
        if self.shape in ("circle", "ring"):
            return np.array([[-r, 0], [r, 0], [0, -r], [0, r]], np.float32) + np.array([self.x, self.y], np.float32)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        rotation = np.array([[cos, sin], [-sin, cos]], np.float32)
        return _outline(self.shape, r, self.detail) @ rotation + np.array([self.x, self.y], np.float32)

    def box(self) -> Box:
        """(left, top, right, bottom) in canvas units; right and bottom are exclusive edges."""
        corners = self.vertices()
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Scene:
    """A drawn scene. `boxes[i]` is object i's (left, top, right, bottom) in pixels of `image`."""

    seed: int
    image: NDArray[np.uint8]  # [size, size, 3]
    objects: tuple[SceneObject, ...]
    boxes: tuple[Box, ...]
    masks: FloatArray = field(repr=False)  # [objects, size, size], 0 to 1: silhouettes, holes of outlines filled


@dataclass(frozen=True)
class Question:
    """A question with its answer, the boxes it refers to (pixels; none for absent objects) and their object numbers.

    `named` are the objects that its words name: the targets, but for a relation the object that the target stands beside.
    """

    text: str
    kind: str
    answer: str
    boxes: tuple[Box, ...]
    targets: tuple[int, ...]
    named: tuple[int, ...]


def _outline(shape: str, r: float, detail: float) -> FloatArray:
    """Corners [N, 2] of a polygon around the origin, clockwise on screen."""
    if shape == "square":
        a = 0.84 * r
        points = [(-a, -a), (a, -a), (a, a), (-a, a)]
    elif shape == "triangle":
        points = [
            (1.08 * r * math.sin(t), -1.08 * r * math.cos(t) + 0.2 * r) for t in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)
        ]
    elif shape == "star":
        points = []
        for i in range(10):
            length = 1.08 * r * (1.0 if i % 2 == 0 else detail)
            points.append((length * math.sin(i * math.pi / 5), -length * math.cos(i * math.pi / 5)))
    else:
        w = detail * r
        points = [(-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w), (w, r), (-w, r), (-w, w), (-r, w), (-r, -w), (-w, -w)]
    return np.array(points, np.float32)


def _polygon_distance(x: FloatArray, y: FloatArray, corners: FloatArray) -> FloatArray:
    """Signed distance (inside negative) of points [H, W] from a closed polygon [N, 2]."""
    a = corners[:, None, None, :]  # [N, 1, 1, 2]
    e = np.roll(corners, -1, axis=0)[:, None, None, :] - a
    px, py = x[None] - a[..., 0], y[None] - a[..., 1]  # [N, H, W]
    t = np.clip((px * e[..., 0] + py * e[..., 1]) / (e[..., 0] ** 2 + e[..., 1] ** 2), 0.0, 1.0)
    distance = np.sqrt(((px - t * e[..., 0]) ** 2 + (py - t * e[..., 1]) ** 2).min(axis=0))
    b_y = a[..., 1] + e[..., 1]
    crosses = (a[..., 1] > y[None]) != (b_y > y[None])
    slope = np.where(e[..., 1] == 0, 1.0, e[..., 1])
    to_right = x[None] < a[..., 0] + e[..., 0] * (y[None] - a[..., 1]) / slope
    inside = (crosses & to_right).sum(axis=0) % 2 == 1
    return np.where(inside, -distance, distance).astype(np.float32)


def _paint(image: FloatArray, mask: FloatArray, thing: SceneObject, scale: float) -> None:
    """Draw one object into image [S, S, 3] and its silhouette into mask [S, S]."""
    size = image.shape[0]
    reach = 1.2 * thing.radius + 2.0
    x0, x1 = max(int((thing.x - reach) * scale), 0), min(int((thing.x + reach) * scale) + 1, size)
    y0, y1 = max(int((thing.y - reach) * scale), 0), min(int((thing.y + reach) * scale) + 1, size)
    y, x = np.meshgrid(
        (np.arange(y0, y1, dtype=np.float32) + 0.5) / scale,
        (np.arange(x0, x1, dtype=np.float32) + 0.5) / scale,
        indexing="ij",
    )
    if thing.shape in ("circle", "ring"):
        silhouette = np.hypot(x - thing.x, y - thing.y) - thing.radius
    else:
        silhouette = _polygon_distance(x, y, thing.vertices())
    distance = silhouette
    if thing.shape == "ring":
        width = thing.detail * thing.radius
        distance = np.abs(silhouette + width / 2) - width / 2
    elif thing.style == "outline":
        width = max(2.0, 0.2 * thing.radius)
        distance = np.abs(silhouette + width / 2) - width / 2
    alpha = np.clip(0.5 - distance * scale, 0.0, 1.0)[..., None]
    paint = np.array(thing.rgb, np.float32)
    window = image[y0:y1, x0:x1]
    if thing.style == "bordered":
        inner = np.clip(0.5 - (distance + 1.0) * scale, 0.0, 1.0)[..., None]
        paint = inner * paint + (1 - inner) * np.array(thing.border_rgb, np.float32)
    window[:] = window + alpha * (paint - window)
    mask[y0:y1, x0:x1] = np.clip(0.5 - silhouette * scale, 0.0, 1.0)


def _stretch(grid: FloatArray, size: int) -> FloatArray:
    """Bilinear enlargement of a coarse grid [g, g, ...] to [size, size, ...]."""
    g = grid.shape[0]
    at = np.clip((np.arange(size, dtype=np.float32) + 0.5) * g / size - 0.5, 0, g - 1)
    low = np.minimum(at.astype(np.int64), g - 2)
    f = (at - low).reshape((-1,) + (1,) * (grid.ndim - 1)).astype(np.float32)
    rows = grid[low] * (1 - f) + grid[low + 1] * f
    f = f.reshape((1, -1) + (1,) * (grid.ndim - 2))
    return np.asarray(rows[:, low] * (1 - f) + rows[:, low + 1] * f, np.float32)


def _background(rng: np.random.Generator, size: int) -> tuple[FloatArray, list[FloatArray]]:
    """A background [size, size, 3] in [0, 1], and the colours it runs through."""

    def pick() -> FloatArray:
        if rng.random() < 0.3:
            return np.full(3, rng.choice([0.0, 0.08, 0.25, 0.5, 0.75, 0.9, 1.0]), np.float32)
        return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.65), rng.uniform(0.12, 1.0)), np.float32)

    first = pick()
    second = pick() if rng.random() < 0.35 else np.clip(first + rng.normal(0, 0.12, 3), 0, 1).astype(np.float32)
    kind = rng.integers(7)
    c = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = np.meshgrid(c, c, indexing="ij")
    angle, phase = rng.uniform(0, 2 * math.pi), rng.uniform(0, 1)
    along = np.float32(math.cos(angle)) * (x - 0.5) + np.float32(math.sin(angle)) * (y - 0.5)
    if kind == 0:
        mix = np.zeros_like(x)
    elif kind in (1, 2):
        mix = np.clip(along + 0.5, 0, 1)
    elif kind == 3:
        mix = np.clip(np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8)) * 1.3, 0, 1)
    elif kind == 4:
        mix = _stretch(rng.random((int(rng.integers(3, 9)),) * 2, dtype=np.float32), size)
    elif kind == 5:
        mix = 0.5 + 0.5 * np.sin(2 * math.pi * (along * rng.uniform(3, 12) + phase))
    else:
        cells = int(rng.integers(3, 11))
        mix = ((np.floor(x * cells) + np.floor(y * cells)) % 2).astype(np.float32)
    if kind in (5, 6) and rng.random() < 0.6:
        second = np.clip(first + rng.normal(0, 0.08, 3), 0, 1).astype(np.float32)
    image = first + mix[..., None] * (second - first)
    grain = rng.choice([0.0, 0.02, 0.04, 0.07])
    if grain:
        if rng.random() < 0.5:
            noise = rng.standard_normal((96, 96, 1), dtype=np.float32)
        else:
            noise = rng.standard_normal((96, 96, 3), dtype=np.float32)
        image = image + np.float32(grain) * (noise if size == 96 else _stretch(noise, size))
    return image.astype(np.float32), [first, second, (first + second) / 2]


def _pick_rgb(rng: np.random.Generator, color: str, against: list[FloatArray]) -> tuple[float, float, float] | None:
    (h0, h1), (s0, s1), (v0, v1) = _COLOR_RANGES[color]
    for _ in range(3):
        h, s, v = rng.uniform(h0, h1), rng.uniform(s0, s1), rng.uniform(v0, v1)
        rgb = colorsys.hsv_to_rgb((h % 360) / 360, s, v)
        if all(float(np.linalg.norm(np.array(rgb) - other)) > _MIN_CONTRAST for other in against):
            return rgb
    return None


def _pick_objects(
    rng: np.random.Generator, background: list[FloatArray], combinations: str, count: int
) -> list[SceneObject]:
    things: list[SceneObject] = []
    radius_top = {1: 20.0, 2: 19.0, 3: 18.0, 4: 16.0}.get(count, 14.5)
    for attempt in range(60 * count):
        if len(things) == count:
            break
        shape, color = str(rng.choice(SHAPES)), str(rng.choice(COLORS))
        if things and rng.random() < 0.35:
            shape = things[int(rng.integers(len(things)))].shape
        elif things and rng.random() < 0.45:
            color = things[int(rng.integers(len(things)))].color
        if combinations == "held_out" and not things:
            held = sorted(HELD_OUT)
            color, shape = held[int(rng.integers(len(held)))]
        if combinations == "train" and (color, shape) in HELD_OUT:
            continue
        radius = float(rng.uniform(8.0, radius_top if attempt < 30 * count else 10.0))
        x, y = (float(rng.uniform(1.1 * radius + 0.5, CANVAS - 1.1 * radius - 0.5)) for _ in range(2))
        if any(math.hypot(x - o.x, y - o.y) < 0.97 * (radius + o.radius) + 1.0 for o in things):
            continue
        rgb = _pick_rgb(rng, color, background)
        if rgb is None:
            continue
        chance = rng.random()
        style = "filled"
        if chance < 0.22 and shape not in ("circle", "ring"):
            style = "outline"
        elif chance > 0.85 and shape != "ring":
            style = "bordered"
        low, high = {"star": (0.38, 0.5), "cross": (0.26, 0.38), "ring": (0.24, 0.42)}.get(shape, (0.0, 1.0))
        shade = 0.0 if sum(rgb) > 1.4 else 1.0
        detail, angle = float(rng.uniform(low, high)), float(rng.uniform(-0.35, 0.35))
        things.append(SceneObject(shape, color, x, y, radius, angle, rgb, style, detail, (shade, shade, shade)))
    return things


def draw_scene(seed: int, size: int = 96, combinations: str = "all", objects: int | None = None) -> Scene:
    """Draw the scene of a seed.

    Parameters
    ----------
    seed : int
        Decides everything; the same seed gives the same objects at every size.
    size : int
        Side of the square image in pixels.
    combinations : {"all", "train", "held_out"}
        "train" never shows the pairs of `HELD_OUT`, "held_out" shows at least one of them, "all" does not care.
    objects : int, optional
        How many objects (1 to 6); by default 3 to 6, drawn.

    Returns
    -------
    Scene
        Image uint8 [size, size, 3], objects, boxes in pixels and silhouettes.

    Raises
    ------
    ValueError
        For an unknown `combinations`, a `size` under 16 or `objects` outside 1 to 6.
    """
    if combinations not in ("all", "train", "held_out"):
        raise ValueError(f"combinations is {combinations!r}, expected 'all', 'train' or 'held_out'")
    if size < 16:
        raise ValueError(f"size is {size}, expected at least 16 pixels")
    if objects is not None and not 1 <= objects <= 6:
        raise ValueError(f"objects is {objects}, expected 1 to 6")
    rng = np.random.default_rng([seed, ("all", "train", "held_out").index(combinations)])
    count = int(rng.integers(3, 7)) if objects is None else objects
    least = min(3, count)
    while True:
        image, colors = _background(rng, size)
        things = _pick_objects(rng, colors, combinations, count)
        if len(things) >= least:
            break
    scale = size / CANVAS
    masks = np.zeros((len(things), size, size), np.float32)
    for thing, mask in zip(things, masks):
        _paint(image, mask, thing, scale)
    boxes = tuple(tuple(scale * v for v in thing.box()) for thing in things)
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return Scene(seed, pixels, tuple(things), boxes, masks)  # type: ignore[arg-type]
