"""Rows of files as streams: JSON lines, JSON, CSV, TSV, Parquet; nothing in them is trusted.

A row that cannot be read is a row with a problem, and the rows after it are read; a file that cannot be read is a ValueError
that names it and the line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, Optional, Union

from .._base.archives import BROKEN, broken_archives, files_of, open_member
from .._base.extras import require

MAX_FIELD = 1 << 30  # letters of a field of a table
MAX_QUOTED_LINES = 1000  # that a quoted field may go over
MAX_VALUE = 1 << 28  # letters of one row
MAX_INFLATION, MIN_INFLATED = 32, 1 << 26  # of a packed file: a row's letters for each of its bytes, or at all
PIECE = 1 << 16
SPOILED = re.compile("[\ud800-\udfff]")
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


class Row(NamedTuple):
    """A row of a file: where it stands, and its values or what is wrong with it."""

    where: str
    values: Mapping[str, Any]
    problem: Optional[str] = None


class Stream:
    """A file open for reading, unpacked where it is gzip or a zip archive of one file.

    Attributes
    ----------
    path : str
    name : str
        Of what is read: without ``.gz``, or the archive's file.
    """

    def __init__(self, path: str) -> None:
        self.path, self.name = path, os.path.basename(path)
        self._raw: BinaryIO = open(path, "rb")  # noqa: SIM115
        self.file: BinaryIO = self._raw
        self._size = max(1, os.path.getsize(path))
        self.longest = MAX_VALUE
        try:
            if self.name.lower().endswith(".gz"):
                self.name = self.name[:-3]
                self.file = gzip.GzipFile(fileobj=self._raw)  # type: ignore[assignment]
            elif self.name.lower().endswith(".zip"):
                self.file = self._only_member()
            if self.file is not self._raw:
                self.longest = min(MAX_VALUE, max(MIN_INFLATED, MAX_INFLATION * self._size))
        except BaseException:
            self._raw.close()
            raise

    def _only_member(self) -> BinaryIO:
        with broken_archives(f"questions: {self.path!r}"):
            archive = zipfile.ZipFile(self._raw)
            members = [one for one in files_of(archive) if "__MACOSX" not in one.filename]
            if len(members) != 1:
                raise ValueError(f"it holds {len(members)} files, expected one; unpack it")
            self.name = os.path.basename(members[0].filename)
            return open_member(archive, members[0])  # type: ignore[return-value]

    @property
    def position(self) -> float:
        """How much of the file has been read, from 0 to 1."""
        return min(1.0, self._raw.tell() / self._size)

    def head(self, size: int = 4096) -> bytes:
        """The first bytes, which are read again afterwards."""
        with self.named_errors():
            data = self.file.read(size)
            self.file.seek(0)
        return data

    def text(self, encoding: Optional[str]) -> io.TextIOWrapper:
        """As text; bytes that are no letters become lone surrogates, which `spoiled` finds."""
        found = _encoding(self.head(), encoding)
        errors = "surrogatepass" if found.startswith(("utf-16", "utf-32")) else "surrogateescape"
        self.encoding = found
        return io.TextIOWrapper(self.file, found, errors, newline="")

    def lines(self, text: io.TextIOWrapper) -> Iterator[str]:
        """The lines of a text with their ends; ValueError for one that no row is as long as."""
        number = 0
        while line := text.readline(self.longest + 1):
            number += 1
            if len(line) > self.longest:
                raise ValueError(f"questions: {self.path!r}: line {number} has more than {self.longest} letters")
            yield line

    def named_errors(self, line: Callable[[], int] = lambda: 0) -> _NamedErrors:
        """What is wrong with the file's bytes becomes a ValueError that names the file."""
        return _NamedErrors(self.path, line, self.file is not self._raw)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        self._raw.close()


