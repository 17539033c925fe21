"""A run's folder: a manifest, parts that are there whole or not at all, and what has been read of the input.

- OUT/_manifest.json: what was asked, of which model, about which input
- OUT/parts/FFFFF-NNNNNN.parquet: part N of input file F, one row group
- OUT/_input-FFFFF.json: written when input file F was read to its end: how many parts and rows it has

Names that begin with "_" are not looked at by what reads folders of Parquet: pandas, pyarrow, DuckDB, datasets.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.extras import require
from .._base.files import PathLike, remove_leftovers, whole_file
from .._base.small_files import read_json
from .._base.system import take_lock, try_lock
from ._plan import Part, Shard
from ._rows import MapRow, scale_maps
from ._tables import storable

FORMAT, VERSION = "qavit-maps", 1
MANIFEST = "_manifest.json"
PART_NAME = re.compile(r"(\d{5,})-(\d{6,})\.parquet")
SAMPLES, SAMPLE_BYTES = 16, 1 << 16
Cells = Union[Sequence[Any], npt.NDArray[Any]]
MODEL_ENDINGS = frozenset({".json", ".safetensors", ".bin", ".pt", ".pth", ".txt", ".model"})


def schema_of(dtype: npt.DTypeLike, keep: Sequence[str] = ()) -> Any:
    """The columns of a part; `keep` are those of the input, as text."""
    pa = require("pyarrow", "data")
    value = pa.from_numpy_dtype(np.dtype(dtype))
    needed = [("id", pa.string()), ("image", pa.string()), ("question", pa.string()), ("method", pa.string()),
              ("grid", pa.list_(pa.int32(), 2))]  # fmt: skip
    fields = [pa.field(name, kind, nullable=False) for name, kind in needed]
    fields += [
        pa.field("block", pa.int16()),
        # Not of fixed size: before 26, pyarrow cannot read such a column again where a row has none.
        pa.field("map", pa.list_(value)),
        pa.field("scale", pa.float32(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("answer", pa.string()),
        pa.field("answer_score", pa.float32()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("picture_size", pa.list_(pa.int32())),
        pa.field("region", pa.list_(pa.float64())),
        pa.field("notes", pa.list_(pa.string()), nullable=False),
        pa.field("error", pa.string()),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
    return pa.schema([*fields, *(pa.field(name, pa.string()) for name in keep)])


def check_keep(keep: Sequence[str]) -> None:
    """ValueError where a column that is kept would be called as one of the run's own."""
    for name in keep:
        if name in schema_of("float32").names:
            raise ValueError(f"keep: {name!r} is a column of the run's own; give it another name: input_{name}={name}")


def table_of(rows: Sequence[MapRow], grid: tuple[int, int], dtype: npt.DTypeLike, keep: Sequence[str] = ()) -> Any:
    """Rows as a pyarrow table."""
    pa = require("pyarrow", "data")
    schema = schema_of(dtype, keep)
    flat = np.zeros((len(rows), grid[0] * grid[1]), np.float32)
    for place, row in enumerate(rows):
        if row.map is not None:
            flat[place] = row.map.reshape(-1)
    maps, scale = scale_maps(flat, dtype)
    made: dict[str, Cells] = {
        "map": [None if row.map is None else own for row, own in zip(rows, maps)],
        "scale": scale,
        "block": [row.block if isinstance(row.block, int) else None for row in rows],  # several stand in the manifest
    }

    def cells(name: str) -> Cells:
        return made[name] if name in made else [row.kept.get(name) if name in keep else getattr(row, name) for row in rows]

    return pa.Table.from_arrays([_column(cells(field.name), field.type) for field in schema], schema=schema)


def _column(cells: Cells, kind: Any) -> Any:
    """Cells as an Arrow array of texts, numbers, or lists of them; None: null.

    Not by ``pa.array``, which imports pandas, half a second's work, to see whether it is given something of its.
    """
    pa = require("pyarrow", "data")
    if isinstance(cells, np.ndarray):
        return pa.Array.from_buffers(kind, len(cells), [None, pa.py_buffer(cells)])
    there = np.array([cell is not None for cell in cells], bool)
    buffers = [None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))]
    if not (pa.types.is_string(kind) or pa.types.is_nested(kind)):
        numbers = np.array([0 if cell is None else cell for cell in cells], kind.to_pandas_dtype())
        return pa.Array.from_buffers(kind, len(cells), [*buffers, pa.py_buffer(numbers)])
    several = [b"" if cell is None else storable(cell).encode() if isinstance(cell, str) else cell for cell in cells]
    if not pa.types.is_fixed_size_list(kind):
        ends = np.cumsum([0, *map(len, several)])
        if ends[-1] > np.iinfo(np.int32).max:
            what = f"a part's column has {ends[-1]} bytes or items, expected below 2^31"
            raise ValueError(f"{what}; choose a smaller part_rows")
        buffers.append(pa.py_buffer(ends.astype(np.int32)))
    if pa.types.is_string(kind):
        return pa.Array.from_buffers(kind, len(cells), [*buffers, pa.py_buffer(b"".join(several))])
    arrays = [cell for cell in several if isinstance(cell, np.ndarray)]
    inner = np.concatenate(arrays) if arrays else [one for cell in several for one in cell]
    return pa.Array.from_buffers(kind, len(cells), buffers, children=[_column(inner, kind.value_type)])


