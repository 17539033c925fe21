"""Write a model as one folder that `qavit.load` maps in place, and say what a model is."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Union

from .._base.files import is_running
from .._core import build_info
from ._describe import _check_source
from ._source import PROMPT_TOKENIZER, ModelSource
from ._weights import CORE_DTYPES, Stored, base_dtype, check_unchanged, dtype_of, origins, panel_columns, shape_of
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
    dtype : {None, "float32", "float16", "bfloat16"}
        What matrices are stored as; None: as they are in the source. Vectors (norms, biases, gates) stay float32, which
        costs next to nothing, where they are that.
    panels : {None, 0, 16, 64}
        Columns of the panels that the matrices of linear layers are stored in, so that products read them where they
        are mapped: 64 for a CPU with AVX-512, 16 for AVX2, 0 for row-major matrices; None: what this CPU reads. Any CPU
        loads any of them; one that reads another width makes its own panels in memory. The file's size is the same.
    fold : bool, optional
        Whether channels that are far larger than others are evened out between norms and the products that read them, so
        that int8 rounds them finely (docs/MODEL.md, section 8); maps in float32 stay the same. None: where `calibrate` is
        given.
    calibrate : folder, path, or iterable of pictures, optional
        Of a folder all pictures, but at most 64 of them: what norms give is then measured on them. Without any, gains,
        biases and weights alone say which channels are large.

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
    if dtype is not None and dtype not in CORE_DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(CORE_DTYPES)}, got {dtype!r}")
    if panels is None:
        panels = int(build_info()["panel_columns"])
    if panels not in (0, *PANEL_WIDTHS):
        raise ValueError(f"panels: expected one of 0, {', '.join(map(str, PANEL_WIDTHS))}, got {panels!r}")
    if fold is False and calibrate is not None:
        raise ValueError("calibrate: pictures say what to fold, and fold is False")
    _check_source(source)
    weights: Stored = dict(source.every_weight())
    if fold or calibrate is not None:
        from ._folding import calibration_pixels, folded, seen_ranges

        weights = folded(source.every_weight(), seen_ranges(source, calibration_pixels(source, calibrate)))
    dtypes = _stored_dtypes(weights, dtype, panels)
    target = Path(os.path.realpath(folder))
    _check_target(target)
    if source.tokenizer is not None and source.text is not None:
        from ..text import Tokenizer

        Tokenizer(source.tokenizer, source.text["vocab_size"])
    _remove_leftovers(target)
    with _partial_folder(target) as partial:
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
        own, shape = base_dtype(dtype_of(tensor)), shape_of(tensor)
        stored = own if dtype is None or (len(shape) < 2 and own == "float32") else dtype
        if panels and _goes_into_panels(name, shape, stored, panels, weights):
            stored = f"{stored}@{panels}"
        result[name] = stored
    return result


def _goes_into_panels(name: str, shape: tuple[int, ...], dtype: str, panels: int, weights: Stored) -> bool:
    if not _LAYERS.match(name) or dtype == "float16" or (dtype == "bfloat16" and shape[1] % 2):
        return False
    # An integrated block adds its second projection to the first at load.
    second = name.replace(".out_proj.", ".instruction_out_proj.")
    return shape[0] % panels == 0 and (second == name or second not in weights)


def _config(source: ModelSource, dtypes: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "format": "qavit",
        "version": 2 if any(map(panel_columns, dtypes.values())) else 1,
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
        if not _exchange(partial, target):
            old = partial.with_name(partial.name + "-old")
            target.rename(old)
            try:
                partial.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _exchange(one: Path, two: Path) -> bool:
    """Swap two folders in one step, so that there is never none; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(two), swap) == 0)