class _NamedErrors:
    def __init__(self, path: str, line: Callable[[], int], packed: bool) -> None:
        self._path, self._line, self._packed = path, line, packed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if isinstance(error, UnicodeError):
            line = self._line()
            where = f" after line {line}" if line else ""
            name = getattr(error, "encoding", "text")
            raise ValueError(f"questions: {self._path!r}{where} is not {name}: {error}") from None
        if self._packed and isinstance(error, BROKEN) and not isinstance(error, (ValueError, MemoryError)):
            raise ValueError(f"questions: {self._path!r} is not a whole archive: {error}") from None


def _encoding(head: bytes, asked: Optional[str]) -> str:
    """A byte order mark tells; then what was asked for; then zeros, which UTF-16 has at every second place of plain text."""
    for mark, name in BOMS:
        if head.startswith(mark):
            return name
    if asked is not None:
        try:
            codecs.lookup(asked)
        except LookupError:
            raise ValueError(f"encoding: {asked!r} is none; utf-8, utf-16, cp1252, gb18030 are some") from None
        return asked
    if len(head) >= 4 and 0 not in head[:4:2] and not any(head[1:4:2]):
        return "utf-16-le"
    if len(head) >= 4 and not any(head[:4:2]) and 0 not in head[1:4:2]:
        return "utf-16-be"
    return "utf-8"


def spoiled(text: str, encoding: str = "utf-8") -> Optional[str]:
    """What is wrong with a text that no file can hold; None where all is well."""
    found = SPOILED.search(text)
    if found is None:
        return None
    letter = ord(found.group())
    if 0xDC80 <= letter <= 0xDCFF:
        hint = "; where the file is Windows-1252, say encoding='cp1252' (--encoding cp1252)" if "utf-8" in encoding else ""
        return f"byte 0x{letter - 0xDC00:02x} is not {encoding.upper().replace('-SIG', '')}{hint}"
    return f"a lone surrogate (U+{letter:04X}), which is half a letter"


def storable(text: str) -> str:
    """The text with what no file can hold written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8") if SPOILED.search(text) else text


# ---- CSV and TSV ----


class Records:
    """Records of a delimited text with the line that each begins in; a bad one is told and the next line begins the next.

    Parameters
    ----------
    lines : iterator of str
        With their ends.
    tab : bool
        Separated by tabs, where a quote that cannot be one is a letter; otherwise by commas, or by semicolons or tabs where
        the first line has those and no comma.
    """

    def __init__(self, lines: Iterator[str], tab: bool) -> None:
        self._lines, self._again = lines, deque[str]()
        self.line = 0
        first = self._next() or ""
        self._again.appendleft(first)
        self.line = 0
        self.delimiter = "\t" if tab else next((one for one in ",;\t" if one in first), ",")
        self.names: list[str] = []
        self.names = [name.strip() for name in next((fields for _, fields, _ in self), [])]

    def __iter__(self) -> Iterator[tuple[int, list[str], Optional[str]]]:
        """(line, fields, problem) of each record."""
        while (line := self._next()) is not None:
            start = self.line
            if not line.strip("\r\n"):
                continue
            if '"' not in line:
                fields: Union[list[str], str] = line.rstrip("\r\n").split(self.delimiter)
            else:
                fields = self._quoted(line)
            if isinstance(fields, str):
                yield start, [], fields
                continue
            extra = fields[len(self.names) :]
            if self.names and any(extra):
                hint = "; a comma in a text needs quotes around the text" if self.delimiter == "," else ""
                yield start, fields, f"{len(fields)} fields, expected {len(self.names)} ({', '.join(self.names)}){hint}"
            else:
                yield start, fields, None

    def _next(self) -> Optional[str]:
        line = self._again.popleft() if self._again else next(self._lines, None)
        self.line += line is not None
        return line

    def _quoted(self, line: str) -> Union[list[str], str]:
        """The fields of a record that begins with this line, or what is wrong with it; lines after a bad one come again."""
        taken: list[str] = []
        letters = len(line)

        def lines() -> Iterator[str]:
            nonlocal letters
            yield line
            while len(taken) <= MAX_QUOTED_LINES and letters <= MAX_FIELD and (more := self._next()) is not None:
                taken.append(more)
                letters += len(more)
                yield more

        try:
            fields = _first_record(lines(), self.delimiter)
        except csv.Error as error:
            unclosed = "unexpected end" in str(error)
            problem = "a quote that is never closed" if unclosed else f"quotes that are no table's: {error}"
        else:
            # In a table by tabs, lines that are rows by themselves are rows: the quote was a letter.
            if self.delimiter == "\t" and self._is_row(line) and any(map(self._is_row, taken)):
                problem = "a quote that is not closed in its row"
            elif taken and self.names and any(fields[len(self.names) :]):
                problem = f"a quote that is closed {len(taken)} lines later, where there are too many fields"
            else:
                return fields
        self._again.extendleft(reversed(taken))
        self.line -= len(taken)
        return line.rstrip("\r\n").split("\t") if self.delimiter == "\t" and self._is_row(line) else problem

    def _is_row(self, line: str) -> bool:
        return line.count(self.delimiter) + 1 == len(self.names)


def _first_record(lines: Iterator[str], delimiter: str) -> list[str]:
    """The fields of the record that the first line begins; no more lines are taken. csv.Error where its quotes are wrong."""
    before = csv.field_size_limit(MAX_FIELD)
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    finally:
        csv.field_size_limit(before)


def read_delimited(stream: Stream, encoding: Optional[str]) -> Iterator[Row]:
    """Rows of a CSV or TSV file; the first has no values and is the header, to be checked by the caller."""
    records: Optional[Records] = None
    with stream.named_errors(lambda: records.line if records else 0), stream.text(encoding) as text:
        records = Records(stream.lines(text), stream.name.lower().endswith((".tsv", ".tab")))
        for line, fields, problem in records:
            yield Row(f"{stream.path}, line {line}", dict(zip(records.names, fields)), problem)


def delimited_names(stream: Stream, encoding: Optional[str]) -> list[str]:
    """The columns that a CSV or TSV file's first line names. ValueError where that is broken."""
    with stream.named_errors(), stream.text(encoding) as text:
        names = Records(stream.lines(text), stream.name.lower().endswith((".tsv", ".tab"))).names
    for name in names:
        if problem := spoiled(name, stream.encoding):
            raise ValueError(f"questions: {stream.path!r}, line 1: column {storable(name)!r}: {problem}")
        if name and names.count(name) > 1:
            raise ValueError(f"questions: {stream.path!r}, line 1: two columns are called {name!r}")
    return names


