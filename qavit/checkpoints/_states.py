"""Which of a file's tensors are the model: wrappers' prefixes, averaged copies, teachers and students."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ._weights import Stored, float_array, weight_of

log = logging.getLogger(__name__)
#: Names that wrappers put between those of modules: DataParallel and DeepSpeed, FSDP, torch.compile, checkpointing.
_WRAPPERS = {
    "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module",
}  # fmt: skip
#: Words in a copy's name that say that it is not simply the model.
_COPIES = {
    "ema", "swa", "averaged", "average", "avg", "shadow", "teacher", "student", "target", "online", "momentum", "key",
    "old", "best", "slow", "mean",
}  # fmt: skip
#: What tensors that are left out may be called without a word about them: heads, other halves, what training needs.
_EXTRAS = re.compile(
    r"(^|[._])(classifier\w*|head\w*|heads|fc\w*|cls|lm_head|score|pooler|qa_outputs|pre_classifier|logit_scale|logit_bias|"
    r"temp|temperature|loss\w*|criterion\w*|\w*queue\w*|language_model|text_model|text_projection|text_encoder\w*|decoder|"
    r"text_decoder|optimizer\w*|optim|scheduler|lr_schedulers?|projector\w*|multi_modal_projector|translation_mlp|"
    r"metric\w*|position_ids|num_batches_tracked|instruction_gate|proj\w*|visual_projection|mask_token|n_averaged|decay|"
    r"num_updates|scaler|ema_\w*|iteration|step|rng\w*|transformer|token_embedding|ln_final|positional_embedding|"
    r"input_resolution|context_length|vocab_size|attn_mask|combined_\w+|visual_encoder_m|text_encoder_m|vision_proj_m|"
    r"text_proj_m|class_head|box_head|layer_norm|layernorm_pre)([._]|$)"
)


def without_wrappers(tensors: Stored, what: str) -> Stored:
    """The tensors without wrappers' names, wherever in a name they stand.

    Raises
    ------
    ValueError
        Where two tensors that differ get one name.
    """
    result: Stored = {}
    for original, tensor in tensors.items():
        name = ".".join(part for part in original.split(".") if part not in _WRAPPERS)
        if name in result and not same_tensor(result[name], tensor):
            raise ValueError(f"{what}: {name} is there twice ({original!r} is one of its names)")
        result[name] = tensor
    return result


def same_tensor(one: Any, two: Any) -> bool:
    """Whether two tensors are one piece of memory, or hold equal numbers."""
    a, b = weight_of(one), weight_of(two)
    if a[0] is b[0] and a[1:] == b[1:]:
        return True
    return a[1:3] == b[1:3] and np.array_equal(float_array(a), float_array(b), equal_nan=True)


def _words(prefix: str) -> set[str]:
    return {word for part in prefix.split(".") for word in (part, *re.split(r"[_\-]", part))} - {""}


def find_model(tensors: Stored, roots: re.Pattern[str], state: str | None, what: str) -> tuple[Stored, Stored]:
    """The tensors whose names are ``roots``' behind one prefix, under their names from there on; and the others.

    Parameters
    ----------
    tensors : dict
    roots : pattern
        Two groups: what stands before, and the name.
    state : str, optional
        Which copy is meant where there are several: a word of its prefix ("ema", "teacher"), or the prefix itself.

    Returns
    -------
    (dict, dict)
        Both empty of the other copies, which are logged.

    Raises
    ------
    ValueError
        Where there are several copies and none is plainly the model, or none is called ``state``; lists them.
    """
    copies: dict[str, Stored] = {}
    others: Stored = {}
    for original, tensor in tensors.items():
        match = roots.match(original)
        if match is None:
            others[original] = tensor
        else:
            copies.setdefault(match[1] or "", {})[match[2]] = tensor
    if not copies:
        if state is not None:
            _refuse_state(state, [], what)
        return {}, others
    if state is not None:
        wanted = [
            prefix for prefix in copies
            if state in (prefix, prefix.rstrip(".")) or state.lower() in _words(prefix.lower())
        ]  # fmt: skip
        if not wanted:
            _refuse_state(state, copies, what)
    else:
        wanted = [prefix for prefix in copies if not _words(prefix.lower()) & _COPIES] or list(copies)
    chosen: Stored = {}
    for prefix in sorted(wanted, key=lambda prefix: -len(copies[prefix])):
        part = copies[prefix]
        shared = [name for name in part if name in chosen]
        if any(not same_tensor(chosen[name], part[name]) for name in shared):
            listed = ", ".join(f"{name.rstrip('.')!r} ({len(copies[name])} tensors)" for name in wanted)
            raise ValueError(
                f"{what}: it holds several copies of the model, {listed}; choose one with config={{'state': ...}}"
            )
        chosen.update(part)
    left = [prefix for prefix in copies if prefix not in wanted]
    if left:
        log.info("%s: read %s; left out the copies %s", what, _listed(wanted), _listed(left))
    return chosen, others


def _listed(prefixes: Iterable[str]) -> str:
    return ", ".join(repr(prefix.rstrip(".")) for prefix in prefixes)


def _refuse_state(state: str, copies: Iterable[str], what: str) -> None:
    listed = _listed(copies)
    have = f"it holds {listed}" if listed else "no copy of the model was found"
    raise ValueError(f"{what}: config['state'] is {state!r}, but {have}")


def leave_out(others: Stored, strict: bool, what: str) -> Stored:
    """What is not the model's: extras by their names are dropped; the rest is given back, or where not strict logged."""
    rest = {name: tensor for name, tensor in others.items() if not _EXTRAS.search(name)}
    extras = [name for name in others if name not in rest]
    if extras:
        log.info("%s: left out %d tensors that are not the model's: %s", what, len(extras), ", ".join(extras[:8]))
    if not strict and rest:
        log.warning("%s: left out %d tensors that are not known: %s", what, len(rest), ", ".join(list(rest)[:20]))
        return {}
    return rest
