"""Figures in pixels: the same plan that matplotlib draws, a good deal faster."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, ImageDraw

from .._base.arguments import real_number
from .._base.resampling import grid_weights, spread
from ..heatmaps._grid import largest_patches
from ..heatmaps._maps import Maps
from ._look import FORMATS, Kind, Look, View, is_cropped, view_of
from ._panels import EMPTY, FAINT, INK, Panel, contours_of, frames_of, weight_of
from ._pixels import colorize, fade_in, to_unit
from ._png import png_of
from ._sheet import SMALL_SIZE, Bar, Sheet, sheet_of
from ._writing import can_write, write

MAX_SIDE, MAX_PIXELS = 65_500, 300_000_000  # of a figure
PATCH_LINE, FRAME_LINE, SEEN_LINE, CONTOUR_LINE = 0.5, 1.4, 0.8, 1.6  # points
FINER = 4  # lines are drawn so many times larger, and made smaller
PATCH_FILL, PATCH_BORDER = 0.35, 0.45  # how much of the picture they hide


class Grain(NamedTuple):
    """What all panels of a figure share: the result, its look, 256 colours, pixels an inch, what is in view."""

    result: Maps
    look: Look
    colours: bytes
    dpi: float
    view: View


def draw_pixels(result: Maps, kind: Optional[Kind], look: Look, dpi: float) -> Optional[Image.Image]:
    """A figure as a PIL image.

    Parameters
    ----------
    result : Maps
    kind, look
        As for `HeatmapResult.figure`.
    dpi : float
        Pixels per inch.

    Returns
    -------
    PIL image, "RGB"; None for texts that only matplotlib sets right on this machine.

    Raises
    ------
    ValueError
        It cannot be drawn, or would have too many pixels.
    """
    if not 10 <= real_number(dpi, "dpi") <= 2400:
        raise ValueError(f"dpi: got {dpi}, expected 10 to 2400")
    sheet = sheet_of(result, kind, look)
    if not all(can_write(line.text) for line in sheet.lines):
        return None
    width, height = int(sheet.width * dpi), int(sheet.height * dpi)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"dpi: at {dpi:g} the figure would have {width} x {height} pixels, expected at most {MAX_SIDE} a side and "
            f"{MAX_PIXELS // 1_000_000} million"
        )
    colours = colorize(np.linspace(0.0, 1.0, 256), look.cmap).tobytes()
    grain = Grain(result, look, colours, dpi, view_of(result))
    canvas = Image.new("RGB", (width, height), "white")
    bases: dict[tuple[int, int], Image.Image] = {}
    for place, panel in sheet.panels:
        left, right = round(place.left * dpi), round((place.left + place.width) * dpi)
        top, bottom = (round((sheet.height - edge) * dpi) for edge in (place.bottom + place.height, place.bottom))
        size = max(right - left, 1), max(bottom - top, 1)
        if panel.kind != "heatmap" and size not in bases:
            bases[size] = _picture(result, grain.view, size)
        canvas.paste(_panel(grain, panel, size, bases.get(size)), (left, top))
    for line in sheet.lines:
        place_of = line.x * dpi, (sheet.height - line.y) * dpi
        write(canvas, line.text, place_of, line.size * dpi / 72, line.colour, "ms" if line.centred else "ls")
    if sheet.bar is not None:
        _draw_bar(canvas, grain, sheet, sheet.bar)
    return canvas


def encode(image: Image.Image, ending: str, dpi: float, options: Mapping[str, int]) -> bytes:
    """A picture as the bytes of a file: .png, or with options of Pillow's .jpg or .webp."""
    if ending == ".png":
        return png_of(np.asarray(image), dpi)
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[ending], dpi=(dpi, dpi), **options)
    return buffer.getvalue()


def _picture(result: Maps, view: View, size: tuple[int, int]) -> Image.Image:
    """What is in view of the picture, so many pixels wide and high."""
    whole = Image.fromarray(result.picture)
    return whole.resize(size, Image.Resampling.BICUBIC, box=view, reducing_gap=3.0)


def _panel(grain: Grain, panel: Panel, size: tuple[int, int], base: Optional[Image.Image]) -> Image.Image:
    """One panel of so many pixels."""
    if panel.kind == "heatmap":
        image = _patches_alone(grain, panel, size)
    else:
        assert base is not None
        image = base.point([round(0.4 * value + 0.6 * 236.0) for value in range(256)] * 3)  # faded where it was not seen
        left, top, right, bottom = _seen_pixels(grain, size)
        if left < right and top < bottom:
            inside = base.crop((left, top, right, bottom))
            if panel.kind == "overlay":
                inside = _coloured(grain, panel, inside, size, (left, top, right, bottom))
            image.paste(inside, (left, top))
        if panel.kind == "overlay" and grain.look.contours:
            _draw_contours(grain, panel, image)
        if panel.kind == "patches":
            _draw_patches(grain, panel, image)
    for frame in frames_of(grain.result, panel, grain.look):
        _outline(grain, image, frame)
    if is_cropped(grain.result):
        _dash(grain, image)
    return image


