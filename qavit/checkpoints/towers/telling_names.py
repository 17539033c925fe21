"""What else a file may hold: models that are not loaded, told by a few of their tensors' names or by their config's type."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: (names of which one has to be there, names of which none may be, what it is), the first that fits.
_TELLING: tuple[tuple[str, str, str], ...] = (
    (r"(Qformer|qformer)\.", r"^$", "BLIP-2 or InstructBLIP (it has a Q-Former)"),
    (r"mask_decoder\.", r"^$", "Segment Anything"),
    (r"model\.diffusion_model\.|(^|\.)down_blocks\.\d", r"^$", "a diffusion model"),
    (r"text_decoder\.", r"text_encoder\.", "a BLIP captioner"),
    (r"text_decoder\.", r"itm_head\.", "a BLIP VQA model"),
    (r"text_encoder\.bert\.", r"^$", "ALBEF"),
    (r"text_encoder\.encoder\.layer\.\d+\.crossattention", r"layer\.0\.crossattention", "ALBEF"),
    (r"visual\.layer1\.|visual\.attnpool\.", r"^$", "a ResNet CLIP"),
    (r"visual\.trunk\.", r"^$", "an open_clip model with a timm tower"),
    (r"visual\.(patch_embed|blocks)\.", r"^$", "EVA-CLIP"),
    (r"vision_model\.head\.probe|(^|\.)head\.probe", r"^$", "SigLIP"),
    (r"vision_model\.embeddings\.patch_embedding\.bias", r"class_embedding", "SigLIP"),
    (r"(storage_tokens|rope_embed\.periods)", r"^$", "DINOv3"),
    (r"register_tokens", r"layer_scale|ls1|lambda1", "DINOv3"),
    (r"(layer_scale1|ls1\.gamma)", r"^$", "DINOv2"),
    (r"image_encoder\.model\.|reparam", r"^$", "MobileCLIP"),
    (r"vision_tower\.|multi_modal_projector\.|mm_projector\.", r"class_embedding", "a vision-language model such as LLaVA"),
    (r"encoder\.layer\.\d+\.attention\.attention\.query|(^|\.)vit\.", r"^$", "a ViT classifier"),
    (r"(^|\.)blocks\.\d+\.attn\.qkv\.weight", r"visual_encoder", "a vision transformer in timm's layout"),
    (r"EncDecAttention", r"vision", "a T5 (text alone)"),
    (r"(^|\.)encoder\.block\.\d+\.layer\.0\.SelfAttention", r"vision", "a T5 encoder (text alone)"),
    (r"lora_[AB]|lora_embedding", r"class_embedding|base_layer|visual_encoder", "an adapter without its base model"),
    (r"(qweight|qzeros|SCB|quant_state|weight_format)$", r"^$", "a model quantised by GPTQ, AWQ or bitsandbytes"),
    (r"(^|\.)model\.layers\.\d+\.(self_attn|mlp)\.|transformer\.h\.\d", r"vision", "a language model"),
    (r"embeddings\.word_embeddings", r"visual|vision|crossattention", "a BERT (text alone)"),
    (r"layer1\.0\.conv1", r"^$", "a ResNet"),
    (r"text_model\.encoder\.layers", r"vision_model", "CLIP's text half alone"),
)
#: The same by config.json's model_type.
_TYPES = {
    "blip-2": "BLIP-2", "instructblip": "InstructBLIP", "siglip": "SigLIP", "siglip_vision_model": "SigLIP",
    "siglip2": "SigLIP 2", "dinov2": "DINOv2", "dinov2_with_registers": "DINOv2 with registers", "dinov3_vit": "DINOv3",
    "vit": "a ViT classifier", "deit": "a DeiT classifier", "llava": "LLaVA", "albef": "ALBEF", "git": "GIT",
    "paligemma": "PaliGemma", "idefics": "Idefics", "vilt": "ViLT", "align": "ALIGN", "flava": "FLAVA", "resnet": "a ResNet",
}  # fmt: skip


def told_by_names(names: Iterable[str]) -> str | None:
    """What a model is, by its tensors' names; None where that is not known."""
    listed = list(names)
    for there, missing, what in _TELLING:
        found, refused = re.compile(there), re.compile(missing)
        if any(found.search(name) for name in listed) and not any(refused.search(name) for name in listed):
            return what
    return None


def told_by_type(kind: str) -> str | None:
    """What a model is, by its configuration's model_type."""
    return _TYPES.get(kind)
