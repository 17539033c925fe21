"""What the tensors of each layout are called; the core's own names are Hugging Face's of CLIP and LAVIS's of BLIP."""

from __future__ import annotations

import re

#: A CLIP vision tower behind any prefix, with what stands beside it.
VISION = re.compile(
    r"^(.*?\.)??(vision_model\.(?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+"
    r"|visual_projection\.weight|answer_head\.(?:weight|bias))$"
)
#: T5's encoder behind any prefix, or any text encoder that is called so already.
TEXT = re.compile(r"^(.*?\.)??((?:shared|encoder\.(?:block|embed_tokens|final_layer_norm))\..+|text_model\..+)$")
#: BLIP's halves and heads.
BLIP = re.compile(r"^(.*?\.)??((?:visual_encoder|vision_model|text_encoder|itm_head|vision_proj|text_proj)\..+)$")
CLASS_EMBEDDING = "vision_model.embeddings.class_embedding"
#: Names of a tower that begin at ``embeddings.``.
BARE = re.compile(
    r"^(embeddings\.(class_embedding|patch_embedding|position_embedding)|pre_layrnorm|post_layernorm|encoder\.layers\.\d+)(\.|$)"
)