def write_part(
    path: PathLike, rows: Sequence[MapRow], grid: tuple[int, int], dtype: npt.DTypeLike, keep: Sequence[str] = ()
) -> None:
    """One part, as one row group; when this returns, the disk holds it."""
    parquet = require("pyarrow.parquet", "data")
    table = table_of(rows, grid, dtype, keep)
    with whole_file(path, durable=True) as file:
        parquet.write_table(table, file, row_group_size=len(rows), compression="zstd", compression_level=1)


def file_identity(path: PathLike) -> str:
    """A name for a file's content: its size and samples of it, so that a file of many gigabytes costs a megabyte."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def model_identity(parts: Mapping[str, Any]) -> str:
    """A name for what `qavit.load` is given: the files, wherever they lie, and the options."""
    from ..answers._open import is_configuration, parts_named
    from ..checkpoints._hub import Hub
    from ..checkpoints._places import hub_folder

    hub = Hub(bool(parts.get("hub")), parts.get("revision"), bool(parts.get("local_files_only")))
    said: dict[str, Any] = {}
    if is_configuration(parts.get("model")):
        said = {name: model_identity(block) for name, block in parts_named(parts["model"]).items()}
    for name, value in sorted(parts.items()):
        if value is None or name.startswith("cache") or (name, value) in (("precision", "float32"), ("device", "cpu")):
            continue  # what is kept changes no row
        if name not in ("model", "path", "checkpoint", "vision", "text", "tokenizer", "reader"):
            said[name] = value
            continue
        place = Path(__file__).parents[1] / "demo_model" if name in ("model", "path") and value == "demo" else Path(value)
        place = hub_folder(value, name, hub) or place
        files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
        if place.is_dir():
            files = [path for path in files if path.suffix in MODEL_ENDINGS]
        said[name] = [[path.name if place.is_dir() else "", file_identity(path)] for path in files]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:32]


class PartFolder:
    """A run's folder as every worker sees it; can be pickled.

    Attributes
    ----------
    path, parts : pathlib.Path
        The folder, and where in it the parts are.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.parts = self.path / "parts"

    def part_path(self, name: str) -> Path:
        """Where a part lies."""
        return self.parts / f"{name}.parquet"

    def finished_input(self, file: int) -> Optional[dict[str, int]]:
        """How many parts and rows an input file has, where it has been read to its end."""
        return finished_input(self.path, file)

    def finish_input(self, file: int, parts: int, rows: int) -> None:
        """Remember how many parts and rows an input file has."""
        with whole_file(self.path / f"_input-{file:05d}.json", durable=True) as target:
            target.write(json.dumps({"parts": parts, "rows": rows}).encode())


