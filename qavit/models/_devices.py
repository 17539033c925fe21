"""Where a model computes: the CPU or, in a build with CUDA, a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import _core
from .._base.types import Precision

#: Of the products. "tf32" is for GPUs: float32 whose factors are rounded to 10 bits. "int8" is of the layers in blocks,
#: "int8_mixed" of those but the last of each; what is not int8 is bfloat16.
PRECISIONS = ("float32", "tf32", "bfloat16", "int8", "int8_mixed")


class Placement(NamedTuple):
    """A device as the core takes it.

    Attributes
    ----------
    name : str
        "cpu", "cuda" or "cuda:N", as it was asked for.
    device : _core.Device or None
        None: the CPU.
    precision : str
        As `PRECISIONS`, but for "tf32".
    """

    name: str
    device: Any
    precision: Precision


def check_device(device: Any) -> None:
    """Refuse a device that is not there.

    Parameters
    ----------
    device : str or torch.device
        "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ValueError
        Another name, or a GPU beyond those that there are.
    RuntimeError
        What is missing: CUDA in this build, the driver, or a GPU.
    """
    name = str(device)
    if name != "cpu":
        _core.check_device(name)


def check_precision(precision: str) -> None:
    """Refuse what is not one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: expected 'float32', 'bfloat16', 'int8', 'int8_mixed' or, on a GPU, 'tf32', got {precision!r}"
        )


def place(device: Any, precision: Precision, offload_model: bool = False) -> Placement:
    """Open a device for one model.

    Raises
    ------
    ValueError
        As `check_device`; or "tf32" on the CPU, which has no such products.
    RuntimeError
        As `check_device`; or the GPU cannot be used, with CUDA's own reason.
    """
    check_precision(precision)
    name = str(device)
    if name == "cpu":
        if precision == "tf32":
            raise ValueError("precision: 'tf32' is for GPUs; on the CPU use 'float32', 'bfloat16', 'int8' or 'int8_mixed'")
        return Placement(name, None, precision)
    opened = _core.Device(name, tf32=precision == "tf32", offload=bool(offload_model))
    return Placement(name, opened, "float32" if precision == "tf32" else precision)


def computing_precision(precision: Precision, device: str) -> Precision:
    """What computes where a precision was asked for: float32 where a CPU has no bfloat16, bfloat16 for int8 on a GPU."""
    if precision in ("int8", "int8_mixed") and device != "cpu":
        return "bfloat16"
    kernels = _core.build_info()["kernels"]
    without = device == "cpu" and kernels["bfloat16"] == kernels["float32"]
    return "float32" if precision == "bfloat16" and without else precision


def same_device(one: str, other: str) -> bool:
    """Whether two names mean one device: "cuda" is "cuda:0"."""
    return {"cuda": "cuda:0"}.get(one, one) == {"cuda": "cuda:0"}.get(other, other)