def _coloured(
    grain: Grain, panel: Panel, inside: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
) -> Image.Image:
    """A map, smooth, over the part of the picture in a window of the panel."""
    weight = weight_of(grain.look)
    if weight == 1.0:
        return inside
    left, top, right, bottom = window
    view, seen = grain.view, grain.result.seen
    rows, columns = panel.values.shape
    down = (seen.top - view.top, seen.bottom - view.top, view.bottom - view.top)
    across = (seen.left - view.left, seen.right - view.left, view.right - view.left)
    tall = grid_weights(rows, size[1], "cubic", span=down)[top:bottom].astype(np.float32)
    wide = grid_weights(columns, size[0], "cubic", span=across)[left:right].astype(np.float32)
    values = to_unit(panel.values, panel.scale)
    heat = np.clip(spread(tall, values, wide), values.min(), values.max())
    heat *= 255.0
    heat += 0.5
    levels = Image.fromarray(heat.astype(np.uint8))
    colours = levels.copy()
    colours.putpalette(grain.colours)
    if weight is None:
        part = levels.point([round(255.0 * float(fade_in(value / 255.0))) for value in range(256)])
        return Image.composite(colours.convert("RGB"), inside, part)
    return Image.blend(colours.convert("RGB"), inside, float(weight))


def _patches_alone(grain: Grain, panel: Panel, size: tuple[int, int]) -> Image.Image:
    """The map's own patches, over the part that the model saw."""
    image = Image.new("RGB", size, EMPTY)
    left, top, right, bottom = _seen_pixels(grain, size)
    if left < right and top < bottom:
        view, seen = grain.view, grain.result.seen
        rows, columns = panel.values.shape
        y = view.top + (np.arange(top, bottom) + 0.5) * (view.bottom - view.top) / size[1]
        x = view.left + (np.arange(left, right) + 0.5) * (view.right - view.left) / size[0]
        down = np.clip(((y - seen.top) / (seen.bottom - seen.top) * rows).astype(int), 0, rows - 1)
        across = np.clip(((x - seen.left) / (seen.right - seen.left) * columns).astype(int), 0, columns - 1)
        colours = colorize(to_unit(panel.values, panel.scale), grain.look.cmap)
        image.paste(Image.fromarray(colours[down][:, across]), (left, top))
    return image


