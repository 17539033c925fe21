"""Questions in: JSON lines, CSV, Parquet, VQAv2's JSON and webdataset tar files, read as streams."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from .._base.extras import require
from .._base.files import PathLike

VQA_IMAGE_NAME = "COCO_{data_subtype}_{image_id:012d}.jpg"
"""How VQAv2 names the picture of a question."""
KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".json": "json", ".tar": "tar",
}  # fmt: skip
PICTURE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"})
ID_KEYS = ("id", "question_id")
QUESTION_KEYS = ("question", "text_input")
MAX_TEXT_BYTES = 1 << 24  # of the text beside a picture in a tar file


class ImageSource(NamedTuple):
    """Where a picture is; nothing of it is read before :meth:`read`. Equal sources are the same picture.

    Attributes
    ----------
    name : str
        As the input names it; what rows of output are called by.
    path : str
        The file that it is, or that it is in.
    offset, size : int
        Where in that file, for a picture in a tar file; `size` 0 is the whole file.
    data : bytes or None
        The picture file itself, where the input holds it.
    """

    name: str
    path: str = ""
    offset: int = 0
    size: int = 0
    data: Optional[bytes] = None

    def read(self) -> Union[str, bytes]:
        """What `qavit.images.load_image` takes: a path, or a file's bytes."""
        if self.data is not None:
            return self.data
        if self.size:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        return self.path if os.path.exists(self.path) or not os.path.exists(self.name) else self.name


class Item(NamedTuple):
    """One question.

    Attributes
    ----------
    id : str
        The input's own, or the number of the row from 0.
    image : ImageSource or None
        None where the row names none.
    question : str
    problem : str or None
        Why the row cannot be asked.
    """

    id: str
    image: Optional[ImageSource]
    question: str
    problem: Optional[str] = None


def open_questions(
    paths: Union[PathLike, Sequence[PathLike]], images: Optional[PathLike] = None, image_name: Optional[str] = None
) -> list[QuestionFile]:
    """Question files, ready to be iterated over as often as wanted.

    Parameters
    ----------
    paths : path or list of paths
        .jsonl, .csv, .tsv, .parquet, .json (VQAv2's questions, or an array of objects) or .tar (webdataset).
    images : path, optional
        The folder that relative pictures lie in; by default the question file's own, then the working directory.
    image_name : str, optional
        The name of a picture from the columns of its row, as a `str.format` template:
        ``"COCO_{data_subtype}_{image_id:012d}.jpg"`` is what VQAv2's questions have when none is given.

    Returns
    -------
    list of QuestionFile

    Raises
    ------
    FileNotFoundError
        A file or the folder is not there.
    ValueError
        No file is given, its ending is not known, or a table has no column to take questions or pictures from.
    """
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not listed:
        raise ValueError("questions: no file given")
    if images is not None and not os.path.isdir(images):
        raise FileNotFoundError(f"images: there is no folder {os.fspath(images)!r}")
    names = [Path(path).name for path in listed]
    if len(set(names)) < len(names):
        raise ValueError("questions: two files have the same name; rows without an id would have the same number")
    several = len(listed) > 1
    return [
        QuestionFile(path, images, image_name, f"{Path(path).stem}:" if several else "") for path in listed
    ]


