"""Questions in: tables, JSON in the layouts of public data sets and webdataset tar files, read as streams."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from .._base.archives import broken_archives, open_tar, tar_members
from .._base.files import PathLike
from .._base.pictures import PICTURE_ENDINGS, picture_in_text
from ._pictures import ImageSource, Pictures
from ._tables import (
    JsonScanner,
    Row,
    Stream,
    delimited_names,
    parquet_names,
    read_delimited,
    read_lines,
    read_parquet,
    row_of_json,
    row_of_value,
    spoiled,
    storable,
)

VQA_IMAGE_NAME = "COCO_{data_subtype}_{image_id:012d}.jpg"
"""How VQAv2 names the picture of a question."""
KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".parquet": "parquet",
    ".pq": "parquet", ".json": "json", ".tar": "tar", ".txt": "txt",
}  # fmt: skip
KEYS = {
    "id": ("id", "question_id"),
    "image": ("image", "image_path", "file_name"),
    "question": ("question", "text_input", "text", "caption"),
}
"""What is looked for in a row, under the names that public data sets have for it, the first first."""
LISTS = {"questions": VQA_IMAGE_NAME, "data": "{image_id}.jpg", "annotations": None}
"""Lists of questions in an object of JSON (VQAv2, TextVQA, COCO's captions), and how they name pictures."""
GQA_IMAGE_NAME = "{imageId}.jpg"
MAX_TEXT_BYTES = 1 << 24  # of the text beside a picture in a tar file


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
    kept : tuple of (str or None)
        Texts of the columns that are kept.
    """

    id: str
    image: Optional[ImageSource]
    question: str
    problem: Optional[str] = None
    kept: tuple[Optional[str], ...] = ()


class Reading(NamedTuple):
    """How question files are read; the arguments of `open_questions`, checked."""

    image_name: Optional[str] = None
    columns: Mapping[str, str] = {}
    keep: Mapping[str, str] = {}
    encoding: Optional[str] = None
    seek: tuple[str, ...] = ()  # columns that go along, behind those of `keep`, where they are there
    alone: bool = False  # a row may name no picture

    def column(self, role: str) -> tuple[str, ...]:
        """Where a row has its id, image or question."""
        return (self.columns[role],) if role in self.columns else KEYS[role]


def open_questions(
    paths: Union[PathLike, Sequence[PathLike]],
    images: Optional[PathLike] = None,
    image_name: Optional[str] = None,
    columns: Optional[Mapping[str, str]] = None,
    keep: Union[Mapping[str, str], Sequence[str]] = (),
    encoding: Optional[str] = None,
) -> list[QuestionFile]:
    """Question files, ready to be iterated over as often as wanted.

    Parameters
    ----------
    paths : path or list of paths
        .jsonl, .csv, .tsv, .parquet, .json (VQAv2's, TextVQA's or GQA's questions, COCO's captions, or an array of objects,
        LLaVA's conversations among them), .tar (webdataset) or .txt (a question a line, of the picture that ``image_name``
        says); all but Parquet and tar also as .gz, or alone in a .zip.
    images : path, optional
        The folder, zip or tar archive that relative pictures lie in; by default the question file's own folder, then the
        working directory.
    image_name : str, optional
        The name of a picture from the columns of its row, as a `str.format` template:
        ``"COCO_{data_subtype}_{image_id:012d}.jpg"`` is what VQAv2's questions have when none is given. Text keeps its
        leading zeros, unless the template asks for a number (``d``).
    columns : dict, optional
        Where a row has its "id", "image" and "question", for names that are not known: ``{"question": "sentence"}``.
    keep : sequence of str, or dict
        Columns that go along with their rows, as they are called or as ``{new name: column}``.
    encoding : str, optional
        Of text files without a byte order mark; by default UTF-8, or UTF-16 where the text looks like it.

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
    _check_columns(columns)
    kept = dict(keep) if isinstance(keep, Mapping) else {name: name for name in keep}
    reading = Reading(image_name, dict(columns or {}), kept, encoding)
    names = [Path(path).name for path in listed]
    if len(set(names)) < len(names):
        raise ValueError("questions: two files have the same name; rows without an id would have the same number")
    several = len(listed) > 1
    return [QuestionFile(path, images, reading, f"{Path(path).stem}:" if several else "") for path in listed]


def open_asked(
    path: PathLike,
    images: Optional[PathLike] = None,
    image_name: Optional[str] = None,
    columns: Optional[Mapping[str, str]] = None,
    encoding: Optional[str] = None,
) -> QuestionFile:
    """One file as `open_questions` reads it, whose rows may name no picture."""
    _check_columns(columns)
    return QuestionFile(path, images, Reading(image_name, dict(columns or {}), {}, encoding, alone=True), "")


def _check_columns(columns: Optional[Mapping[str, str]]) -> None:
    unknown = sorted(set(columns or ()) - set(KEYS))
    if unknown:
        raise ValueError(f"columns: there is no {unknown[0]!r} in a question; expected id, image or question")


class QuestionFile:
    """One file of questions; iterating reads it from its beginning, a little at a time.

    Attributes
    ----------
    path : str
    kind : {"jsonl", "csv", "parquet", "json", "tar", "txt"}
    size : int
        In bytes.
    position : float
        How much of the file has been read, from 0 to 1.
    """

    def __init__(self, path: PathLike, images: Optional[PathLike], reading: Reading, prefix: str) -> None:
        self.path = os.path.abspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"questions: there is no file {self.path!r}")
        self._reading, self._prefix = reading, prefix
        self.kind = self._kind()
        self.position = 0.0
        self._pictures = Pictures(images, os.path.dirname(self.path))
        self.size = max(1, os.path.getsize(self.path))
        self._rows: Callable[[], Iterator[Row]] = getattr(self, f"_read_{self.kind}")
        if self.kind == "csv":
            with Stream(self.path) as stream:
                self._columns(delimited_names(stream, reading.encoding))
        elif self.kind == "parquet":
            self._columns(parquet_names(self.path))

    @property
    def is_gqa(self) -> bool:
        """Whether it has GQA's layout: an object with a question for each of its names."""
        return self.kind == "json" and self._layout().list_name == "*"

    def _kind(self) -> str:
        with Stream(self.path) as stream:
            ending = Path(stream.name).suffix.lower()
            packed = stream.name != os.path.basename(self.path)
            if ending not in KINDS or (packed and KINDS[ending] in ("tar", "parquet")):
                hint = "; unpack it first, so that it can be read where it lies" if packed or ".tar" in self.path else ""
                raise ValueError(f"questions: {self.path!r} is none of {', '.join(sorted(KINDS))}{hint}")
            kind = KINDS[ending]
            if kind not in ("json", "jsonl"):
                return kind
            # Either ending is found on both: several objects, a line each, or one value.
            with stream.named_errors(), stream.text(self._reading.encoding) as text:
                first = text.read(1 << 20).lstrip("\ufeff \t\r\n")
            line, end, rest = first.partition("\n")
            if first.startswith("[") and kind == "jsonl" and not (line.rstrip().endswith("]") and rest.strip()):
                return "json"
            if kind == "json" and first.startswith("{") and end and rest.lstrip().startswith("{") and _is_json(line):
                return "jsonl"
            return kind

    def __iter__(self) -> Iterator[Item]:
        self.position = 0.0
        for number, item in enumerate(item for row in self._rows() for item in self._items(row)):
            yield item if item.id else item._replace(id=f"{self._prefix}{number}")
        self.position = 1.0

    # ---- rows ----

    def _items(self, row: Row) -> Iterator[Item]:
        """The questions of a row: one, or those of a list or a conversation. An id of "" is the row's number."""
        if row.problem is not None:
            problem = row.problem if row.where in row.problem else f"{row.where}: {row.problem}"
            question = self._value(row.values, "question")
            said = storable(question) if isinstance(question, str) else ""
            yield Item(self._spare_id(row.values), None, said, storable(problem), self._kept(row.values))
            return
        asked = self._asked(row.values)
        for turn, question in enumerate(asked):
            yield self._item(row, question, f":{turn}" if len(asked) > 1 else "")

    def _spare_id(self, values: Mapping[str, Any]) -> str:
        """The id of a row that is broken; "" where it has none that can be told."""
        try:
            return storable(_identity(self._value(values, "id")))
        except ValueError:
            return ""

    def _item(self, row: Row, question: Any, turn: str) -> Item:
        """What a row of any format says."""
        identity, said, image = self._spare_id(row.values), "", None
        try:
            given = _identity(self._value(row.values, "id"))
            identity = storable(given) + turn if given else ""
            if not isinstance(question, str):
                raise ValueError(f"the question is {type(question).__name__}, expected text")
            said = question
            for what, text in (("id", given), ("question", question)):
                if problem := spoiled(text):
                    raise ValueError(f"the {what}: {problem}")
            image = self._image(row.values)
            return Item(identity, image, question, None, self._kept(row.values))
        except ValueError as error:
            problem = storable(f"{row.where}: {error}")
            return Item(identity, image, storable(said), problem, self._kept(row.values))

    def _value(self, values: Mapping[str, Any], role: str) -> Any:
        return next((values[key] for key in self._reading.column(role) if values.get(key) is not None), None)

    def _asked(self, values: Mapping[str, Any]) -> list[Any]:
        question = self._value(values, "question")
        if question is None and isinstance(values.get("conversations"), list):  # LLaVA's: what the person says
            turns = [turn for turn in values["conversations"] if isinstance(turn, Mapping)]
            question = [turn.get("value") for turn in turns if turn.get("from") in ("human", "user")]
            question = [_without_marks(text) for text in question]
        if isinstance(question, list):
            return question or [""]
        return ["" if question is None else question]

    def _kept(self, values: Mapping[str, Any]) -> tuple[Optional[str], ...]:
        return tuple(_as_text(values.get(column)) for column in (*self._reading.keep.values(), *self._reading.seek))

    def _image(self, values: Mapping[str, Any]) -> Optional[ImageSource]:
        image, name = self._value(values, "image"), ""
        if isinstance(image, ImageSource):
            return image
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if isinstance(image, Mapping):  # as the datasets library stores pictures
            data, name = image.get("bytes"), str(image.get("path") or "")
            image = name if data is None else data
        if isinstance(image, bytes):
            return ImageSource(name, data=image)
        if image is None:
            image = self._named(values)
        if not image and self._reading.alone:
            return None
        if not isinstance(image, str) or not image:
            hint = "" if self._reading.image_name else "; say how pictures are named by image_name (--image-name)"
            raise ValueError(f"no image is named{hint}" if not image else f"image is {type(image).__name__}, expected text")
        if problem := spoiled(image):
            raise ValueError(f"image: {problem}")
        data = picture_in_text(image)
        return self._pictures.find(image) if data is None else ImageSource("", data=data)

    def _named(self, values: Mapping[str, Any]) -> Optional[str]:
        """The picture's name by the template of the caller or of the layout."""
        template = self._reading.image_name
        if template is None:
            return None
        try:
            fields = {key: _Text(value) if isinstance(value, str) else value for key, value in values.items()}
            return template.format(**fields)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"the picture's name {template!r} does not fit the row: {error!r}") from None

    def _columns(self, names: Sequence[str]) -> list[str]:
        """The columns of a table that are needed; ValueError when there is no picture or no question among them."""
        reading = self._reading
        fields = [] if reading.image_name is None else re.findall(r"\{(\w+)", reading.image_name)
        said = f"questions: {self.path!r} has columns {', '.join(map(storable, names))}, but no column"
        hint = "; name it by columns (--columns {}=NAME)".format
        for column in [*reading.columns.values(), *reading.keep.values()]:
            if column not in names:
                raise ValueError(f"{said} {column!r}")
        named = reading.image_name and set(fields) <= set(names)
        if not (reading.alone or named or set(reading.column("image")) & set(names)):
            raise ValueError(f"{said} 'image'{hint('image')}")
        if not {*reading.column("question"), "conversations"} & set(names):
            raise ValueError(f"{said} 'question'{hint('question')}")
        kept = {*reading.keep.values(), *reading.seek}
        wanted = {"conversations", *fields, *kept}.union(*(reading.column(role) for role in KEYS))
        return [name for name in names if name in wanted]

    # ---- formats ----

    def _followed(self, stream: Stream, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self.position = stream.position
            yield row

    def _read_jsonl(self) -> Iterator[Row]:
        with Stream(self.path) as stream:
            yield from self._followed(stream, read_lines(stream, self._reading.encoding))

    def _read_txt(self) -> Iterator[Row]:
        with Stream(self.path) as stream, stream.named_errors(), stream.text(self._reading.encoding) as text:
            for number, line in enumerate(stream.lines(text), 1):
                self.position = stream.position
                if line.strip():
                    yield Row(f"{self.path}, line {number}", {"question": line.strip()})

    def _read_csv(self) -> Iterator[Row]:
        with Stream(self.path) as stream:
            yield from self._followed(stream, read_delimited(stream, self._reading.encoding))

    def _read_parquet(self) -> Iterator[Row]:
        def tell(position: float) -> None:
            self.position = position

        yield from read_parquet(self.path, self._columns(parquet_names(self.path)), tell)

    def _read_json(self) -> Iterator[Row]:
        layout = self._layout()
        if self._reading.image_name is None and layout.image_name is not None:
            self._reading = self._reading._replace(image_name=layout.image_name)
        with Stream(self.path) as stream, stream.named_errors(), stream.text(self._reading.encoding) as text:
            yield from self._followed(stream, layout.rows(JsonScanner(text, self.path, stream.longest), self.path))

    def _layout(self) -> Layout:
        with Stream(self.path) as stream, stream.named_errors(), stream.text(self._reading.encoding) as text:
            return find_layout(JsonScanner(text, self.path, stream.longest), self.path)

    def _read_tar(self) -> Iterator[Row]:
        with broken_archives(f"questions: {self.path!r} is not a whole tar file"), open_tar(self.path) as archive:
            for key, files in _samples(archive):
                self.position = min(1.0, archive.offset / self.size)
                member = next((files[end] for end in files if end.lower() in PICTURE_ENDINGS), None)
                where = f"{self.path}, sample {storable(key)}"
                for row in _texts(archive, files, where):
                    if row.problem is None and (member is None or member.size == 0):
                        row = row._replace(problem="no image is there")
                    if row.problem is None and member is not None:
                        name = storable(f"{os.path.basename(self.path)}/{member.name}")
                        source = ImageSource(name, self.path, member.offset_data, member.size)
                        row = row._replace(values={**row.values, self._reading.column("image")[0]: source})
                    yield row


class Layout(NamedTuple):
    """How a JSON file holds its questions.

    Attributes
    ----------
    list_name : str
        The list of questions in the file's object; "": the file is a list; "*": each member of the object is a question.
    image_name : str or None
        How the layout names pictures.
    shared : dict
        What the file says of all questions.
    files : dict
        COCO: the file name of each picture's id.
    categories : dict
        COCO: the name of each category's id, which is what is asked for where an object has no text.
    """

    list_name: str = ""
    image_name: Optional[str] = None
    shared: Mapping[str, Any] = {}
    files: Mapping[str, str] = {}
    categories: Mapping[str, str] = {}

    def rows(self, scanner: JsonScanner, path: str) -> Iterator[Row]:
        """The questions, from the beginning of the file."""
        if self.list_name == "*":
            for name in scanner.members():
                if scanner.peek() == "{":
                    yield Row(f"{path}, line {scanner.line}, question {name}", {"id": name, **scanner.value()})
                else:
                    yield row_of_value(scanner.value(), f"{path}, line {scanner.line}, question {name}")
            return
        if self.list_name:
            for name in scanner.members():
                if name == self.list_name:
                    break
                scanner.skip()
        for number, (line, value) in enumerate(scanner.items()):
            row = row_of_value(value, f"{path}, line {line}, question {number}")
            if self.files and "file_name" not in row.values:
                row = row._replace(values={**row.values, "file_name": self.files.get(str(row.values.get("image_id")))})
            if (category := self.categories.get(str(row.values.get("category_id")))) is not None:
                row = row._replace(values={"text": category, "label": category, **row.values})
            yield row._replace(values={**self.shared, **row.values})
        if not self.list_name and scanner.peek():
            raise scanner.error("there is more after the list")


def find_layout(scanner: JsonScanner, path: str) -> Layout:
    """How a JSON file holds its questions. ValueError where it holds none."""
    if scanner.peek() == "[":
        return Layout()
    if scanner.peek() != "{":
        raise scanner.error("expected a list or an object")
    shared: dict[str, Any] = {}
    named: dict[str, dict[str, str]] = {"images": {}, "categories": {}}
    keys = {"images": "file_name", "categories": "name"}
    lists = []
    for name in scanner.members():
        ahead = scanner.peek()
        if ahead == "[":
            lists.append(name)
            if name == "questions" and "data_subtype" in shared:
                break  # what comes later changes nothing
            for _, value in scanner.items():
                if name in keys and isinstance(value, Mapping) and isinstance(value.get(keys[name]), str):
                    named[name][str(value.get("id"))] = value[keys[name]]
            continue
        value = scanner.value()
        if ahead != "{":
            shared[name] = value
        elif any(key in value for key in KEYS["question"]):
            return Layout("*", GQA_IMAGE_NAME)
    found = next((name for name in LISTS if name in lists), None)
    if found is None:
        raise ValueError(f"questions: {path!r} holds no list of questions")
    template = LISTS[found]
    if found == "questions":
        said = shared.get("data_subtype")
        known = re.search(r"(train|val|test)(-dev)?\d{4}", str(said or "") or Path(path).name)
        subtype = known.group(0).replace("-dev", "") if known else said
        if subtype is None:
            template = None
        else:
            shared["data_subtype"] = subtype
    shared = {name: value for name, value in shared.items() if name in ("data_subtype", "data_type", "task_type")}
    return Layout(found, template, shared, named["images"], named["categories"])


class _Text(str):
    """Text that a template may also ask for as a number: "000123" is 000123 by itself and 123 as a number."""

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec.endswith("d") and self.isdecimal() else super().__format__(spec)


def _identity(given: Any) -> str:
    """An id as text, "" for none. ValueError for what is none."""
    if given is None or isinstance(given, str):
        return given or ""
    if isinstance(given, float) and given.is_integer():  # as tables with gaps hold whole numbers
        return str(int(given))
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return str(given)
    raise ValueError(f"the id is {type(given).__name__}, expected text or a number")


def _as_text(value: Any) -> Optional[str]:
    """A value of a kept column: text as it is, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _without_marks(text: Any) -> Any:
    """What a person says in a conversation, without the picture's mark."""
    return re.sub(r"\s*<image>\s*", "", text) if isinstance(text, str) else text


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Files that follow one another under one name, by their endings: webdataset's samples."""
    current, files = "", dict[str, tarfile.TarInfo]()
    for member in tar_members(archive):
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


def _texts(archive: tarfile.TarFile, files: Mapping[str, tarfile.TarInfo], where: str) -> Iterator[Row]:
    """The questions of a sample: .json with question or a list of questions, else .txt."""
    ending = next((one for one in ("json", "txt") if one in files), None)
    if ending is None:
        yield Row(where, {}, "no text is there")
        return
    if files[ending].size > MAX_TEXT_BYTES:
        yield Row(where, {}, f"its .{ending} is larger than {MAX_TEXT_BYTES} bytes")
        return
    content = (archive.extractfile(files[ending]) or io.BytesIO()).read()
    if ending == "txt":
        yield Row(where, {"question": content.decode("utf-8", "surrogateescape").strip()})
        return
    row = row_of_json(content, where)
    questions = row.values.get("questions")
    if not isinstance(questions, list):
        yield row
        return
    shared = {name: value for name, value in row.values.items() if name not in ("questions", "id", "question_id")}
    for question in questions:
        yield Row(where, {**shared, **(question if isinstance(question, Mapping) else {"question": question})})
