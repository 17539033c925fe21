"""Write a model as one folder that `qavit.load` maps in place, and say what a model is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Union

from .._base.files import naming
from .._base.system import exchange_folders, is_running, sync_folder
from .._core import build_info
from ._describe import _check_source
from ._source import PROMPT_TOKENIZER, ModelSource
from ._weights import (
    MAX_INT8_DEPTH,
    STORED_DTYPES,
    Stored,
    base_dtype,
    check_unchanged,
    dtype_of,
    origins,
    panel_columns,
    shape_of,
)
from .formats.safetensors_files import write_safetensors

PathLike = Union[str, "os.PathLike[str]"]
_FILES = {"config.json", "model.safetensors", "tokenizer.json", PROMPT_TOKENIZER}
#: Widths of panels that kernels read: 64 for AVX-512, 16 for AVX2.
PANEL_WIDTHS = (16, 64)
#: Matrices that go into panels: those of linear layers.
_LAYERS = re.compile(
    r"^((?:vision|(?:prompts\.)?text)_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12]|instruct_dim_reduce\.[13])"
    r"|text_model\.(en|de)coder\.block\.\d+\.layer\.\d\.((Self|EncDec)Attention\.[qkvo]|DenseReluDense\.w(i|i_0|i_1|o))"
    r"|text_model\.translation_mlp\.layers\.[01]"
    r"|text_model\.encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|((attention\.)?output|intermediate)\.dense)"
    r"|text_(encoder|decoder\.bert)\.encoder\.layer\.\d+\.((cross)?attention\.self\.(query|key|value)"
    r"|((cross)?attention\.)?output\.dense|output_query\.dense|intermediate(_query)?\.dense))\.weight$"
)


#: Of these, the ones that compute in int8 only where all of a block does: its last layer.
_LAST = re.compile(r"\.(mlp\.fc2|DenseReluDense\.wo|layer\.\d+\.output\.dense|output_query\.dense)\.weight$")
#: And the ones that never do, as they are in no block.
_OUTSIDE = re.compile(r"\.(instruct_dim_reduce\.[13]|translation_mlp\.layers\.[01])\.weight$")
#: What `convert` takes.
DTYPES = (*STORED_DTYPES, "int8_mixed")


def convert(
    source: ModelSource,
    folder: PathLike,
    dtype: str | None = None,
    panels: int | None = None,
    *,
    fold: bool | None = None,
    calibrate: PathLike | Iterable[Any] | None = None,
) -> Path:
    """Write config.json, model.safetensors and tokenizer.json.

    The folder is written beside its place under another name and renamed when it is whole, so that an interrupted call
    leaves nothing that loads. An earlier converted folder of the name is replaced; any other is left alone.

    Parameters
    ----------
    source : ModelSource
        What `qavit.checkpoints.open_model` gives; LoRA is merged in it already.
    folder : path
        Its parent has to exist.
    dtype : {None, "float32", "float16", "bfloat16", "int8", "int8_mixed"}
        What matrices are stored as; None: as they are in the source. Vectors (norms, biases, gates) stay float32, which
        costs next to nothing, where they are that. int8 are the linear layers of blocks, as ``precision="int8"`` multiplies
        by them, always in panels; the other matrices, and layers that have no such panels, are bfloat16 then, and with
        "int8_mixed" so is the last layer of each block, for ``precision="int8_mixed"``.
    panels : {None, 0, 16, 64}
        Columns of the panels that the matrices of linear layers are stored in, so that products read them where they
        are mapped: 64 for a CPU with AVX-512, 16 for AVX2, 0 for row-major matrices (which int8 has not); None: what this
        CPU reads. Any CPU loads any of them; one that reads another width makes its own panels in memory. The file's size
        is the same.
    fold : bool, optional
        Whether channels that are far larger than others are evened out between norms and the products that read them, so
        that int8 rounds them finely (docs/MODEL.md, section 8); maps in float32 stay the same. None: where int8 is stored or
        `calibrate` is given.
    calibrate : folder, path, or iterable of pictures, optional
        Of a folder all pictures, but at most 64 of them, or pictures as `heatmaps` takes them: what norms give is then
        measured on them. Without any, gains, biases and weights alone say which channels are large.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError, FileExistsError, FileNotFoundError, OSError
        On a dtype that is not known or too small for a weight, a folder that is something else, a full disk; on pictures
        that cannot be read, or a model that looks at none.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    int8 = dtype in ("int8", "int8_mixed")
    if panels is None:
        panels = int(build_info()["panel_columns"]) or (max(PANEL_WIDTHS) if int8 else 0)
    if int8 and panels == 0:
        raise ValueError("panels: int8 matrices are stored in panels alone; expected 16 or 64, got 0")
    if panels not in (0, *PANEL_WIDTHS):
        raise ValueError(f"panels: expected one of 0, {', '.join(map(str, PANEL_WIDTHS))}, got {panels!r}")
    if fold is False and calibrate is not None:
        raise ValueError("calibrate: pictures say what to fold, and fold is False")
    _check_source(source)
    weights: Stored = dict(source.every_weight())
    if fold or calibrate is not None or (fold is None and int8):
        from ._folding import calibration_pixels, folded, seen_ranges

        weights = folded(source.every_weight(), seen_ranges(source, calibration_pixels(source, calibrate)))
    dtypes = _stored_dtypes(weights, dtype, panels)
    target = Path(os.path.realpath(folder))
    _check_target(target)
    if source.tokenizer is not None and source.text is not None:
        from ..text import Tokenizer

        Tokenizer(source.tokenizer, source.text["vocab_size"])
    _remove_leftovers(target)
    with _partial_folder(target) as partial, naming(target):
        with _new_file(partial / "model.safetensors") as file:
            write_safetensors(file, weights, dtypes)
        check_unchanged(origins(source.weights))
        prompts = None if source.prompts is None else source.prompts.tokenizer
        for name, json_text in (("tokenizer.json", source.tokenizer), (PROMPT_TOKENIZER, prompts)):
            if json_text is not None:
                with _new_file(partial / name) as file:
                    file.write(json_text.encode())
        with _new_file(partial / "config.json") as file:
            file.write(json.dumps(_config(source, dtypes), indent=1, ensure_ascii=False).encode() + b"\n")
        _put_in_place(partial, target)
    return target


