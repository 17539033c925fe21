"""Maps out of a run's folder."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

import numpy as np
import numpy.typing as npt

from .._base.extras import require
from .._base.files import PathLike
from .._base.types import FloatArray
from ._output import PART_NAME, finished_input, read_manifest
from ._rows import MapRow
from ._tables import arrow_errors

CACHED_PARTS = 8
Taken = TypeVar("Taken")


def read_maps(out: PathLike) -> MapReader:
    """The rows that ``qavit run`` wrote, finished or not.

    Parameters
    ----------
    out : path
        The run's folder.

    Returns
    -------
    MapReader
        Iterate over it for one `MapRow` after another; `to_numpy`, `to_pandas` and `gather` give many at once.

    Raises
    ------
    FileNotFoundError
        There is no run.
    ValueError
        Its manifest cannot be read.
    """
    return MapReader(out)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """A damaged part is a ValueError that names it: other columns than a run's, or what pyarrow says."""
    damage: tuple[type[Exception], ...] = (*arrow_errors(), LookupError, TypeError)
    try:
        yield
    except FileNotFoundError:
        raise
    except damage as error:
        raise ValueError(f"{str(file)!r} cannot be read as a part of a run: {error}") from None


class MapReader:
    """Rows of a run's folder, a part at a time: memory does not grow with their number.

    Attributes
    ----------
    manifest : dict
        What the run is.
    grid : tuple of int
        (gh, gw).
    block : int or tuple of int
    method : str
    """

    def __init__(self, out: PathLike) -> None:
        self.path = Path(out)
        self.manifest = read_manifest(out)
        rows, columns = self.manifest["grid"]
        self.grid: tuple[int, int] = (rows, columns)
        block = self.manifest["block"]
        self.block: Union[int, tuple[int, ...]] = tuple(block) if isinstance(block, list) else block
        self.method: str = self.manifest["method"]
        self._parquet = require("pyarrow.parquet", "data")
        names = sorted(name for name in os.listdir(self.path / "parts") if PART_NAME.fullmatch(name))
        self.files = [self.path / "parts" / name for name in names]
        self._places: Optional[dict[str, tuple[int, int]]] = None
        self._cache: OrderedDict[int, tuple[FloatArray, npt.NDArray[np.bool_]]] = OrderedDict()

    @property
    def complete(self) -> bool:
        """Whether every row of the input has its row here."""
        counts: dict[int, int] = {}
        for file in self.files:
            number = int(file.name.partition("-")[0])
            counts[number] = counts.get(number, 0) + 1
        for number in range(len(self.manifest["questions"])):
            finished = finished_input(self.path, number)
            if finished is None or finished["parts"] != counts.get(number, 0):
                return False
        return True

    def __len__(self) -> int:
        total = 0
        for file in self.files:
            with _reading(file):
                rows = self._parquet.read_metadata(file).num_rows
                if rows < 0:
                    raise ValueError(f"it says that it has {rows} rows")
            total += rows
        return total

    def __iter__(self) -> Iterator[MapRow]:
        for rows in self._each(self._rows):
            yield from rows

    def _rows(self, table: Any) -> list[MapRow]:
        maps, there = self._maps(table)
        kept = [name for name in table.column_names if name not in MapRow._fields and name != "scale"]
        plain = table.drop_columns(["map", "scale", "grid", "block"])
        rows = []
        for place, row in enumerate(plain.to_pylist()):
            values = maps[place].copy() if there[place] else None
            own = {name: row[name] for name in plain.column_names if name not in kept}
            for name in ("picture_size", "region", "notes", "captions"):
                own[name] = None if own[name] is None else tuple(own[name])
            mine = {name: row[name] for name in kept}
            rows.append(MapRow(**own, grid=self.grid, block=self.block, map=values, kept=mine))
        return rows

    def tables(self, columns: Optional[Sequence[str]] = None) -> Iterator[Any]:
        """The parts one after another, as pyarrow tables; only `columns` of them, where given.

        Raises
        ------
        ValueError
            A part cannot be read; the message names it.
        """
        return self._each(lambda table: table, columns)

    def _each(self, take: Callable[[Any], Taken], columns: Optional[Sequence[str]] = None) -> Iterator[Taken]:
        """What `take` gives of each part."""
        for file in self.files:
            with _reading(file):
                taken = take(self._table(file, columns))
            yield taken

    def _table(self, file: Path, columns: Optional[Sequence[str]] = None) -> Any:
        # Not read_table: it makes lists of the length that a part states of every column, read or not.
        with self._parquet.ParquetFile(file) as part:
            names = part.schema_arrow.names
            wanted = names if columns is None else list(columns)
            for name in wanted:
                if name not in names:
                    raise ValueError(f"it has no column {name!r}, only {', '.join(names)}")
            return part.read(columns=wanted).select(wanted)

    def _maps(self, table: Any) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Maps float32 [B, gh, gw] of a table, and which of them are there; the others are NaN."""
        column = table.column("map").combine_chunks()
        column = column.combine_chunks() if hasattr(column, "chunks") else column
        if not hasattr(column.type, "value_type") or not hasattr(column, "flatten"):
            raise ValueError(f"its maps are {column.type}, expected lists of numbers")
        there = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)
        maps = np.full((len(there), self.grid[0] * self.grid[1]), np.nan, np.float32)
        scale = table.column("scale").to_numpy()
        if there.any():
            # flatten() leaves out what is null.
            stored = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, maps.shape[1])
            maps[there] = stored.astype(np.float32) * scale[there, None]
        return maps.reshape(-1, *self.grid), there

    def to_numpy(self) -> tuple[list[str], FloatArray]:
        """Everything that has a map, in memory.

        Returns
        -------
        ids : list of str
        maps : float32 [N, gh, gw]
            In the order of `ids`; rows that failed are left out.
        """
        ids: list[str] = []
        maps = [np.empty((0, *self.grid), np.float32)]

        def take(table: Any) -> tuple[list[str], FloatArray]:
            values, there = self._maps(table)
            return [name for name, well in zip(table.column("id").to_pylist(), there) if well], values[there]

        for names, values in self._each(take, ("id", "map", "scale")):
            ids += names
            maps.append(values)
        return ids, np.concatenate(maps)

    def to_pandas(self, columns: Optional[Sequence[str]] = None) -> Any:
        """A pandas DataFrame of all rows.

        Parameters
        ----------
        columns : sequence of str, optional
            By default id, image, question, map, score, answer, notes, error, seconds and what was kept of the input; there
            are method, block, grid, answer_score, captions, picture_size and region too. `map` holds float32
            [gh, gw], or None.
        """
        pandas = require("pandas", "data")
        usual = ["id", "image", "question", "map", "score", "answer", "notes", "error", "seconds"]
        wanted = [*usual, *self.manifest.get("keep", ())] if columns is None else list(columns)
        stored = [*wanted, "scale"] if "map" in wanted else wanted

        def take(table: Any) -> Any:
            frame = table.select([name for name in wanted if name != "map"]).to_pandas()
            if "map" in wanted:
                frame["map"] = [values if well else None for values, well in zip(*self._maps(table))]
            return frame[wanted]

        frames = list(self._each(take, stored))
        return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame(columns=wanted)

    def errors(self) -> Iterator[tuple[str, str]]:
        """(id, error) of each row that failed."""

        def take(table: Any) -> list[tuple[str, str]]:
            rows = zip(table.column("id").to_pylist(), table.column("error").to_pylist())
            return [(identity, error) for identity, error in rows if error is not None]

        for rows in self._each(take, ("id", "error")):
            yield from rows

    def gather(self, ids: Sequence[Any]) -> FloatArray:
        """The maps of some rows.

        Parameters
        ----------
        ids : sequence
            Wanted rows; numbers are taken as their text. The first call reads all ids (about 100 bytes a row of memory).

        Returns
        -------
        float32 [len(ids), gh, gw]

        Raises
        ------
        KeyError
            There is no such row, or it failed, or several rows have the id; the message says which, and why.
        """
        wanted = [str(identity.item() if hasattr(identity, "item") else identity) for identity in ids]
        places = self._index()
        missing = [identity for identity in wanted if identity not in places]
        if missing:
            raise KeyError(f"{self.path}: no row has the id {missing[0]!r} ({len(missing)} of {len(wanted)} are missing)")
        maps = np.empty((len(wanted), *self.grid), np.float32)
        for place, identity in enumerate(wanted):
            file, row = places[identity]
            if file < 0:
                raise KeyError(f"{self.path}: several rows have the id {identity!r}; read them one by one")
            values, there = self._part(file)
            if not there[row]:
                with _reading(self.files[file]):
                    errors = self._table(self.files[file], ("error",)).column(0)
                raise KeyError(f"{self.path}: row {identity!r} has no map: {errors[row].as_py()}")
            maps[place] = values[row]
        return maps

    def _index(self) -> dict[str, tuple[int, int]]:
        if self._places is None:
            places: dict[str, tuple[int, int]] = {}
            for file, identities in enumerate(self._each(lambda table: table.column("id").to_pylist(), ("id",))):
                for row, identity in enumerate(identities):
                    places[identity] = (file, row) if identity not in places else (-1, -1)
            self._places = places
        return self._places

    def _part(self, file: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """A part's maps, the last few of which are kept."""
        if file not in self._cache:
            with _reading(self.files[file]):
                self._cache[file] = self._maps(self._table(self.files[file], ("map", "scale")))
            if len(self._cache) > CACHED_PARTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(file)
        return self._cache[file]

    def __repr__(self) -> str:
        rows = re.sub(r"(?<=\d)(?=(\d{3})+$)", ",", str(len(self)))
        state = "complete" if self.complete else "not finished"
        return f"MapReader({str(self.path)!r}: {rows} rows in {len(self.files)} parts, {state}, grid {self.grid})"
