"""Architectures, one file each: their tensors' names and shapes, and what no shape tells.

A layout of CLIP's image half under other names is one function, from tensors to tensors, in `VISION_LAYOUTS`.
"""

from . import clip, openai_clip

#: Each gives the tensors with the towers that it knows under ``vision_model.``, behind the prefix that they had.
VISION_LAYOUTS = (clip.full_names, openai_clip.rename)