class QuestionFile:
    """One file of questions; iterating reads it from its beginning, a little at a time.

    Attributes
    ----------
    path : str
    kind : {"jsonl", "csv", "parquet", "json", "tar"}
    size : int
        In bytes.
    position : float
        How much of the file has been read, from 0 to 1.
    """

    def __init__(self, path: PathLike, images: Optional[PathLike], image_name: Optional[str], prefix: str) -> None:
        self.path = os.path.abspath(path)
        ending = Path(self.path).suffix.lower()
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"questions: there is no file {self.path!r}")
        if ending not in KINDS:
            hint = "; unpack it first, so that pictures can be read where they lie" if ".tar" in self.path else ""
            raise ValueError(f"questions: {self.path!r} is none of {', '.join(sorted(KINDS))}{hint}")
        self.kind = KINDS[ending]
        self.position = 0.0
        self._folder = os.path.dirname(self.path) if images is None else os.path.abspath(images)
        self._image_name = image_name
        self._prefix = prefix
        self.size = max(1, os.path.getsize(self.path))
        self._read: Callable[[], Iterator[Item]] = getattr(self, f"_read_{self.kind}")
        if self.kind in ("csv", "parquet"):
            self._check_columns()

    def __iter__(self) -> Iterator[Item]:
        self.position = 0.0
        yield from self._read()
        self.position = 1.0

    # ---- rows ----

    def _item(self, number: int, row: Any, where: str) -> Item:
        """What a row of any format says."""
        own = f"{self._prefix}{number}"
        if not isinstance(row, Mapping):
            return Item(own, None, "", f"{where}: expected an object with image and question, got {type(row).__name__}")
        given = next((row[key] for key in ID_KEYS if row.get(key) is not None), None)
        identity = own if given is None else str(given)
        question = next((row[key] for key in QUESTION_KEYS if row.get(key) is not None), "")
        if not isinstance(question, str):
            return Item(identity, None, "", f"{where}: the question is {type(question).__name__}, expected text")
        try:
            image = self._image(row)
        except ValueError as error:
            return Item(identity, None, question, f"{where}: {error}")
        return Item(identity, image, question)

    def _image(self, row: Mapping[str, Any]) -> ImageSource:
        image = row.get("image")
        if isinstance(image, Mapping):  # as the datasets library stores pictures
            data, name = image.get("bytes"), str(image.get("path") or "")
            image = name if data is None else data
        else:
            name = ""
        if isinstance(image, bytes):
            return ImageSource(name, data=image)
        if image is None and self._image_name is not None:
            try:
                image = self._image_name.format(**{key: _number(value) for key, value in row.items()})
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"the picture's name {self._image_name!r} does not fit the row: {error!r}") from None
        if not isinstance(image, str) or not image:
            raise ValueError("no image is named" if not image else f"image is {type(image).__name__}, expected text")
        return ImageSource(image, os.path.join(self._folder, image))

    def _number_rows(self, rows: Iterable[Any], unit: str, first: int = 0) -> Iterator[Item]:
        for number, row in enumerate(rows):
            yield self._item(number, row, f"{self.path}, {unit} {number + first}")

    # ---- formats ----

    def _read_jsonl(self) -> Iterator[Item]:
        number, done = 0, 0
        with open(self.path, "rb") as file:
            for place, line in enumerate(file, 1):
                done += len(line)
                if not line.strip():
                    continue
                self.position = done / self.size
                where = f"{self.path}, line {place}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:  # of the encoding too
                    yield Item(f"{self._prefix}{number}", None, "", f"{where}: not JSON: {error}")
                else:
                    yield self._item(number, row, where)
                number += 1

    def _read_csv(self) -> Iterator[Item]:
        with open(self.path, "rb") as file, io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="") as text:

            def rows() -> Iterator[Any]:
                for row in self._csv(text):
                    self.position = file.tell() / self.size
                    yield row

            yield from self._number_rows(rows(), "row", 1)

    def _csv(self, text: Iterable[str]) -> csv.DictReader[str]:
        return csv.DictReader(text, delimiter="\t" if self.path.lower().endswith(".tsv") else ",")

    def _read_parquet(self) -> Iterator[Item]:
        with require("pyarrow.parquet", "data").ParquetFile(self.path) as file:
            total = max(1, file.metadata.num_rows)
            columns = self._columns(file.schema_arrow.names)

            def rows() -> Iterator[Any]:
                done = 0
                for batch in file.iter_batches(batch_size=256, columns=columns):
                    for row in batch.to_pylist():
                        done += 1
                        self.position = done / total
                        yield row

            yield from self._number_rows(rows(), "row")

    def _columns(self, names: Sequence[str]) -> list[str]:
        """The columns of a table that are needed; ValueError when there is no picture or no question among them."""
        fields = [] if self._image_name is None else re.findall(r"\{(\w+)", self._image_name)
        if "image" not in names and not (fields and set(fields) <= set(names)):
            raise ValueError(f"questions: {self.path!r} has columns {', '.join(names)}, but no column 'image'")
        if not set(QUESTION_KEYS) & set(names):
            raise ValueError(f"questions: {self.path!r} has columns {', '.join(names)}, but no column 'question'")
        wanted = {"image", *ID_KEYS, *QUESTION_KEYS, *fields}
        return [name for name in names if name in wanted]

    def _check_columns(self) -> None:
        if self.kind == "csv":
            with open(self.path, encoding="utf-8-sig", errors="replace", newline="") as text:
                self._columns(list(self._csv(text).fieldnames or ()))
        else:
            with require("pyarrow.parquet", "data").ParquetFile(self.path) as file:
                self._columns(file.schema_arrow.names)

    def _read_json(self) -> Iterator[Item]:
        ijson = require("ijson", "data")
        broken = (ijson.JSONError, UnicodeDecodeError)
        shared: dict[str, Any] = {}
        prefix = ""
        with open(self.path, "rb") as file:
            try:
                for prefix, event, value in ijson.parse(file):
                    if event == "start_array" and prefix in ("", "questions"):
                        break
                    if prefix in ("data_subtype", "data_type", "task_type"):
                        shared[prefix] = value
                else:
                    raise ValueError(f"questions: {self.path!r} holds no list of questions")
            except broken as error:
                raise ValueError(f"questions: {self.path!r} is not JSON: {error}") from None
        if prefix == "questions":
            self._image_name = self._image_name or VQA_IMAGE_NAME
            found = re.search(r"(train|val|test)(-dev)?\d{4}", str(shared.get("data_subtype", "")) or Path(self.path).name)
            shared["data_subtype"] = found.group(0).replace("-dev", "") if found else shared.get("data_subtype", "")
        with open(self.path, "rb") as file:

            def rows() -> Iterator[Any]:
                try:
                    for row in ijson.items(file, f"{prefix}.item" if prefix else "item", use_float=True):
                        self.position = file.tell() / self.size
                        yield {**shared, **row} if isinstance(row, dict) else row
                except broken as error:
                    raise ValueError(f"questions: {self.path!r} is not JSON: {error}") from None

            yield from self._number_rows(rows(), "question")

    def _read_tar(self) -> Iterator[Item]:
        name = os.path.basename(self.path)
        number = 0
        try:
            with tarfile.open(self.path, "r:") as archive:
                for key, files in _samples(archive):
                    self.position = archive.offset / self.size
                    endings = {ending: member for ending, member in files.items() if ending.lower() in PICTURE_ENDINGS}
                    member = next(iter(endings.values()), None)
                    image = None
                    if member is not None:
                        image = ImageSource(f"{name}/{member.name}", self.path, member.offset_data, member.size)
                    for row in _texts(archive, files):
                        yield self._tar_item(number, key, row, image)
                        number += 1
        except tarfile.TarError as error:
            raise ValueError(f"questions: {self.path!r} is not a whole tar file: {error}") from None

    def _tar_item(self, number: int, key: str, row: Any, image: Optional[ImageSource]) -> Item:
        where = f"{self.path}, sample {key}"
        item = self._item(number, {**row, "image": b""} if isinstance(row, Mapping) else row, where)
        if item.problem is not None:
            return item
        if image is None or image.size == 0:
            return item._replace(image=None, problem=f"{where}: no image is there")
        return item._replace(image=image)


def _number(value: Any) -> Any:
    """Digits as the number that a name's format expects."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Files that follow one another under one name, by their endings: webdataset's samples."""
    current, files = "", dict[str, tarfile.TarInfo]()
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # else every member ever read is remembered
        if not member.isfile():
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != current and files:
            yield current, files
            files = {}
        current = key
        files[ending] = member
    if files:
        yield current, files


def _texts(archive: tarfile.TarFile, files: Mapping[str, tarfile.TarInfo]) -> Iterator[Any]:
    """The questions of a sample: .json with question or a list of questions, else .txt."""

    def content(ending: str) -> bytes:
        if files[ending].size > MAX_TEXT_BYTES:
            return b""
        file = archive.extractfile(files[ending])
        return b"" if file is None else file.read()

    if "json" in files:
        try:
            row = json.loads(content("json"))
        except (ValueError, RecursionError):
            yield "text that is not JSON"
            return
        if isinstance(row, dict) and isinstance(row.get("questions"), list):
            for question in row["questions"]:
                yield question if isinstance(question, Mapping) else {"question": question}
        else:
            yield row
        return
    yield {"question": content("txt").decode("utf-8", "replace").strip() if "txt" in files else ""}