class OutputFolder(PartFolder):
    """Where one share of a run is written.

    Parameters
    ----------
    path : path
        Made when it is not there.
    manifest : dict
        What the run is; it must be what the folder's own manifest says, where there is one.
    shard : Shard
    files : int
        How many input files there are.
    again : bool
        Whether this share's parts are made anew.
    retry_errors : bool
        Whether parts that have rows with an error are made anew.

    Attributes
    ----------
    done : set of str
        Names of the parts of any share that were there at the start and stay.

    Raises
    ------
    ValueError
        The folder holds a run with other options or another input, or another process is writing this share.
    """

    def __init__(
        self,
        path: PathLike,
        manifest: Mapping[str, Any],
        shard: Shard,
        files: int,
        again: bool = False,
        retry_errors: bool = False,
    ) -> None:
        super().__init__(path)
        self._shard, self._files = shard, files
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(
            self.path / f".lock-{shard.number}-of-{shard.total}",
            f"out: another process is writing share {shard} into {str(self.path)!r}",
        )
        try:
            names = [name[: -len(".parquet")] for name in os.listdir(self.parts) if PART_NAME.fullmatch(name)]
            old_ones = [name for name in names if again and self._is_mine(name)]
            names = [name for name in names if name not in set(old_ones)]
            known = read_manifest(self.path) if (self.path / MANIFEST).exists() else None
            # Without a part of anybody's, what an earlier run was is of no account.
            fresh = known is None or (not names and self._is_alone())
            if known is not None and not fresh:
                self._compare(known, dict(manifest))
            self.remove(old_ones)
            if fresh:
                for old in self.path.glob("_input-*.json"):
                    old.unlink(missing_ok=True)
                with whole_file(self.path / MANIFEST, durable=True) as file:
                    file.write(json.dumps({"format": FORMAT, "version": VERSION, **manifest}, indent=1).encode())
            self.done = set(names)
            if retry_errors:
                self.done -= {name for name in names if self._is_mine(name) and self._failed(name)[1]}
            for place in (self.path, self.parts):
                remove_leftovers(place)
        except BaseException:
            self.close()
            raise

    def _is_alone(self) -> bool:
        """Whether no other share is being written."""
        for path in self.path.glob(".lock-*"):
            if path.name != os.path.basename(self._lock.name):
                with open(path, "w") as lock:
                    if not try_lock(lock):
                        return False
        return True

    def _compare(self, known: Mapping[str, Any], manifest: dict[str, Any]) -> None:
        manifest = json.loads(json.dumps(manifest))
        for key, value in manifest.items():
            if key != "about" and known.get(key) != value:
                shown = [json.dumps(one) for one in (known.get(key), value)]
                theirs, ours = (one if len(one) < 100 else "others" for one in shown)
                if key == "model":  # what identifies it says nothing to a reader
                    theirs, ours = (str(one.get("about", {}).get("model")) for one in (known, manifest))
                    ours = "that of other files or options" if ours == theirs else ours
                raise ValueError(
                    f"out: {str(self.path)!r} was made with {key} {theirs}, this run has {ours}; "
                    "a run goes on with the input and options that it began with: choose another folder, or again (--again)"
                )

    def _is_mine(self, name: str) -> bool:
        file, number = (int(piece) for piece in name.split("-"))
        return self._shard.has_part(Part(file, number), self._files)

    def remove(self, names: Iterable[str]) -> None:
        """Take parts away again."""
        for name in names:
            self.part_path(name).unlink(missing_ok=True)

    def remove_new(self) -> None:
        """Take away what this share has written since it began."""
        names = (name[: -len(".parquet")] for name in os.listdir(self.parts) if PART_NAME.fullmatch(name))
        self.remove(name for name in names if name not in self.done and self._is_mine(name))

    def _failed(self, name: str) -> tuple[int, int]:
        """How many rows a part has, and how many of them failed."""
        about = require("pyarrow.parquet", "data").read_metadata(self.part_path(name))
        place = next(number for number in range(about.num_columns) if about.schema.column(number).path == "error")
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        return about.num_rows, sum(group.num_rows - group.column(place).statistics.null_count for group in groups)

    def count(self) -> tuple[int, int]:
        """Rows of this share that were there at the start, and how many of them had failed."""
        counts = [self._failed(name) for name in filter(self._is_mine, self.done)]
        return sum(rows for rows, _ in counts), sum(errors for _, errors in counts)

    def close(self) -> None:
        """Let others write this share."""
        self._lock.close()


def read_manifest(folder: PathLike) -> dict[str, Any]:
    """The manifest of a run's folder.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is not one that this version reads.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = read_json(path, may_lack=True)
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest: {error}") from None
    if manifest is None:
        raise FileNotFoundError(f"there is no run in {os.fspath(folder)!r}: no {MANIFEST}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not a manifest of qavit run")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path}: version {manifest.get('version')!r:.40}, this qavit reads {VERSION}")
    _check_manifest(manifest, path)
    return manifest


def _check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """ValueError where what is read of a manifest is not there, or of another kind."""
    grid, block = manifest.get("grid"), manifest.get("block")
    numbers = block if isinstance(block, list) else [block]
    about, keep = manifest.get("about", {}), manifest.get("keep", [])
    for name, well in (
        ("grid", isinstance(grid, list) and len(grid) == 2 and all(_is_count(side) and 0 < side < 1 << 15 for side in grid)),
        ("block", all(map(_is_count, numbers))),
        ("method", isinstance(manifest.get("method"), str)),
        ("questions", isinstance(manifest.get("questions"), list)),
        ("keep", isinstance(keep, (list, dict)) and all(isinstance(one, str) for one in keep)),
        ("about", isinstance(about, dict)),
    ):
        if not well:
            raise ValueError(f"{path}: not a manifest of qavit run: {name} is {manifest.get(name)!r:.60}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def finished_input(folder: Path, file: int) -> Optional[dict[str, int]]:
    """How many parts and rows an input file of a run has; None where it has not been read to its end.

    Raises
    ------
    ValueError
        The run's note of it is broken.
    """
    path = folder / f"_input-{file:05d}.json"
    counts: Any = read_json(path, may_lack=True)
    if counts is None:
        return None
    if not isinstance(counts, dict) or not all(_is_count(counts.get(name)) for name in ("parts", "rows")):
        raise ValueError(f"{path}: expected how many parts and rows there are, got {counts!r:.60}")
    return {name: counts[name] for name in ("parts", "rows")}