def _seen_pixels(grain: Grain, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the panel's pixels whose centres the model saw."""
    seen = grain.result.seen
    left, top = _at(grain, size, seen.left, seen.top)
    right, bottom = _at(grain, size, seen.right, seen.bottom)
    edges = [(left, right, size[0]), (top, bottom, size[1])]
    (a, c), (b, d) = ((max(0, math.ceil(low - 0.5)), min(most, math.floor(high - 0.5) + 1)) for low, high, most in edges)
    return a, b, c, d


def _at(grain: Grain, size: tuple[int, int], x: float, y: float) -> tuple[float, float]:
    """A place in the picture as one in a panel of so many pixels."""
    view = grain.view
    return (x - view.left) / (view.right - view.left) * size[0], (y - view.top) / (view.bottom - view.top) * size[1]


def _draw_patches(grain: Grain, panel: Panel, image: Image.Image) -> None:
    """The borders of the patches, and those with the most numbered."""
    seen = grain.result.seen
    rows, columns = panel.values.shape
    left, top = _at(grain, image.size, seen.left, seen.top)
    right, bottom = _at(grain, image.size, seen.right, seen.bottom)
    thick = _line(grain, PATCH_LINE)
    lines = Image.new("L", image.size)
    draw = ImageDraw.Draw(lines)
    for y in np.linspace(top, bottom, rows + 1):
        _bar(draw, left, y - thick / 2, right, y + thick / 2, round(255 * PATCH_BORDER))
    for x in np.linspace(left, right, columns + 1):
        _bar(draw, x - thick / 2, top, x + thick / 2, bottom, round(255 * PATCH_BORDER))
    image.paste("white", (0, 0), lines)
    colours = colorize(to_unit(panel.values, panel.scale), grain.look.cmap)
    for rank, patch in reversed(list(enumerate(largest_patches(panel.values, seen, grain.look.top), start=1))):
        edges = patch.left, patch.top, patch.right, patch.bottom
        red, green, blue = (int(part) for part in colours[patch.row, patch.column])
        _outline(grain, image, edges, (red, green, blue))
        middle = _at(grain, image.size, (patch.left + patch.right) / 2, (patch.top + patch.bottom) / 2)
        rim = max(1, round(grain.dpi / 72))
        write(image, str(rank), middle, 8 * grain.dpi / 72, "white", "mm", bold=True, rim=rim)


def _outline(
    grain: Grain, image: Image.Image, edges: tuple[float, float, float, float], fill: Optional[tuple[int, int, int]] = None
) -> None:
    """A rectangle in white on black, which is seen on any picture."""
    left, top = _at(grain, image.size, *edges[:2])
    right, bottom = _at(grain, image.size, *edges[2:])
    if fill is not None:
        mask = Image.new("L", image.size)
        _bar(ImageDraw.Draw(mask), left, top, right, bottom, round(255 * PATCH_FILL))
        image.paste(fill, (0, 0), mask)
    draw = ImageDraw.Draw(image)
    white = _line(grain, FRAME_LINE)
    for colour, half in (("black", white / 2 + max(1, round(0.6 * grain.dpi / 72))), ("white", white / 2)):
        for y in (top, bottom):
            _bar(draw, left - half, y - half, right + half, y + half, colour)
        for x in (left, right):
            _bar(draw, x - half, top - half, x + half, bottom + half, colour)


def _dash(grain: Grain, image: Image.Image) -> None:
    """A dashed line round what the model saw."""
    seen = grain.result.seen
    left, top = _at(grain, image.size, seen.left, seen.top)
    right, bottom = _at(grain, image.size, seen.right, seen.bottom)
    draw, thick = ImageDraw.Draw(image), _line(grain, SEEN_LINE)
    on, step = 4 * thick, 7 * thick
    for y in (top, bottom):
        for x in np.arange(left, right, step):
            _bar(draw, x, y - thick / 2, min(x + on, right), y + thick / 2, INK)
    for x in (left, right):
        for y in np.arange(top, bottom, step):
            _bar(draw, x - thick / 2, y, x + thick / 2, min(y + on, bottom), INK)


def _draw_contours(grain: Grain, panel: Panel, image: Image.Image) -> None:
    """Lines of equal value, in the scale's colours on black, which are seen on any picture."""
    from contourpy import contour_generator

    across, down, values, levels = contours_of(grain.result, panel)
    if not levels:
        return
    x, y = _at(grain, image.size, across, down)  # type: ignore[arg-type]
    generator = contour_generator(np.asarray(x) * FINER, np.asarray(y) * FINER, values)
    colours = colorize(np.asarray(levels), grain.look.cmap)
    large = image.width * FINER, image.height * FINER
    for level, colour in zip(levels, colours):
        lines = [np.asarray(line).ravel().tolist() for line in generator.lines(level)]
        for ink, points in (((0, 0, 0), 2 * CONTOUR_LINE), (tuple(int(part) for part in colour), CONTOUR_LINE)):
            mask = Image.new("L", large)
            draw = ImageDraw.Draw(mask)
            for line in lines:
                draw.line(line, fill=255, width=max(1, round(points * grain.dpi / 72 * FINER)), joint="curve")
            image.paste(ink, (0, 0), mask.reduce(FINER))


def _draw_bar(canvas: Image.Image, grain: Grain, sheet: Sheet, bar: Bar) -> None:
    """The colour bar, its ticks on the right, its name beside them from below upwards."""
    dpi, point = grain.dpi, grain.dpi / 72
    left, right = round(bar.place.left * dpi), round((bar.place.left + bar.place.width) * dpi)
    low = (sheet.height - bar.place.bottom) * dpi
    top, bottom = round(low - bar.place.height * dpi), round(low)
    levels = 255 - (np.arange(bottom - top) * 256 // (bottom - top))
    strip = Image.fromarray(np.repeat(levels[:, None], right - left, axis=1).astype(np.uint8))
    strip.putpalette(grain.colours)
    canvas.paste(strip.convert("RGB"), (left, top))
    draw, thick, widest = ImageDraw.Draw(canvas), _line(grain, 0.8), 0.0
    for value, text in bar.ticks:
        y = bottom - (value - bar.scale[0]) / (bar.scale[1] - bar.scale[0]) * (bottom - top)
        _bar(draw, right, y - thick / 2, right + 2.5 * point, y + thick / 2, FAINT)
        place = right + 6.0 * point, y + 0.36 * SMALL_SIZE * point
        widest = max(widest, write(canvas, text, place, SMALL_SIZE * point, INK))
    if bar.name:
        size = SMALL_SIZE * point
        name = Image.new("L", (round(bar.place.height * dpi + 4 * size), round(2 * size)))
        wide = write(name, bar.name, (name.width / 2, 1.5 * size), size, "white", "ms")
        name = name.crop((int(name.width / 2 - wide / 2 - 2), 0, math.ceil(name.width / 2 + wide / 2 + 2), name.height))
        name = name.transpose(Image.Transpose.ROTATE_90)
        x = right + (6.0 + 4.0) * point + widest - 0.5 * size
        canvas.paste(FAINT, (round(x), round((top + bottom - name.height) / 2)), name)


def _line(grain: Grain, points: float) -> int:
    """A line's width in whole pixels, at least one."""
    return max(1, round(points * grain.dpi / 72))


def _bar(draw: ImageDraw.ImageDraw, left: float, top: float, right: float, bottom: float, colour: object) -> None:
    """A filled rectangle on whole pixels; one that is thinner than a pixel has one."""
    # Halves go up, so that bars of one thickness have as many pixels wherever they lie.
    x, y, far, low = (math.floor(edge + 0.5) for edge in (left, top, right, bottom))
    draw.rectangle((x, y, max(x, far - 1), max(y, low - 1)), fill=colour)  # type: ignore[arg-type]
