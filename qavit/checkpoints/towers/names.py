"""Prefixes in front of the names that a checkpoint gives its tensors."""

from __future__ import annotations

import re

#: Wrappers around a model, which put their name before every tensor's.
_WRAPPERS = ("module.", "base_model.model.", "base_model.", "_orig_mod.")


def _unwrap(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name[next(len(wrapper) for wrapper in _WRAPPERS if name.startswith(wrapper)) :]
    return name
_VISION = re.compile(r"(?:^|\.)(vision_model\.(?:embeddings|pre_layrnorm|encoder|post_layernorm)[\w.]*)$")
