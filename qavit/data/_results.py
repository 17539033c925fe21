"""The answers of a run as the file that a data set's scorer takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from .._base.files import PathLike, whole_file
from ._reading import MapReader

ResultLayout = Literal["vqa", "gqa"]
LAYOUTS: tuple[ResultLayout, ...] = ("vqa", "gqa")


def write_finished(out: PathLike, path: PathLike, layout: ResultLayout) -> None:
    """:func:`write_results`, where every row of the run's folder is there; else nothing, for another share does it."""
    reader = MapReader(out)
    if reader.complete:
        write_results(reader, path, layout)


def write_results(reader: MapReader, path: PathLike, layout: ResultLayout) -> int:
    """All answers of a run, in the order of its input; how many rows failed.

    Parameters
    ----------
    reader : MapReader
        Of the run's folder.
    path : path
        Written whole: ``[{"question_id": int, "answer": str}, ...]`` ("vqa"; an id that is no number stays a text) or
        ``[{"questionId": str, "prediction": str}, ...]`` ("gqa"). A row that failed has the answer "", because a scorer
        wants every question.
    layout : {"vqa", "gqa"}
    """
    failed = 0

    def lines() -> Iterator[str]:
        nonlocal failed
        for table in reader.tables(("id", "answer")):
            for identity, answer in zip(table.column("id").to_pylist(), table.column("answer").to_pylist()):
                failed += answer is None
                yield json.dumps(_row(identity, answer or "", layout), ensure_ascii=False)

    with whole_file(path, durable=True) as file:
        file.write(b"[")
        for number, line in enumerate(lines()):
            file.write((",\n" if number else "\n").encode() + line.encode("utf-8"))
        file.write(b"\n]\n")
    return failed


def _row(identity: str, answer: str, layout: ResultLayout) -> dict[str, Any]:
    if layout == "gqa":
        return {"questionId": identity, "prediction": answer}
    whole = identity.isascii() and identity.removeprefix("-").isdecimal() and str(int(identity)) == identity
    return {"question_id": int(identity) if whole else identity, "answer": answer}