def _stored_dtypes(weights: Stored, dtype: str | None, panels: int) -> dict[str, str]:
    """What each tensor is stored as, and in panels of how many columns."""
    result = {}
    for name, tensor in weights.items():
        layout, shape = dtype_of(tensor), shape_of(tensor)
        own = base_dtype(layout)
        stored = own if dtype is None or (len(shape) < 2 and own == "float32") else dtype
        if stored == "int8_mixed":
            stored = "bfloat16" if _LAST.search(name) else "int8"
        if stored == "int8" and not (panels and _goes_into_panels(name, shape, stored, panels, weights)):
            # The panels that it has, of another width; else what it computes in, or is not far from.
            stored = layout if own == "int8" else "bfloat16"
        if panels and not panel_columns(stored) and _goes_into_panels(name, shape, stored, panels, weights):
            stored = f"{stored}@{panels}"
        result[name] = stored
    return result


def _goes_into_panels(name: str, shape: tuple[int, ...], dtype: str, panels: int, weights: Stored) -> bool:
    if not _LAYERS.match(name) or dtype == "float16" or shape[1] % {"bfloat16": 2, "int8": 4}.get(dtype, 1):
        return False
    if dtype == "int8" and (shape[1] > MAX_INT8_DEPTH or _OUTSIDE.search(name)):
        return False
    # An integrated block adds its second projection to the first at load.
    second = name.replace(".out_proj.", ".instruction_out_proj.")
    return shape[0] % panels == 0 and (second == name or second not in weights)


def _version(dtypes: dict[str, str]) -> int:
    """Of the format: 2 where there are panels, 3 where some are int8, so that what does not know them says so."""
    if any(base_dtype(dtype) == "int8" for dtype in dtypes.values()):
        return 3
    return 2 if any(map(panel_columns, dtypes.values())) else 1


def _config(source: ModelSource, dtypes: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "format": "qavit",
        "version": _version(dtypes),
        "architecture": source.architecture,
        "vision": source.vision,
        "text": source.text,
        "prompts": None if source.prompts is None else source.prompts.text,
        "preprocessing": source.preprocessing,
        "questions": source.questions,
        "answers": source.answers,
        "defaults": source.defaults,
    }
    return {key: value for key, value in result.items() if key == "vision" or value not in (None, {})}


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder: {target.parent} is not a folder to put {target.name!r} in")
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"folder: {target} is a file")
    others = sorted(entry.name for entry in target.iterdir() if entry.name not in _FILES)
    if others:
        raise FileExistsError(f"folder: {target} exists and holds other files ({', '.join(others[:5])}); give another name")


def _prefix(target: Path) -> str:
    return f".{target.name}.qavit-partial-"


def _remove_leftovers(target: Path) -> None:
    """Remove what earlier calls that were killed left beside the target; the process number is in the name."""
    pattern = re.compile(re.escape(_prefix(target)) + r"(\d+)-")
    for entry in target.parent.iterdir():
        match = pattern.match(entry.name)
        if match and entry.is_dir() and not entry.is_symlink() and not is_running(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


@contextlib.contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    try:
        partial = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename the whole folder into its place; what was there is left under the partial folder's name, to be removed."""
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o777 & ~mask)
    try:
        partial.rename(target)  # also over an empty folder
    except OSError:
        if not target.is_dir():
            raise
        if not exchange_folders(partial, target):
            old = partial.with_name(partial.name + "-old")
            target.rename(old)
            try:
                partial.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)
