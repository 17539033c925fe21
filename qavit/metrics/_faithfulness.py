"""Does a map matter to the model: pixels taken away or put back in its order.

A `score` is a callable from normalised pixels float [N, 3, H, W] to float [N]: how sure the model is of what the map
explains. Figures of different variants are not comparable, so each is named for the code that defined it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .._base.extras import require

Doubles = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Score = Callable[[Pixels], Any]
Variant = Literal["rise", "torch-cam", "grad-eclip"]
VARIANTS = ("rise", "torch-cam", "grad-eclip")

_AT_ONCE = 16
_STRAIGHT, _DIAGONAL = 1 / 6, 1 / 12
_NEIGHBOURS = [
    (down, right, _STRAIGHT if 0 in (down, right) else _DIAGONAL)
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
]


class Curve(NamedTuple):
    """A score while pixels change.

    Attributes
    ----------
    fractions : ndarray of float64, [n]
        The share of the picture that was changed, from 0.
    scores : ndarray of float64, [n]
    auc : float
        The area under the scores by the variant's own rule.
    """

    fractions: Doubles
    scores: Doubles
    auc: float


class Road(NamedTuple):
    """What :func:`road` gives: [n] each, a percentile an item, and their mean.

    Attributes
    ----------
    percentiles : ndarray of float64
    most, least : ndarray of float64
        The score's change when the most, or the least, of the map is imputed.
    combined : float
        (mean of least - mean of most) / 2; higher is better.
    """

    percentiles: Doubles
    most: Doubles
    least: Doubles
    combined: float


def deletion(heatmap: Any, pixels: Any, score: Score, *, variant: Variant = "rise", step: int | None = None) -> Curve:
    """The score while the map's highest pixels are replaced by zeros; lower area is better.

    Parameters
    ----------
    heatmap : array_like of float, [H, W]
    pixels : array_like of float, [3, H, W]
        Normalised, so that zero is the mean colour.
    score : callable
    variant : {"rise", "torch-cam", "grad-eclip"}
        "rise": `step` pixels at a time, down to none, equal weights a step (Petsiuk et al., arXiv 1806.07421). "torch-cam":
        20 steps, trapezium over the true fractions. "grad-eclip": 100 steps of 0.5%, half of the picture, equal weights.
    step : int, optional
        Pixels a step of "rise"; one row of the picture by default.

    Returns
    -------
    Curve

    Raises
    ------
    ValueError
        Shapes do not fit, values or scores are not finite, or the variant is not one of these.
    """
    values, picture = _checked(heatmap, pixels)
    return _curve(values, picture, np.zeros_like(picture), score, variant, step)


def insertion(
    heatmap: Any, pixels: Any, score: Score, *, variant: Variant = "rise", step: int | None = None, substrate: Any = None
) -> Curve:
    """The score while the map's highest pixels are put into an empty picture; higher area is better.

    Parameters
    ----------
    heatmap, pixels, score, variant, step
        As in :func:`deletion`.
    substrate : array_like of float, [3, H, W], optional
        What the picture begins as: zeros by default; RISE's paper begins with a blurred picture.

    Returns
    -------
    Curve
    """
    values, picture = _checked(heatmap, pixels)
    begin = np.zeros_like(picture) if substrate is None else _checked(heatmap, substrate)[1]
    return _curve(values, begin, picture, score, variant, step)


def drop_and_increase(
    heatmap: Any, pixels: Any, score: Score, *, variant: Literal["torch-cam", "grad-cam"] = "torch-cam"
) -> tuple[float, bool]:
    """How far the score falls on the picture times the map, and whether it rises (Chattopadhay et al., arXiv 1710.11063).

    Parameters
    ----------
    heatmap : array_like of float, [H, W]
        From 0 to 1.
    pixels, score
        As in :func:`deletion`.
    variant : {"torch-cam", "grad-cam"}
        The drop as a share of the score, or as its difference.

    Returns
    -------
    drop : float
        At least 0.
    increase : bool
    """
    values, picture = _checked(heatmap, pixels)
    whole, masked = _scores(score, np.stack([picture, picture * values.astype(np.float32)]))
    drop = max(0.0, whole - masked)
    _choice(variant, ("torch-cam", "grad-cam"))
    return (drop / (whole + 1e-7) if variant == "torch-cam" else drop), bool(masked > whole)


def perturbation(heatmap: Any, pixels: Any, score: Score, *, positive: bool = True) -> Curve:
    """The score with the top (`positive`) or the bottom 0 to 90% of the map's pixels zero (Chefer et al., arXiv 2012.09838).

    Returns
    -------
    Curve
        Ten scores; the area by trapezium over the fractions.
    """
    values, picture = _checked(heatmap, pixels)
    flat = values.ravel()
    order = np.argsort(-flat if positive else flat, kind="stable")
    counts = [flat.size * tenth // 10 for tenth in range(10)]
    scores = _along(score, order, counts, picture, np.zeros_like(picture))
    fractions = np.arange(10) / 10
    return Curve(fractions, scores, _area(scores, fractions))


def road(heatmap: Any, pixels: Any, score: Score, *, percentiles: Any = tuple(range(10, 100, 10))) -> Road:
    """Remove and debias: what is removed is imputed from its neighbours, so that no edge tells where (arXiv 2202.00449).

    Needs SciPy (``pip install "qavit[metrics]"``). pytorch-grad-cam adds noise of 0.01 without a seed to what is imputed;
    here there is none.

    Parameters
    ----------
    heatmap : array_like of float, [H, W]
        From 0 to 1.
    pixels, score
        As in :func:`deletion`.
    percentiles : sequence of float
        Pixels at or above this percentile of the map are removed.

    Returns
    -------
    Road
    """
    values, picture = _checked(heatmap, pixels)
    marks = np.asarray(percentiles, dtype=np.float64)
    if marks.ndim != 1 or marks.size == 0 or not ((marks >= 0) & (marks <= 100)).all():
        raise ValueError(f"percentiles: got {percentiles!r}, expected numbers from 0 to 100")
    before = _scores(score, picture[None])[0]
    kept = values.astype(np.float32)
    changes = [
        _scores(score, np.stack([impute(picture, ranked >= np.percentile(ranked, mark)) for mark in marks])) - before
        for ranked in (kept, 1 - kept)
    ]
    return Road(marks, changes[0], changes[1], float((changes[1].mean() - changes[0].mean()) / 2))


def impute(pixels: Any, removed: Any) -> Pixels:
    """A picture whose removed pixels are the weighted mean of their neighbours (1/6 straight, 1/12 diagonal), all at once.

    Parameters
    ----------
    pixels : array_like of float, [3, H, W]
    removed : array_like of bool, [H, W]

    Returns
    -------
    ndarray of float32, [3, H, W]
        Zeros, where every pixel is removed.
    """
    sparse, linalg = require("scipy.sparse", "metrics"), require("scipy.sparse.linalg", "metrics")
    gone = np.asarray(removed, dtype=bool)
    picture: Doubles = _checked(gone.astype(np.float64), pixels)[1].astype(np.float64)
    height, width = gone.shape
    rows, columns = np.nonzero(gone)
    number = np.full(gone.shape, -1)
    number[rows, columns] = np.arange(rows.size)
    if rows.size in (0, gone.size):
        untouched: Pixels = (picture * (rows.size == 0)).astype(np.float32)
        return untouched
    total, known = np.zeros(rows.size), np.zeros((rows.size, len(picture)))
    entries: list[tuple[Any, Any, Any]] = []
    for down, right, weight in _NEIGHBOURS:
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        total += weight * inside
        y, x = y.clip(0, height - 1), x.clip(0, width - 1)
        unknown = inside & (number[y, x] >= 0)
        given = inside & ~unknown
        known[given] += weight * picture[:, y[given], x[given]].T
        entries.append((np.nonzero(unknown)[0], number[y, x][unknown], np.full(int(unknown.sum()), -weight)))
    at, of, values = (np.concatenate(parts) for parts in zip(*entries))
    every = np.arange(rows.size)
    places = (np.concatenate([at, every]), np.concatenate([of, every]))
    system = sparse.csc_matrix((np.concatenate([values / total[at], np.ones(rows.size)]), places))
    solve = linalg.factorized(system)
    out = picture.copy()
    for channel in range(len(picture)):
        out[channel, rows, columns] = solve(known[:, channel] / total)
    imputed: Pixels = out.astype(np.float32)
    return imputed


def _choice(value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"variant: got {value!r}, expected one of {list(choices)}")


def _curve(values: Doubles, begin: Pixels, end: Pixels, score: Score, variant: str, step: int | None) -> Curve:
    _choice(variant, VARIANTS)
    count = values.size
    if variant != "rise" and step is not None:
        raise ValueError(f"step: of variant 'rise' alone, not of {variant!r}")
    if variant == "rise":
        pixels = values.shape[1] if step is None else step
        if not isinstance(pixels, int) or pixels < 1:
            raise ValueError(f"step: got {step!r}, expected a whole number of at least 1")
        counts = [*range(0, count, pixels), count]
    elif variant == "torch-cam":
        counts = [round(count * part / 20) for part in range(21)]
    else:
        counts = [round(count * part / 200) for part in range(101)]
    scores = _along(score, np.argsort(-values.ravel(), kind="stable"), counts, begin, end)
    fractions = np.asarray(counts) / count
    even = np.linspace(0.0, 1.0, len(counts))
    return Curve(fractions, scores, _area(scores, fractions if variant == "torch-cam" else even))


def _area(scores: Doubles, at: Doubles) -> float:
    return float(((scores[1:] + scores[:-1]) / 2 * np.diff(at)).sum())


def _along(
    score: Score,
    order: npt.NDArray[np.intp],
    counts: list[int],
    begin: Pixels,
    end: Pixels,
) -> Doubles:
    """Scores while the first pixels of `order`, `counts` of them, go from one picture to the other."""
    current, target = begin.reshape(len(begin), -1).copy(), end.reshape(len(end), -1)
    scores, done = [], 0
    for first in range(0, len(counts), _AT_ONCE):
        pictures = []
        for reach in counts[first : first + _AT_ONCE]:
            current[:, order[done:reach]] = target[:, order[done:reach]]
            done = reach
            pictures.append(current.reshape(begin.shape).copy())
        scores.append(_scores(score, np.stack(pictures)))
    return np.concatenate(scores)


def _scores(score: Score, pictures: Pixels) -> Doubles:
    got = np.asarray(score(pictures), dtype=np.float64)
    if got.shape != (len(pictures),) or not np.isfinite(got).all():
        raise ValueError(f"score: gave shape {list(got.shape)} for {len(pictures)} pictures, expected a finite number each")
    return got


def _checked(heatmap: Any, pixels: Any) -> tuple[Doubles, Pixels]:
    values, picture = np.asarray(heatmap, dtype=np.float64), np.asarray(pixels, dtype=np.float32)
    if values.ndim != 2 or values.size == 0 or picture.ndim != 3 or picture.shape[1:] != values.shape:
        shapes = f"map of shape {list(values.shape)} with pixels {list(picture.shape)}"
        raise ValueError(f"{shapes}, expected [H, W] and [3, H, W]")
    if not np.isfinite(values).all() or not np.isfinite(picture).all():
        raise ValueError("map or pixels hold values that are not finite")
    return values, picture
