"""Torch tensors at the door: recognised and given back without importing torch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt


def torch_of(*values: Any) -> Any:
    """The torch module, if one of the values is a torch tensor; else None.

    A tensor can only exist where torch has been imported already, so nothing is imported here.
    """
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return torch if tensor is not None and any(isinstance(value, tensor) for value in values) else None


def as_kind(array: npt.NDArray[Any], torch: Any) -> Any:
    """An array as a CPU tensor of the given torch module; for None, as it is."""
    if torch is None:
        return array
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