# ---- JSON ----


def read_lines(stream: Stream, encoding: Optional[str]) -> Iterator[Row]:
    """Rows of a file with a JSON object in each line."""
    number = 0
    with stream.named_errors(lambda: number), stream.text(encoding) as text:
        for number, line in enumerate(stream.lines(text), 1):
            if line.strip():
                yield row_of_json(line, f"{stream.path}, line {number}", stream.encoding)


def row_of_json(text: Union[str, bytes], where: str, encoding: str = "utf-8") -> Row:
    """A JSON object as a row."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # of the encoding too
        said = spoiled(text, encoding) if isinstance(text, str) else None
        return Row(where, {}, said or f"not JSON: {error}")
    return row_of_value(values, where)


def row_of_value(values: Any, where: str) -> Row:
    """What stands in a JSON file as a row."""
    if isinstance(values, Mapping):
        return Row(where, values)
    return Row(where, {}, f"expected an object with image and question, got {type(values).__name__}")


_SPACE = re.compile(r"[ \t\r\n]*")


class JsonScanner:
    """A JSON text taken apart from its beginning, a piece of it in memory at a time."""

    def __init__(self, text: io.TextIOBase, path: str, longest: int = MAX_VALUE) -> None:
        self._file, self._path, self._longest = text, path, longest
        self._text, self._at, self._over = "", 0, False
        self._counted, self._lines = 0, 1  # how many lines begin before that place
        self._decode = json.JSONDecoder().raw_decode

    @property
    def line(self) -> int:
        """Where the scanner stands, from 1."""
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def peek(self) -> str:
        """The next letter that is no space; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches everywhere
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """The next letter, which has to be one of these."""
        found = self.peek()
        if not found or found not in wanted:
            what = f"got {found!r}" if found else "the file ends"
            raise self.error(f"expected {' or '.join(wanted)}, {what}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # A number may go on in the next piece: "1." of 1.5.
                if end < len(self._text) and (self._over or self._text[end:].strip(".eE+-")):
                    self._at = end
                    return value
                if not self._more():
                    value, self._at = self._decode(self._text, self._at)
                    return value
            except RecursionError:
                raise self.error("nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 16
                into = error.pos - self._at
                if not cut or len(self._text) - self._at > self._longest or not self._more():
                    self._at = min(self._at + into, len(self._text))
                    raise self.error(error.msg) from None
            except ValueError as error:  # a number of thousands of digits
                raise self.error(str(error)) from None

    def members(self) -> Iterator[str]:
        """The names in an object; its value has to be taken before the next."""
        self.take("{")
        while self.peek() != "}":
            name = self.value()
            if not isinstance(name, str):
                raise self.error(f"expected a name, got {name!r}")
            self.take(":")
            yield name
            if self.take(",}") == "}":
                return
        self.take("}")

    def items(self) -> Iterator[tuple[int, Any]]:
        """(line, value) of each item of an array."""
        self.take("[")
        while self.peek() != "]":
            line = self.line
            yield line, self.value()
            if self.take(",]") == "]":
                return
        self.take("]")

    def skip(self) -> None:
        """Pass over the next value, a long list item by item."""
        if self.peek() == "[":
            for _ in self.items():
                pass
        else:
            self.value()

    def error(self, said: str) -> ValueError:
        """What is wrong where the scanner stands."""
        found = spoiled(self._text[self._at : self._at + 200])
        return ValueError(f"questions: {self._path!r}, line {self.line}: not JSON: {found or said}")

    def _more(self) -> bool:
        """Read on; False at the end."""
        if self._over:
            return False
        self._lines, self._counted = self.line, 0
        rest = self._text[self._at :]
        piece = self._file.read(max(PIECE, len(rest)))  # doubling, so that a large value costs no more than twice its size
        self._text, self._at, self._over = rest + piece, 0, not piece
        return bool(piece)


# ---- Parquet ----


def parquet_names(path: str) -> list[str]:
    """The columns of a Parquet file. ValueError where it is none."""
    with _parquet(path) as file:
        try:
            return list(file.schema_arrow.names)
        except arrow_errors() as error:
            raise ValueError(f"questions: the columns of {path!r} cannot be read: {error}") from None


def read_parquet(path: str, columns: Sequence[str], tell: Callable[[float], None]) -> Iterator[Row]:
    """Rows of a Parquet file; `tell` hears how much of it was read."""
    with _parquet(path) as file:
        total = max(1, file.metadata.num_rows)
        number = 0
        try:
            for batch in file.iter_batches(batch_size=256, columns=list(columns)):
                for values, problem in _values(batch):
                    tell((number + 1) / total)
                    yield Row(f"{path}, row {number}", values, problem)
                    number += 1
        except arrow_errors() as error:
            raise ValueError(f"questions: {path!r} cannot be read after row {number}: {error}") from None


def _parquet(path: str) -> Any:
    parquet = require("pyarrow.parquet", "data")
    try:
        return parquet.ParquetFile(path)
    except arrow_errors() as error:
        raise ValueError(f"questions: {path!r} is not Parquet: {error}") from None


def arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow says of a damaged file: of its own kinds, which are a ValueError, a NotImplementedError or another's."""
    return (OSError, ValueError, require("pyarrow", "data").ArrowException)


def _values(batch: Any) -> Iterator[tuple[Mapping[str, Any], Optional[str]]]:
    """The rows of a batch; text that is not UTF-8 spoils its row alone."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            values, problem = {}, None
            for name, column in zip(batch.schema.names, batch.columns):
                try:
                    values[name] = column[at].as_py()
                except UnicodeDecodeError as error:
                    problem = f"column {name!r} is not UTF-8: {error}"
            yield values, problem
    else:
        for values in rows:
            yield values, None
