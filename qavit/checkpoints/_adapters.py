"""Adapters merged into the weights that they adapt: LoRA and DoRA, with what peft saves beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.small_files import read_json_object
from ._weights import MadeTensor, Stored, Weight, float_array, from_array, release_tensor, shape_of, weight_of
from .formats.reading import Content, open_weights

CONFIG = "adapter_config.json"
_FACTOR = re.compile(r"^(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$|bias$)([^.]+))?(?:\.(weight|bias))?$")
_MAGNITUDE = re.compile(r"^(.+)\.lora_magnitude_vector(?:\.(?!weight$)([^.]+))?(?:\.weight)?$")
_SAVED = re.compile(r"^(.+)\.modules_to_save\.[^.]+\.(.+)$")
#: Settings that change no number of an adapter as it was saved.
_SILENT = {
    "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_bias", "lora_dropout", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "loftq_config",
}  # fmt: skip
_OBEYED = {"lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out", "init_lora_weights"}


@dataclass(frozen=True)
class AdapterSettings:
    """How an adapter is added: its scale is alpha / r, or alpha / sqrt(r) where it is rank-stabilised."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)  # of modules whose names end so
    rank_stabilised: bool = False
    transposed: bool = False  # base weights are [in, out]

    def scale(self, target: str, rank: int, what: str) -> float:
        """What an adapter's product is multiplied by."""
        alpha = self.alpha
        for end, own in self.alphas.items():
            if target == end or target.endswith("." + end):
                alpha = own
        if alpha is None:
            if rank != 16:
                raise ValueError(
                    f"{what}: LoRA of rank {rank} and no lora_alpha in the checkpoint; give config={{'lora_alpha': ...}}"
                )
            alpha = 32.0  # as the public QA-ViT checkpoints were trained
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def adapter_file(folder: Path) -> Path | None:
    """The weights of an adapter's folder; None where there is no adapter."""
    if not (folder / CONFIG).is_file():
        return None
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds {CONFIG}, but neither adapter_model.safetensors nor adapter_model.bin")


def open_adapter(folder: Path) -> tuple[Content, AdapterSettings, str | None]:
    """An adapter's tensors, its settings, and what it calls its base model.

    Raises
    ------
    ValueError
        Where it is of another kind than LoRA and DoRA, or was made in a way that changes its base's weights.
    """
    path = folder / CONFIG
    file = adapter_file(folder)
    assert file is not None
    settings = read_json_object(path)
    content = open_weights(file)
    base = settings.get("base_model_name_or_path")
    return content, adapter_settings(settings, str(path)), base if isinstance(base, str) and base else None


def adapter_settings(settings: Mapping[str, Any], what: str) -> AdapterSettings:
    """An adapter's settings: adapter_config.json, obeyed or refused."""
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"{what}: peft_type is {kind!r:.40}, only LORA (and DoRA) is known")
    unknown = [key for key in settings if key not in _SILENT | _OBEYED and settings[key] not in (None, False, {}, [])]
    if unknown:
        raise ValueError(f"{what}: {', '.join(map(str, unknown[:4]))} is not known, so it cannot be obeyed")
    start = settings.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "corda", "loftq", "olora", "lora_ga")):
        raise ValueError(
            f"{what}: init_lora_weights {start!r} changed the base model's weights, which are not saved; merge it first"
        )
    pattern = settings.get("alpha_pattern") or {}
    if not isinstance(pattern, Mapping) or any(re.search(r"[^\w.]", str(key)) for key in pattern):
        raise ValueError(f"{what}: alpha_pattern: expected an object of modules' names, without regular expressions")
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(settings.get(key) or False, bool):
            raise ValueError(f"{what}: {key} is {settings[key]!r:.40}, expected true or false")
    return AdapterSettings(
        _number(settings.get("lora_alpha"), f"{what}: lora_alpha"),
        {str(key): _number(value, f"{what}: alpha_pattern.{key}") or 0.0 for key, value in pattern.items()},
        bool(settings.get("use_rslora")),
        bool(settings.get("fan_in_fan_out")),
    )


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
        raise ValueError(f"{what}: expected a number, got {value!r:.40}")
    return float(value)


def with_option(settings: AdapterSettings | None, alpha: Any) -> AdapterSettings:
    """The settings with config['lora_alpha'] where it is given."""
    own = settings or AdapterSettings()
    given = _number(alpha, "config['lora_alpha']")
    if given is None:
        return own
    return AdapterSettings(given, own.alphas if settings else {}, own.rank_stabilised, own.transposed)


def add_adapter(base: Stored, adapter: Stored) -> Stored:
    """A base's tensors with an adapter's beside them; modules and biases that it saved whole stand in their place."""
    result = dict(base)
    for name, tensor in saved_modules(adapter).items():
        plain = name.replace(".base_layer.", ".")
        if not _FACTOR.match(name) and not _MAGNITUDE.match(name):
            result.pop(plain.rpartition(".")[0] + ".base_layer." + plain.rpartition(".")[2], None)
            name = plain
        result[name] = tensor
    return result


def saved_modules(tensors: Stored) -> Stored:
    """Modules that peft trained whole under their own names, in place of those that they began as."""
    result: Stored = {}
    trained: Stored = {}
    for name, tensor in tensors.items():
        match = _SAVED.match(name)
        if match:
            trained[f"{match[1]}.{match[2]}"] = tensor
        else:
            result[name.replace(".original_module.", ".")] = tensor
    return {**result, **trained}


