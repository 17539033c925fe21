"""What the tensors of each architecture are called and how large they are; checks, and what is changed on the way in.

Sizes are read off the weights. A configuration says only what shapes cannot (heads, activations, epsilons), and where
it says a size too, it has to agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..._base.arguments import image_size
from ..._base.types import ImageSize
from .._positions import WAYS
from .._weights import CORE_DTYPES, Stored, Weights, base_dtype, core_weight, dtype_of, panel_columns, shape_of

Shapes = dict[str, tuple[int, ...]]
#: The largest image that position embeddings are interpolated for.
MAX_IMAGE_SIZE = 8192
#: Found in files beside the weights, and not needed: positions' numbers, the trained scale of CLIP's logits.
_IGNORED = re.compile(r"(^|\.)(position_ids|logit_scale|instruction_gate|num_batches_tracked)$")


def need(tensors: Stored, name: str, dims: int, what: str) -> tuple[int, ...]:
    """The shape of a tensor that has to be there with this many dimensions."""
    if name not in tensors:
        raise ValueError(f"{what}: {name} is missing")
    shape = shape_of(tensors[name])
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{what}: {name} has shape {list(shape)}, expected {dims} sizes above 0")
    return shape


def count_blocks(tensors: Stored, prefix: str) -> int:
    """One more than the highest block number under ``prefix``."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,5})\.")
    numbers = [int(match[1]) for match in map(pattern.match, tensors) if match]
    return max(numbers) + 1 if numbers else 0


def settle(config: Mapping[str, Any], sizes: dict[str, Any], what: str) -> None:
    """Raise where a configuration states a size that the weights do not have."""
    for key, value in sizes.items():
        stated = config.get(key)
        if stated is not None and stated != value:
            raise ValueError(f"{what}: the configuration says {key} {stated!r}, the weights say {value}")


def choose_heads(
    config: Mapping[str, Any], key: str, width: int, default: int | None, what: str, half: str | None = None
) -> int:
    """The number of heads, which no shape tells; ``half`` is where ``config=`` holds it, if not at its top."""
    heads = config.get(key, default)
    if heads is None:
        given = f"{{'{key}': ...}}" if half is None else f"{{'{half}': {{'{key}': ...}}}}"
        raise ValueError(f"{what}: the number of heads cannot be told from the weights; give config={given}")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        raise ValueError(f"{what}: {key} {heads!r} does not divide the width {width}")
    return heads


def _epsilon(config: Mapping[str, Any], key: str, default: float, what: str) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{what}: {key} {value!r}, expected a small number")
    return float(value)


def stated_number(config: Mapping[str, Any], key: str, default: int, what: str) -> int:
    """A whole number that a configuration states, from 0 on."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ValueError(f"{what}: {key} {value!r:.60}, expected a whole number")
    return value


def stated_part(config: Mapping[str, Any], key: str, what: str) -> Mapping[str, Any]:
    """An object in a configuration; an empty one where there is none."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{what}: {key} is {value!r:.60}, expected an object")
    return value


def _activation(config: Mapping[str, Any], key: str, default: str, what: str) -> str:
    value = config.get(key, default)
    known = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu")
    if value not in known:
        raise ValueError(f"{what}: {key} {value!r}, expected one of {', '.join(known)}")
    return str(value)


def _grid(positions: int, what: str) -> int:
    side = math.isqrt(positions)
    if side * side != positions or side == 0:
        raise ValueError(f"{what}: {positions} patch positions are not a square grid")
    return side


def stated_size(config: Mapping[str, Any], what: str) -> ImageSize | None:
    """A configuration's image_size, a side or (height, width); None where it says none."""
    stated = config.get("image_size")
    if stated is None:
        return None
    try:
        return image_size(stated, "image_size")
    except (TypeError, ValueError):
        raise ValueError(f"{what}: image_size {stated!r:.60}, expected a side or (height, width)") from None


