"""Loading a model of any kind."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.arguments import byte_count
from .._base.files import make_folder
from .._base.types import ImageSize, Precision
from ._devices import check_device, check_precision
from ._picture_cache import DEFAULT_LIMIT
from ._picture_folder import DEFAULT_LIMIT as DEFAULT_FOLDER_LIMIT

if TYPE_CHECKING:
    from ._model import Model

#: Where models of each architecture are made; one line a kind.
MODELS = {
    "qavit": ("._question_vit", "QAViT"),
    "clip": ("._question_vit", "QAViT"),
    "siglip": ("._question_vit", "QAViT"),
    "vit": ("._question_vit", "QAViT"),
    "blip_itm": ("._blip_itm", "BlipITM"),
    "blip_vqa": ("._blip_vqa", "BlipVQA"),
    "reader": ("._reader", "Reader"),
    "albef": ("._albef", "ALBEF"),
    "blip2_itm": ("._blip2_itm", "BLIP2ITM"),
    "blip_caption": ("._captioner", "BlipCaptioner"),
}
#: Where those are made that have both halves.
DUAL = ("._dual_encoder", "DualEncoder")
NAFLEX = ("._naflex", "NaFlexEncoder")


def load(
    path: str | Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    vision: str | Path | None = None,
    text: str | Path | None = None,
    tokenizer: str | Path | None = None,
    reader: str | Path | None = None,
    config: dict[str, Any] | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
    image_size: ImageSize | None = None,
    offload_model: bool = False,
    hub: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    cache: int | str = DEFAULT_LIMIT,
    cache_dir: str | Path | None = None,
    cache_dir_limit: int | str = DEFAULT_FOLDER_LIMIT,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : str or Path, optional
        ``"demo"``, the bundled model (also when nothing at all is given); a folder, or a file of weights; or
        ``"hf://owner/name"``, a model on the Hugging Face hub (that works for `vision` and `text` as well).
    checkpoint : str or Path, optional
        A public QA-ViT checkpoint (``qavit-base2.pth``; with `vision` and `text`), or a LAVIS BLIP-ITM one
        (with `tokenizer`).
    vision, text : str or Path, optional
        Folders in the Hugging Face layout: a CLIP or SigLIP model; a T5, BERT, (XLM-)RoBERTa, CLIP or SigLIP text encoder. A
        CLIP or SigLIP that holds both halves, or whose halves are given one by one, is a :class:`DualEncoder`; its vision
        half alone takes no questions.
    tokenizer : str or Path, optional
        A ``tokenizer.json``, ``vocab.txt`` or OpenAI's ``bpe_simple_vocab_16e6.txt.gz``, where the files have none.
    reader : str or Path, optional
        A T5 that answers, alone: a folder of UnifiedQA v2 or flan-T5.
    config : dict, optional
        What the files do not tell: ``integration_point``, ``lora_alpha``, ... . ``position_resize``: how position embeddings
        are taken to another grid, by the name of one of the field's ways, whose results differ: "bicubic" (transformers,
        Grad-ECLIP; the default but for towers whose own code has another), "bicubic_antialias" (LeGrad, GEM, open_clip),
        "bicubic_offset" (NACLIP, ClearCLIP, DINOv2), "bilinear" (CLIP Surgery), "bilinear_antialias".
    precision : {"float32", "bfloat16", "int8", "int8_mixed", "tf32"}
        Of the products. Where the CPU has no bfloat16 products, float32 computes, with a `PrecisionWarning`. In "int8" the
        linear layers of blocks multiply 8-bit weights with 8-bit rows, each row with a scale of its own, on any CPU; in
        "int8_mixed" the last layer of each block stays out of that; whatever is not int8 (attention, patches, heads,
        projections) is bfloat16, or float32 where the CPU has none. docs/MODEL.md says what it changes. On a GPU bfloat16
        computes in its place, with a `PrecisionWarning`. "tf32" is for GPUs: float32 with factors rounded to 10 bits.
    device : {"cpu", "cuda", "cuda:N"} or torch.device
        Where to run. A GPU needs a build with CUDA, see docs/CUDA.md.
    image_size : int or (int, int), optional
        Another input size than the model was trained at, a side or (height, width), multiples of its patch size; position
        embeddings are interpolated. 448 is what LeGrad and GEM show B/16.
    offload_model : bool
        On a GPU: keep the weights in the host's memory and stream them through two buffers, a block at a time, so that a
        model larger than the GPU's free memory runs. On the CPU it changes nothing.
    hub : bool
        Take ``"owner/name"`` that is no folder here for a model on the hub; without it nothing is asked of the network.
    revision : str, optional
        The hub's branch, tag or commit.
    local_files_only : bool
        Of the hub's models only what is in the cache already.
    cache : int or str
        How many bytes are kept of pictures that the model has seen, as 256_000_000 or "256MB"; 0: none. The next question
        about such a picture, the same file or the same pixels again, is answered sooner and the same to the last bit.
    cache_dir : str or Path, optional
        A folder, made where it is missing, that keeps it for other processes as well, now and later: files, by a digest of
        the weights, the precision, this build and the kind of CPU. Of what a GPU computes nothing is kept there. Whoever can
        write there can change what is computed. Where it cannot be written, a `PictureCacheWarning` says so once.
    cache_dir_limit : int or str
        How many bytes that folder may hold, of all models; what was not used for longest goes first. By default 4 GB.

    Returns
    -------
    Model
        Of the kind that the files hold; its attribute `kind` says which.

    Raises
    ------
    FileNotFoundError
        A file or folder is missing.
    ValueError
        A file is broken, a tensor is missing or mis-shaped, two parts do not fit, or an argument is not one of the above.
    """
    check_precision(precision)
    check_device(device)
    limit = byte_count(cache, "cache")
    folder_limit = byte_count(cache_dir_limit, "cache_dir_limit")
    folder = None if cache_dir is None else _cache_folder(cache_dir)
    if path is None and checkpoint is None and vision is None and reader is None:
        if text is not None:
            raise ValueError("text: given alone; expected checkpoint= (QA-ViT) or vision= (CLIP) beside it")
        path = "demo"
    from ..checkpoints._opening import open_model

    files = {
        "path": path, "checkpoint": checkpoint, "vision": vision, "text": text, "tokenizer": tokenizer, "reader": reader
    }  # fmt: skip
    source = open_model(
        path, checkpoint=checkpoint, vision=vision, text=text, tokenizer=tokenizer, reader=reader, config=config,
        image_size=image_size, hub=hub, revision=revision, local_files_only=local_files_only,
    )  # fmt: skip
    both = source.text is not None and source.architecture in ("clip", "siglip")
    module, name = MODELS[source.architecture] if not both else NAFLEX if "max_patches" in source.vision else DUAL
    kind = getattr(importlib.import_module(module, __package__), name)
    model: Model = kind(source, precision=precision, device=device, offload_model=offload_model)
    model._picture_cache.limit = limit
    model._keep_in(folder, folder_limit)
    kept = {"cache": limit, "cache_dir": folder, "cache_dir_limit": folder_limit}
    others = {"config": config, "image_size": image_size, "precision": precision, **kept}
    places = {"hub": hub, "revision": revision, "local_files_only": local_files_only}
    model._remember({**files, **others, **places}, _load_again)
    return model


def _cache_folder(path: str | Path) -> str:
    """The absolute path, the folder made where that can be done; where not, the first who writes there says so."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"cache_dir: expected the path of a folder, got {type(path).__name__}")
    if not os.fspath(path):
        raise ValueError("cache_dir: got '', expected the path of a folder")
    try:
        make_folder(path, "cache_dir")
    except NotADirectoryError:
        raise
    except OSError:
        pass
    return os.path.abspath(path)


def _load_again(arguments: dict[str, Any]) -> Any:
    """An unpickled model."""
    return load(**arguments)
