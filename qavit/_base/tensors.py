"""Torch tensors at the door: recognised and given back without importing torch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt


def torch_of(*values: Any) -> Any:
    """The torch module, if one of the values is a torch tensor; else None.

    A tensor can only exist where torch has been imported already, so nothing is imported here. A list of tensors counts.
    """
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    parts = [part for value in values for part in (value if isinstance(value, (list, tuple)) else [value])]
    return torch if tensor is not None and any(isinstance(part, tensor) for part in parts) else None


def detached(values: Any) -> Any:
    """Tensors, also those in a list, on the CPU and without their gradient; anything else as it is."""
    if isinstance(values, (list, tuple)):
        return [detached(value) if hasattr(value, "detach") else value for value in values]
    for step in ("detach", "cpu"):
        if hasattr(values, step):
            values = getattr(values, step)()
    return values


def as_kind(array: npt.NDArray[Any], torch: Any) -> Any:
    """An array as a CPU tensor of the given torch module; for None, as it is."""
    if torch is None:
        return array
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_numpy(values: Any, argument: str) -> npt.NDArray[Any]:
    """A NumPy array of numbers, a view where that can be; torch is not imported.

    Parameters
    ----------
    values : array, sequence of numbers, or tensor
        NumPy arrays, torch tensors on any device (gradients are left behind, bfloat16 becomes float32), and whatever gives
        ``__array__`` or ``__dlpack__``.
    argument : str
        The name that errors give it.

    Raises
    ------
    TypeError
        For anything else, pictures of PIL among it.
    """
    result = values
    if not isinstance(values, np.ndarray):
        result = detached(values)
        if str(getattr(result, "dtype", "")).endswith("bfloat16") and hasattr(result, "float"):
            result = result.float()
        if hasattr(result, "getbands"):
            raise TypeError(f"{argument}: a PIL image is a picture, expected an array of numbers")
        try:
            if hasattr(result, "__array__") or isinstance(result, (list, tuple)):
                result = np.asarray(result)
            else:
                result = np.from_dlpack(result)
        except (AttributeError, TypeError, ValueError):  # no array, or rows of different lengths
            raise TypeError(f"{argument}: expected an array of numbers, got {type(values).__name__}") from None
    if result.dtype.kind not in "fiub" and result.dtype.name != "bfloat16":
        raise TypeError(f"{argument}: expected an array of numbers, got {type(values).__name__} of {result.dtype}")
    array: npt.NDArray[Any] = result
    return array
