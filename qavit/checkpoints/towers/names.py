"""What the tensors of each layout are called; the core's own names are Hugging Face's of CLIP and LAVIS's of BLIP."""

from __future__ import annotations

import re

#: A CLIP vision tower behind any prefix, with what stands beside it.
VISION = re.compile(
    r"^(.*?\.)??(vision_model\.(?:embeddings|pre_layrnorm|encoder|post_layernorm|head)\..+"
    r"|visual_projection\.weight|text_projection\.(?:weight|bias)|logit_scale|logit_bias|answer_head\.(?:weight|bias))$"
)
#: T5's encoder behind any prefix, or any text encoder that is called so already.
TEXT = re.compile(r"^(.*?\.)??((?:shared|encoder\.(?:block|embed_tokens|final_layer_norm))\..+|text_model\..+)$")
#: What QA-ViT answers with, beside its T5's encoder: a way in for pictures, T5's decoder and its head.
ANSWER = re.compile(
    r"^(.*?\.)??((?:decoder\.(?:block|embed_tokens|final_layer_norm)|translation_mlp\.layers)\..+|lm_head\.weight)$"
)
#: BLIP's halves and heads.
BLIP = re.compile(
    r"^(.*?\.)??((?:visual_encoder|vision_model|text_encoder|text_decoder|itm_head|vision_proj|text_proj)\..+)$"
)
CLASS_EMBEDDING = "vision_model.embeddings.class_embedding"
#: What an attention head in a class token's place looks for.
PROBE = "vision_model.head.probe"
#: Names of a tower that begin at ``embeddings.``.
BARE = re.compile(
    r"^(embeddings\.(class_embedding|patch_embedding|position_embedding)|pre_layrnorm|post_layernorm|encoder\.layers\.\d+"
    r"|head\.(probe|attention|layernorm|mlp))(\.|$)"
)