def position_grid(count: int, stated: ImageSize | None, patch: int, what: str) -> tuple[int, int]:
    """Rows and columns of a table of patch positions: those of the image size that is stated, or a square's.

    Raises
    ------
    ValueError
        They are no square's, or not those of the image size.
    """
    if isinstance(stated, tuple):
        rows, columns, found = stated[0] // patch, stated[1] // patch, str(count)
        fits = rows * columns == count
    else:
        rows = columns = _grid(count, what)
        fits, found = stated is None or stated // patch == rows, f"{rows}x{rows}"
    if not fits:
        raise ValueError(f"{what}: the configuration says image_size {stated!r}, the weights have {found} patches")
    return rows, columns


def position_resize(config: Mapping[str, Any], what: str) -> str:
    """How positions are taken to another grid: one of `WAYS`."""
    way = config.get("position_resize") or "bicubic"
    if not isinstance(way, str) or way not in WAYS:
        raise ValueError(f"{what}: position_resize {way!r:.40}, expected one of {', '.join(WAYS)}")
    return str(way)


def checked_size(size: Any, patch: int) -> ImageSize:
    """An image size that patches fill. ValueError for any other."""
    edges = size if isinstance(size, tuple) else (size,)
    for edge in edges:
        if not isinstance(edge, int) or isinstance(edge, bool) or not patch <= edge <= MAX_IMAGE_SIZE or edge % patch:
            raise ValueError(f"image_size: got {size!r}, expected a multiple of the patch size {patch}, to {MAX_IMAGE_SIZE}")
    return edges[0] if len(edges) == 1 else (edges[0], edges[-1])


def _affine(shapes: Shapes, name: str, rows: int, columns: int | None = None, bias: bool = True) -> None:
    shapes[name + ".weight"] = (rows,) if columns is None else (rows, columns)
    if bias:
        shapes[name + ".bias"] = (rows,)


def check(tensors: Stored, expected: Shapes, what: str) -> None:
    """That the tensors are exactly the expected ones, without reading them.

    Raises
    ------
    ValueError
        One error that lists the first few tensors that are missing, of another shape, of a type that is not a float, or
        not expected.
    """
    problems = []
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"{name} {list(shape)} is missing")
            continue
        found = shape_of(tensor)
        if found != shape and not (math.prod(found) == math.prod(shape) == 1):
            problems.append(f"{name} has shape {list(found)}, expected {list(shape)}")
        elif base_dtype(dtype_of(tensor)) not in (*CORE_DTYPES, "float64") and not panel_columns(dtype_of(tensor)):
            problems.append(f"{name} is {dtype_of(tensor)}, expected one of {', '.join(CORE_DTYPES)}")
    problems += [
        f"{name} {list(shape_of(tensor))} is not expected"
        for name, tensor in tensors.items()
        if name not in expected and not _IGNORED.search(name)
    ]
    if problems:
        shown = 8
        more = f"\n  ... and {len(problems) - shown} more" if len(problems) > shown else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:shown])
        raise ValueError(f"{what}: the weights are not those of the model that was expected:{lines}{more}")


def _plain(name: str) -> str:
    """Where a folded norm of the vision tower is kept as it was (`qavit/checkpoints/_folding.py`); else the same name."""
    return name.replace(".layer_norm1.", ".layer_norm1_plain.") if name.startswith("vision_model.encoder.") else name


def take(tensors: Stored, expected: Shapes, what: str, optional: Shapes | None = None) -> Weights:
    """Exactly the expected tensors, as the core takes them; ValueError as `check`."""
    beside = {_plain(name): shape for name, shape in expected.items() if _plain(name) != name}
    wanted = {**expected, **{name: shape for name, shape in {**beside, **(optional or {})}.items() if name in tensors}}
    check(tensors, wanted, what)
    weights: Weights = {}
    for name, shape in wanted.items():
        buffer, dtype, _, offset = core_weight(tensors[name])
        weights[name] = (buffer, dtype, shape, offset)
    return weights
