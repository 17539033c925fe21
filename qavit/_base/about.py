"""The version, and what this build holds."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def build_info() -> dict[str, Any]:
    """What is in this build, and what it found on this machine.

    Returns
    -------
    dict
        version; compiler, that the core was built by; blas and blas_kernels (OpenBLAS's own words); kernels (which of ours
        run, by precision); panel_columns (of the panels that weights are packed in, 0: none); threads and cpus;
        cpu_features; stb_image and cuda, whether they were compiled in.
    """
    from .. import _core

    return {"version": __version__, **_core.build_info()}
