"""What files may hold: every family of models that is known, those that are opened and those that are refused by name.

A family is one line: what tells it, and the file of this folder that opens it. Such a file has two functions:

    open_files(given) -> ModelSource
        Of public files (`checkpoints._given.Given`): a folder or a file of weights, and the options.
    complete(tensors, vision, text, size, name) -> (vision, text, weights)
        Of tensors by the core's names: both configurations completed from the weights, and exactly the tensors that they
        call for. Converted folders are read by it, so it takes what `open_files` made of public ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

NEVER = r"^$"


class Family(NamedTuple):
    """One family of models.

    Attributes
    ----------
    called : str
        In messages.
    there, missing : pattern
        One of the tensors' names has the first in it, and none has the second.
    types : tuple of str
        config.json's model_type. Where families share one, their tensors' names decide.
    opened_by : str or None
        The file of this folder; None: it is refused.
    architectures : tuple of str
        What converted folders call it.
    alone : bool
        Whether its names are nobody else's: then it is refused, although some of its tensors are called as a CLIP's.
    """

    called: str
    there: str = NEVER
    missing: str = NEVER
    types: tuple[str, ...] = ()
    opened_by: str | None = None
    architectures: tuple[str, ...] = ()
    alone: bool = False


#: The first that fits is the one.
FAMILIES = (
    Family(
        "BLIP-2 image-text matching",
        r"(Qformer|qformer)\.",
        types=("blip-2",),
        opened_by="blip2",
        architectures=("blip2_itm",),
    ),
    Family("Segment Anything", r"mask_decoder\."),
    Family("a diffusion model", r"model\.diffusion_model\.|(^|\.)down_blocks\.\d"),
    Family(
        "a BLIP captioner",
        r"text_decoder\.",
        r"text_encoder\.",
        ("blip",),
        opened_by="blip_caption",
        architectures=("blip_caption",),
    ),
    Family("BLIP-VQA", r"text_decoder\.", r"itm_head\.", ("blip",), opened_by="blip_vqa", architectures=("blip_vqa",)),
    Family("ALBEF", r"text_encoder\.bert\.", types=("albef",), opened_by="albef", architectures=("albef",)),
    Family("ALBEF", r"text_encoder\.encoder\.layer\.\d+\.crossattention", r"layer\.0\.crossattention", opened_by="albef"),
    Family(
        "BLIP image-text matching",
        r"visual_encoder\.|itm_head\.",
        types=("blip",),
        opened_by="blip",
        architectures=("blip_itm",),
    ),
    Family("a Perception Encoder (PE-Core)", r"visual\.attn_pool\.probe|trunk\.norm_pre\.", alone=True),
    Family("CoCa", r"visual\.attn_pool\.query", alone=True),
    Family("EVA-CLIP", r"visual\.(trunk\.)?blocks\.\d+\.(attn\.(inner_attn_ln|norm)|mlp\.(ffn_ln|norm))\.", alone=True),
    Family("MobileCLIP", r"image_encoder\.model\.|reparam|trunk\.(stem\.\d|patch_embed\.backbone)", alone=True),
    Family("a CLIP of convolutions (ConvNeXt, ViTamin)", r"visual\.trunk\.stages\.\d", alone=True),
    Family("a ResNet CLIP", r"visual\.layer1\.|visual\.attnpool\."),
    Family("an open_clip model with a timm tower", r"visual\.trunk\.", r"visual\.trunk\.attn_pool\.latent"),
    Family("EVA-CLIP", r"visual\.(patch_embed|blocks)\."),
    Family(
        "SigLIP without its attention head", r"embeddings\.patch_embedding\.bias", r"class_embedding|probe", opened_by="vit"
    ),
    Family("DINOv3", r"(storage_tokens|rope_embed\.periods)", types=("dinov3_vit",), opened_by="vit"),
    Family("DINOv2 or DINOv3", r"(layer_scale1|ls1\.gamma)", types=("dinov2", "dinov2_with_registers"), opened_by="vit"),
    Family(
        "a vision-language model such as LLaVA", r"vision_tower\.|multi_modal_projector\.|mm_projector\.", r"class_embedding"
    ),
    Family(
        "ViT or DeiT",
        r"encoder\.layer\.\d+\.attention\.attention\.query|layers\.\d+\.layernorm_before",
        types=("vit", "deit"),
        opened_by="vit",
        architectures=("vit",),
    ),
    Family(
        "a vision transformer in timm's layout",
        r"(^|\.)blocks\.\d+\.attn\.qkv\.weight",
        r"visual_encoder|visual\.",
        opened_by="vit",
    ),
    Family("a T5 (text alone)", r"EncDecAttention", r"vision", types=("t5",), opened_by="reader", architectures=("reader",)),
    Family("a T5 encoder (text alone)", r"(^|\.)encoder\.block\.\d+\.layer\.0\.SelfAttention", r"vision"),
    Family("an adapter without its base model", r"lora_[AB]|lora_embedding", r"class_embedding|base_layer|visual_encoder"),
    Family("a model quantised by GPTQ, AWQ or bitsandbytes", r"(qweight|qzeros|SCB|quant_state|weight_format)$"),
    Family("a language model", r"(^|\.)model\.layers\.\d+\.(self_attn|mlp)\.|transformer\.h\.\d", r"vision"),
    Family("a BERT (text alone)", r"embeddings\.word_embeddings", r"visual|vision|crossattention"),
    Family("a ResNet", r"layer1\.0\.conv1", types=("resnet",)),
    Family("CLIP's text half alone", r"text_model\.encoder\.layers", r"vision_model"),
    Family("InstructBLIP", types=("instructblip",)),
    Family("LLaVA", types=("llava",)),
    Family("GIT", types=("git",)),
    Family("PaliGemma", types=("paligemma",)),
    Family("Idefics", types=("idefics",)),
    Family("ViLT", types=("vilt",)),
    Family("ALIGN", types=("align",)),
    Family("FLAVA", types=("flava",)),
)
#: Two halves, from one file or from several: what is opened where no family above tells itself.
HALVES = Family(
    "QA-ViT, CLIP or SigLIP",
    types=(
        "clip",
        "clip_vision_model",
        "siglip",
        "siglip_vision_model",
        "siglip2",
        "siglip2_vision_model",
        "chinese_clip",
    ),
    opened_by="halves",
    architectures=("qavit", "clip", "siglip"),
)


def family_of_names(names: Iterable[str], families: Iterable[Family] = FAMILIES) -> Family | None:
    """The first family that tensors' names tell; None where none does."""
    listed = list(names)
    for family in families:
        found, refused = re.compile(family.there), re.compile(family.missing)
        if any(found.search(name) for name in listed) and not any(refused.search(name) for name in listed):
            return family
    return None


def refused_by_names(names: Iterable[str]) -> str | None:
    """What a model is that is told by its names alone and not read; None for all others."""
    family = family_of_names(names, [family for family in FAMILIES if family.alone])
    return None if family is None else family.called


def told_by_names(names: Iterable[str]) -> str | None:
    """What a model is, by its tensors' names; None where that is not known."""
    family = family_of_names(names)
    return None if family is None else family.called


def families_of_type(kind: str) -> list[Family]:
    """The families of a configuration's model_type."""
    return [family for family in (*FAMILIES, HALVES) if kind in family.types]


def told_by_type(kind: str) -> str | None:
    """What a model is, by its configuration's model_type, where it is one that is refused."""
    found = families_of_type(kind)
    return found[0].called if found and all(family.opened_by is None for family in found) else None


def family_of_architecture(architecture: object) -> Family | None:
    """The family that a converted folder's architecture names."""
    return next((family for family in (*FAMILIES, HALVES) if architecture in family.architectures), None)


def known_architectures() -> list[str]:
    """What a converted folder's architecture can be."""
    return [name for family in (HALVES, *FAMILIES) for name in family.architectures]
