"""Outliers folded out of what products read, so that int8 rounds it finely; in float32 nothing changes.

A norm's outputs go into products alone: x W' of x = gain * normed + bias. For any factors s > 0 of the channels,
(x / s) (s W') is the same, and x / s is what the norm gives with gain / s and bias / s. Where a channel is far larger than
the others, a row's scale is made by it alone and the others lose their bits; s = (max |x|)^a / (max |W|)^(1 - a) with
a = 1/2 shares the difference between both sides (SmoothQuant: Xiao et al., arXiv 2211.10438). Factors here are powers of
two, so that no number is rounded and float32's maps stay the same to the bit, as long as none is beyond float32's range.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._base.pictures import PICTURE_ENDINGS
from ._places import PathLike
from ._source import PROMPTS, ModelSource
from ._weights import (
    MadeTensor,
    Stored,
    Weight,
    core_weight,
    float_array,
    from_array,
    release_tensor,
    shape_of,
)

Floats = NDArray[np.float32]
#: A method reads these norms' own tokens, so that they are kept beside the folded ones as ``layer_norm1_plain``.
PLAIN = re.compile(r"^vision_model\.encoder\.layers\.\d+\.layer_norm1$")
#: Factors are from 2^-4 to 2^10: beyond that a channel is as good as never there.
LEAST, MOST = -4.0, 10.0
#: Of a folder, so many pictures calibrate, evenly taken from all.
MOST_PICTURES = 64
#: A norm's output before the gain has this largest value, where no pictures say more: of a few hundred tokens of a normal
#: distribution.
SPREAD = 3.5


class Fold(NamedTuple):
    """A norm, the products that read it, and what else they read, which is made by a product itself."""

    norm: str
    readers: tuple[str, ...]
    makers: tuple[str, ...] = ()


#: A block's place in names, its norms and their readers behind it; alternatives are those that are there.
_KINDS: tuple[tuple[re.Pattern[str], tuple[Fold, ...]], ...] = (
    (
        re.compile(r"^((?:(?:prompts\.)?text|vision)_model\.encoder\.layers\.\d+\.)"),
        (
            Fold("layer_norm1", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("instruct_dim_reduce.3",)),
            Fold("layer_norm2", ("mlp.fc1", "mlp.gate")),
            Fold("instruct_dim_reduce.0", ("instruct_dim_reduce.1",)),
        ),
    ),
    (
        re.compile(r"^(text_model\.encoder\.block\.\d+\.)"),
        (
            Fold("layer.0.layer_norm", tuple(f"layer.0.SelfAttention.{name}" for name in "qkv")),
            Fold("layer.1.layer_norm", tuple(f"layer.1.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1"))),
        ),
    ),
    (
        re.compile(r"^(text_model\.decoder\.block\.\d+\.)"),
        (
            Fold("layer.0.layer_norm", tuple(f"layer.0.SelfAttention.{name}" for name in "qkv")),
            Fold("layer.1.layer_norm", ("layer.1.EncDecAttention.q",)),
            Fold("layer.2.layer_norm", tuple(f"layer.2.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1"))),
        ),
    ),
)


def folds_of(names: Iterable[str]) -> list[Fold]:
    """The norms of a model that go into products alone, by the names of a converted folder.

    Not among them are norms whose output is more than that: BERT's, which stand behind the sum and are the next one's
    residual; a tower's or an encoder's last, which are states that callers see and that other halves' keys and values are
    made of.
    """
    there, found = set(names), []
    stems = {(match[1], kinds) for name in there for place, kinds in _KINDS if (match := place.match(name))}
    for stem, kinds in sorted(stems):
        for norm, readers, makers in kinds:
            present = tuple(f"{stem}{name}.weight" for name in readers if f"{stem}{name}.weight" in there)
            beside = tuple(f"{stem}{name}.weight" for name in makers if f"{stem}{name}.weight" in there)
            if present and f"{stem}{norm}.weight" in there:
                found.append(Fold(stem + norm, present, beside))
    return found


def folded(weights: Mapping[str, Weight], ranges: Mapping[str, Floats] | None = None) -> Stored:
    """The weights with every norm of `folds_of` folded; what is changed is computed when it is asked for.

    Parameters
    ----------
    weights : dict
        name -> tensor, as `ModelSource.every_weight` gives them.
    ranges : dict, optional
        norm -> float32 [D], the largest absolute values of its outputs' channels; where a norm is missing, what its gain and
        bias say.

    Returns
    -------
    dict
        The same names, and those of `PLAIN`; changed tensors are float32.
    """
    result: Stored = dict(weights)
    for fold in folds_of(weights):
        factors = _factors(fold, weights, (ranges or {}).get(fold.norm))
        if factors is None:
            continue
        for kind in ("weight", "bias"):
            name = f"{fold.norm}.{kind}"
            if name in weights:
                result[name] = from_array(float_array(core_weight(weights[name])) / factors)
                if PLAIN.match(fold.norm):
                    result.setdefault(f"{fold.norm}_plain.{kind}", weights[name])
        for name in fold.readers:
            result[name] = _scaled(weights[name], factors[None, :])
        for name in fold.makers:
            result[name] = _scaled(weights[name], np.float32(1) / factors[:, None])
            bias = name.removesuffix("weight") + "bias"
            if bias in weights:
                result[bias] = from_array(float_array(core_weight(weights[bias])) / factors)
    return result


def _scaled(weight: Weight, factors: Any) -> MadeTensor:
    def make() -> Floats:
        made: Floats = float_array(core_weight(weight)) * factors
        release_tensor(weight)
        return made

    return MadeTensor(weight[2], make)


def _factors(fold: Fold, weights: Mapping[str, Weight], seen: Any) -> Floats | None:
    """S [D], powers of two; None where shapes do not fit, which is for the core to say."""
    gain = float_array(core_weight(weights[f"{fold.norm}.weight"]))
    width = gain.shape[0] if gain.ndim == 1 else 0
    sizes = [shape_of(weights[name]) for name in fold.readers]
    if width == 0 or any(len(size) != 2 or size[1] != width for size in sizes):
        return None
    if seen is None:
        seen = np.float32(SPREAD) * np.abs(gain)
        if f"{fold.norm}.bias" in weights:
            seen = seen + np.abs(float_array(core_weight(weights[f"{fold.norm}.bias"])))
    read = np.zeros(width, np.float32)
    for name in fold.readers:
        np.maximum(read, np.abs(float_array(core_weight(weights[name]))).max(axis=0), out=read)
        release_tensor(weights[name])
    used = (seen > 0) & (read > 0) & np.isfinite(seen) & np.isfinite(read)
    if not used.any():
        return None
    exponents = np.zeros(width)
    exponents[used] = 0.5 * (np.log2(seen[used].astype(float)) - np.log2(read[used].astype(float)))
    exponents[used] -= np.median(exponents[used])
    factors: Floats = np.exp2(np.clip(np.rint(exponents), LEAST, MOST)).astype(np.float32)
    return factors


# ---- with pictures ----


def calibration_pixels(source: ModelSource, pictures: PathLike | Iterable[Any] | None) -> Iterator[Floats]:
    """Pictures as the model reads them, one after another; none where there is nothing to measure by.

    Raises
    ------
    ValueError, OSError
        A folder without pictures, a picture that cannot be read, or a model without a vision tower of one grid.
    """
    if pictures is None:
        return
    from ..images import Preprocessing, load_image, preprocess

    if not source.vision or "max_patches" in source.vision:
        raise ValueError(f"calibrate: {source.name} has no vision tower of one grid, which pictures could say something of")
    if isinstance(pictures, (str, os.PathLike)):
        place = Path(pictures)
        if place.is_dir():
            listed = sorted(path for path in place.rglob("*") if path.suffix[1:].lower() in PICTURE_ENDINGS)
            pictures = listed[:: max(1, -(-len(listed) // MOST_PICTURES))]
        else:
            pictures = [place]
        if not pictures:
            raise ValueError(f"calibrate: there are no pictures in {place}")
    settings = Preprocessing.from_dict(source.preprocessing)
    for picture in pictures:
        yield preprocess(load_image(picture), settings)[0]


def seen_ranges(source: ModelSource, pixels: Iterable[Floats]) -> dict[str, Floats]:
    """The largest outputs of a vision tower's norms, for `folded`.

    Of layer_norm1 its outputs themselves. What layer_norm2 reads lies between its block's input and output, so it is the
    larger of both at that norm. Question-aware blocks see a question of noise: which one does not matter to a norm of the
    picture's tokens.

    Parameters
    ----------
    source : ModelSource
    pixels : iterable of float32 [3, H, W]
        Pictures as the model reads them.

    Returns
    -------
    dict
        norm -> float32 [D]; of no vision tower, or no pictures, none.
    """
    from .. import _core
    from .towers.question_blocks import integrated_blocks

    vision = dict(source.vision)
    if not vision:
        return {}
    if vision.get("integration_point") is not None:
        vision["integrated"] = integrated_blocks(vision["integration_point"], int(vision["num_hidden_layers"]))
    vit = _core.Vit(vision, source.weights)
    question: dict[str, Any] = {}
    if vit.integrated:
        noise = np.random.default_rng(0).standard_normal((1, 8, vit.instruction_dim)).astype(np.float32)
        question = {"pair_image": np.zeros(1, np.int32), "instruct": noise, "instruct_length": np.full(1, 8, np.int32)}
    eps = np.float32(vision.get("layer_norm_eps", 1e-5))
    found: dict[str, Floats] = {}
    for picture in pixels:
        states = vit.forward(picture[None], **question, hidden=list(range(vit.blocks + 1)))["hidden"]
        for block in range(vit.blocks):
            stem = f"vision_model.encoder.layers.{block}.layer_norm"
            for norm, levels in ((stem + "1", (block,)), (stem + "2", (block, block + 1))):
                for level in levels:
                    largest = _norm_of(states[level].reshape(-1, vit.hidden_size), norm, source, eps)
                    found[norm] = np.maximum(found[norm], largest) if norm in found else largest
    return found


def _norm_of(rows: Floats, norm: str, source: ModelSource, eps: np.float32) -> Floats:
    """The largest outputs [D] of a layer norm over rows [R, D]."""
    gain, bias = (float_array(core_weight(source.weights[f"{norm}.{kind}"])) for kind in ("weight", "bias"))
    apart = rows - rows.mean(axis=1, keepdims=True)
    apart /= np.sqrt((apart * apart).mean(axis=1, keepdims=True) + eps)
    largest: Floats = np.abs(apart * gain + bias).max(axis=0)
    return largest


def folded_source(source: ModelSource, pixels: Iterable[Floats] = ()) -> ModelSource:
    """A model with its norms folded, in memory: what an int8 model is converted from, for comparing with it.

    Parameters
    ----------
    source : ModelSource
    pixels : iterable of float32 [3, H, W]
        As for `seen_ranges`; without any, weights alone decide.

    Returns
    -------
    ModelSource
    """
    every = folded(source.every_weight(), seen_ranges(source, pixels))
    beside = {name: core_weight(every[name]) for name in every if name.endswith(("_plain.weight", "_plain.bias"))}
    weights = {**{name: core_weight(every[name]) for name in source.weights}, **beside}
    decoder = {name: every[name] for name in source.decoder}
    prompts = source.prompts
    if prompts is not None:
        own = {name: core_weight(every[PROMPTS + name]) for name in prompts.weights}
        prompts = dataclasses.replace(prompts, weights=own)
    return dataclasses.replace(source, weights=weights, decoder=decoder, prompts=prompts)
