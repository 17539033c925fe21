"""Low-rank adapters merged into the weights that they adapt."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._weights import Stored, Weight, float_array, from_array, release_tensor, shape_of, weight_of

_ADAPTER = re.compile(r"^(.+)\.lora_(embedding_)?([AB])(?:\.([^.]+))?(?:\.weight)?$")


def merge_lora(tensors: Stored, alpha: float | None, what: str) -> Stored:
    """Add low-rank adapters to their weights: W + (alpha / r) B A, for an embedding W + (alpha / r) (B A)^T.

    Parameters
    ----------
    tensors : dict
        Base weights called ``X.weight`` (peft 0.4) or ``X.base_layer.weight`` (later), adapters
        ``X.lora_A.NAME.weight`` [r, in] and ``X.lora_B.NAME.weight`` [out, r], or ``X.lora_embedding_A.NAME`` [r, rows]
        and ``X.lora_embedding_B.NAME`` [width, r].
    alpha : float or None
        The adapters' scale; None: 32 where r is 16, as the public checkpoints were trained, else an error.

    Returns
    -------
    dict
        The tensors without adapters; merged ones are new float32 arrays, the others the same views as before.
    """
    merged: Stored = {}
    adapters: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        match = _ADAPTER.match(name)
        if match is None:
            base = name.replace(".base_layer.", ".")
            if base in merged:
                raise ValueError(f"{what}: {base} is there twice, with and without base_layer")
            merged[base] = tensor
            continue
        target, embedding, side, adapter = match[1], bool(match[2]), match[3], match[4] or "default"
        entry = adapters.setdefault(target, {"adapter": adapter, "embedding": embedding})
        if entry["adapter"] != adapter or entry["embedding"] != embedding or side in entry:
            raise ValueError(f"{what}: {target} has more than one LoRA adapter")
        entry[side] = tensor
    for target, entry in adapters.items():
        merged[target + ".weight"] = _merge(target, merged.get(target + ".weight"), entry, alpha, what)
    return merged


def _merge(target: str, base: Any, entry: dict[str, Any], alpha: float | None, what: str) -> Weight:
    if base is None or "A" not in entry or "B" not in entry:
        missing = "its base weight" if base is None else "lora_A" if "A" not in entry else "lora_B"
        raise ValueError(f"{what}: the LoRA adapter of {target} lacks {missing}")
    a, b, shape = shape_of(entry["A"]), shape_of(entry["B"]), shape_of(base)
    rows, columns = (a[-1], b[0]) if entry["embedding"] else (b[0], a[-1])
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0 or shape != (rows, columns):
        raise ValueError(f"{what}: {target} {list(shape)} has LoRA factors A {list(a)} and B {list(b)}, which do not fit")
    rank = a[0]
    if alpha is None:
        if rank != 16:
            raise ValueError(
                f"{what}: LoRA of rank {rank} and no lora_alpha in the checkpoint; give config={{'lora_alpha': ...}}"
            )
        alpha = 32.0
    first, second = float_array(weight_of(entry["A"])), float_array(weight_of(entry["B"]))
    product: NDArray[np.float32] = first.T @ second.T if entry["embedding"] else second @ first
    product *= np.float32(alpha / rank)
    base = weight_of(base)
    product += float_array(base)
    release_tensor(base)
    return from_array(product)
