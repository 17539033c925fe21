"""Every family of models that is known: what loads, how exact it is, what it can do, what to type."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..checkpoints.towers.families import FAMILIES
from ..methods._registry import methods_of
from ._capabilities import Capabilities
from ._load import DUAL, MODELS

#: What is told of a family beside its name and kind.
LABELS = {
    "files": "loads", "exact": "exact to", "methods": "methods", "calls": "calls", "typed": "what to type",
}  # fmt: skip


class Known(NamedTuple):
    """One family that loads.

    Attributes
    ----------
    called : str
    architectures : tuple of str
        As in `MODELS`; several where one class computes them.
    files : str
        What is read.
    exact : str
        The largest difference that was seen from what it is compared with, of the largest value.
    typed : str
        The call that loads it.
    reads, calls : tuple of str
        What methods can read of such a model, and what not every kind has; empty where its class says it.
    dual : bool
        Whether it has a text half beside a vision half that is a model by itself, too.
    """

    called: str
    architectures: tuple[str, ...]
    files: str
    exact: str
    typed: str
    reads: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    dual: bool = False


_TOWER = ("extract_attention", "vision")
KNOWN = (
    Known(
        "QA-ViT", ("qavit",), "public checkpoints with their CLIP and text folders; converted folders",
        "states 3e-6, an answer's logits 1.5e-5 of the public code's",
        'load(checkpoint="qavit-base2.pth", vision="clip-vit-large-patch14-336/", text="flan-t5-base/")',
        reads=("attention", "class_token", "question_attention"),
    ),
    Known(
        "CLIP", ("clip",), "Hugging Face, open_clip and OpenAI layouts; TinyCLIP, CLIPA, ChineseCLIP",
        "embeddings 1.3e-6, dense maps 2e-6 of the public code's",
        'load("clip-vit-base-patch16/")', reads=("attention", "class_token", "texts"), dual=True,
    ),
    Known(
        "SigLIP, SigLIP 2", ("siglip",), "Hugging Face and open_clip folders",
        "embeddings 1.3e-6 of the public code's",
        'load("siglip-base-patch16-224/")', reads=("attention", "attention_head", "texts"), dual=True,
    ),
    Known(
        "SigLIP 2 NaFlex", ("siglip",), "Hugging Face folders; pictures of any aspect, each on its own grid",
        "embeddings 3e-7, attention 3e-7 of transformers'",
        'load("siglip2-base-patch16-naflex/")', reads=("attention", "attention_head", "texts"), dual=True,
    ),
    Known(
        "CLIP's vision half alone", ("clip",), "the same, and CLIPSeg's half",
        "states 2e-6, attention 5e-7 of transformers'", 'load(vision="clip-vit-base-patch16/")',
        reads=("attention", "class_token"), calls=_TOWER,
    ),
    Known(
        "SigLIP's vision half alone", ("siglip",), "the same",
        "states 2e-6, attention 3e-7 of transformers'", 'load(vision="siglip-base-patch16-224/")',
        reads=("attention", "attention_head"), calls=_TOWER,
    ),
    Known(
        "ViT, DeiT, DINOv2, DINOv3", ("vit",),
        "Hugging Face folders, native and timm files; with registers, gated, rotary; towers inside bigger models",
        "states 2e-6, attention 3e-7 of transformers'", 'load("dinov2-with-registers-base/")',
        reads=("attention", "class_token", "registers"), calls=_TOWER,
    ),
    Known(
        "BLIP image-text matching", ("blip_itm",), "LAVIS checkpoints, Hugging Face folders",
        "maps 1.5e-5, logits 2.5e-6 of LAVIS's",
        'load(checkpoint="model_base_retrieval_coco.pth", tokenizer="vocab.txt")',
    ),
    Known(
        "BLIP captioner", ("blip_caption",), "LAVIS checkpoints, Hugging Face folders",
        "states 1.6e-6, logits 3.2e-6 of LAVIS's",
        'load(checkpoint="model_large_caption_coco_train2014.pth", tokenizer="vocab.txt")',
    ),
    Known(
        "BLIP-VQA", ("blip_vqa",), "LAVIS checkpoints, Hugging Face folders",
        "states 2.8e-6, maps of an answer 5.3e-6 of transformers' and autograd's",
        'load(checkpoint="model_base_vqa_capfilt_large.pth", tokenizer="vocab.txt")',
    ),
    Known(
        "ALBEF", ("albef",), "pretraining, retrieval and grounding checkpoints, bare ones too",
        "maps 2.4e-5, logits 7e-6 of the public code's",
        'load(checkpoint="refcoco.pth", tokenizer="vocab.txt", config={"sep": False})',
    ),
    Known(
        "BLIP-2 image-text matching", ("blip2_itm",),
        "LAVIS checkpoints with or without their vision half, Hugging Face folders",
        "maps 1.6e-5, logits 3e-6 of LAVIS's",
        'load(checkpoint="blip2_pretrained.pth", vision="eva_vit_g.pth", tokenizer="vocab.txt")',
    ),
    Known(
        "T5 reader: UnifiedQA v2, flan-T5", ("reader",), "Hugging Face folders",
        "logits 2.1e-5 of LAVIS's", 'load(reader="unifiedqa-v2-t5-large/")',
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Sample:
    """What methods ask of a model to say whether they suit it."""

    reads: frozenset[str]
    num_blocks: int = 12
    default_block: int = 11

    @property
    def usable_blocks(self) -> tuple[int, ...]:
        return tuple(range(self.num_blocks))

    @property
    def question_blocks(self) -> tuple[int, ...]:
        return self.usable_blocks if "question_attention" in self.reads else ()


def catalogue(answers: bool = False) -> list[dict[str, Any]]:
    """Every family that loads: called, kinds, files, exact, methods, calls, typed; of models that list answers, or not."""
    found = []
    for known in KNOWN:
        module, name = DUAL if known.dual else MODELS[known.architectures[0]]
        kind = getattr(importlib.import_module(module, __package__), name)
        reads = frozenset(known.reads or kind.reads)
        own = [call for call in Capabilities.HAVE if getattr(kind, call) is not getattr(Capabilities, call)]
        found.append(
            {
                "called": known.called,
                "kinds": list(known.architectures),
                "files": known.files,
                "exact": known.exact,
                "methods": list(methods_of(_Sample(reads | {"answer_head"} if answers else reads))),
                "calls": list(known.calls or own),
                "typed": f"qavit.{known.typed}",
                "dual": known.dual,
            }
        )
    return found


def family_of(architecture: str, text: bool = True, answers: bool = False) -> dict[str, Any]:
    """The family of a `ModelSource`'s architecture, with a text half or without, and with a list of answers or without."""
    families = [family for family in catalogue(answers) if architecture in family["kinds"]]
    return next((family for family in families if family["dual"] == text), families[-1])


def refused() -> list[str]:
    """What is told by its tensors' names or its config.json, and not loaded."""
    return sorted({family.called for family in FAMILIES if family.opened_by is None}, key=str.lower)


def catalogue_text() -> str:
    """All of it for people to read."""
    lines = []
    for family in catalogue():
        lines.append(f"{family['called']} (kind {', '.join(family['kinds'])})")
        for key, label in LABELS.items():
            value = family[key]
            lines.append(f"  {label:<15} {', '.join(value) if isinstance(value, list) else value}")
        lines.append("")
    return "\n".join([*lines, f"Told by name and refused: {'; '.join(refused())}."])


def catalogue_markdown() -> str:
    """The tables of docs/MODELS.md."""
    rows = [f"| family | kind | {' | '.join(LABELS.values())} |", f"|{'---|' * (2 + len(LABELS))}"]
    for family in catalogue():
        code = {"kinds": family["kinds"], "methods": family["methods"], "calls": family["calls"], "typed": [family["typed"]]}
        shown = {key: ", ".join(f"`{one}`" for one in each) for key, each in code.items()}
        cells = [family["called"], shown["kinds"], *(shown.get(key, family[key]) for key in LABELS)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"Told by name and refused: {'; '.join(refused())}."])