def merge_adapters(tensors: Stored, settings: AdapterSettings, what: str) -> Stored:
    """Add low-rank adapters to their weights: W + s B A, for an embedding W + s (B A)^T; DoRA sets the norms, too.

    Parameters
    ----------
    tensors : dict
        Base weights called ``X.weight`` (peft 0.4) or ``X.base_layer.weight`` (later), adapters ``X.lora_A.NAME.weight``
        [r, in] and ``X.lora_B.NAME.weight`` [out, r] (of a convolution [r, in, h, w] and [out, r, 1, 1]), or
        ``X.lora_embedding_A.NAME`` [r, rows] and ``X.lora_embedding_B.NAME`` [width, r]; ``X.lora_magnitude_vector``.
        NAME may be left out.
    settings : AdapterSettings
        The scale.

    Returns
    -------
    dict
        The tensors without adapters; merged ones are new float32 arrays, made when they are asked for, the others the same
        views as before.
    """
    merged: Stored = {}
    adapters: dict[str, dict[str, Any]] = {}

    def entry_of(target: str, adapter: str | None) -> dict[str, Any]:
        entry = adapters.setdefault(target, {"adapter": adapter})
        if entry["adapter"] != adapter:
            raise ValueError(f"{what}: {target} has more than one LoRA adapter")
        return entry

    for name, tensor in saved_modules(tensors).items():
        match = _FACTOR.match(name)
        magnitude = _MAGNITUDE.match(name)
        if match:
            entry = entry_of(match[1], match[4])
            side = match[3] + ("_bias" if match[5] == "bias" else "")
            if side in entry or entry.setdefault("embedding", bool(match[2])) != bool(match[2]):
                raise ValueError(f"{what}: {match[1]} has more than one LoRA adapter")
            entry[side] = tensor
        elif magnitude:
            entry_of(magnitude[1], magnitude[2])["magnitude"] = tensor
        else:
            base = name.replace(".base_layer.", ".")
            if base in merged:
                raise ValueError(f"{what}: {base} is there twice, with and without base_layer")
            merged[base] = tensor
    for target, entry in adapters.items():
        merged[target + ".weight"] = _merge(target, merged.get(target + ".weight"), entry, settings, what)
        if "B_bias" in entry:
            bias = merged.get(target + ".bias")
            added = float_array(weight_of(entry["B_bias"]))
            if bias is None or shape_of(bias) != added.shape:
                raise ValueError(f"{what}: the LoRA adapter of {target} has a bias, which its layer lacks")
            scale = np.float32(settings.scale(target, shape_of(entry["A"])[0], what))
            merged[target + ".bias"] = from_array(float_array(weight_of(bias)) + scale * added)
    return merged


def _merge(target: str, base: Any, entry: dict[str, Any], settings: AdapterSettings, what: str) -> MadeTensor:
    """The sum, checked, and computed when it is asked for."""
    if base is None or "A" not in entry or "B" not in entry:
        missing = "its base weight" if base is None else "lora_A" if "A" not in entry else "lora_B"
        raise ValueError(f"{what}: the LoRA adapter of {target} lacks {missing}")
    embedding = entry.get("embedding", False)
    a, b, shape = shape_of(entry["A"]), shape_of(entry["B"]), shape_of(base)
    transposed = embedding or (settings.transposed and len(shape) == 2)
    fits = len(a) >= 2 and len(b) >= 2 and a[0] == b[1] and a[0] > 0 and math.prod(b[2:]) == 1
    product_shape = (b[0], *a[1:]) if fits else ()
    if not fits or shape != (product_shape[::-1] if transposed else product_shape):
        raise ValueError(f"{what}: {target} {list(shape)} has LoRA factors A {list(a)} and B {list(b)}, which do not fit")
    rows = shape[-1] if transposed else shape[0]
    magnitudes = math.prod(shape_of(entry["magnitude"])) if "magnitude" in entry else rows
    if magnitudes != rows:
        raise ValueError(f"{what}: {target} {list(shape)} has {magnitudes} DoRA magnitudes, which do not fit")
    scale = np.float32(settings.scale(target, a[0], what))
    return MadeTensor(shape, lambda: _sum(weight_of(base), entry, scale, transposed))


def _sum(base: Weight, entry: Mapping[str, Any], scale: np.float32, transposed: bool) -> NDArray[np.float32]:
    rank, shape = shape_of(entry["A"])[0], base[2]
    first = float_array(weight_of(entry["A"])).reshape(rank, -1)
    second = float_array(weight_of(entry["B"])).reshape(-1, rank)
    product: NDArray[np.float32] = first.T @ second.T if transposed else (second @ first).reshape(shape)
    product *= scale
    product += float_array(base)
    release_tensor(base)
    if "magnitude" in entry:
        magnitude = float_array(weight_of(entry["magnitude"])).reshape(-1)
        # Of a linear layer and a convolution each output's weights have that norm, of an embedding each column.
        rows = product.T if transposed else product.reshape(shape[0], -1)
        rows *= (magnitude / np.linalg.norm(rows, axis=1))[:, None]
    return product
