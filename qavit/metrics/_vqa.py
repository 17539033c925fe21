"""The official accuracy of VQAv2 answers (Antol et al., arXiv 1505.00468; Goyal et al., arXiv 1612.00837).

Two oddities of the public scorer (GT-Vision-Lab/VQA, vqaEval) are kept, because published figures have them: a period is
dropped unless a digit follows it, whatever stands before; and at most 32 periods of an answer are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict, Union

from .._base.small_files import read_json

Table = Union[str, "PathLike[str]", Sequence[Mapping[str, Any]], Mapping[str, Any]]
AnswerId = Union[int, str]

_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_NUMBER_WORDS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(0, place - 1)) for place, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32

MAX_TABLE_BYTES = 2 << 30

# Endings, and the words whose contraction with them gets its apostrophes back. Not "shed" and "wed", which are words; none
# of I, because the scorer looks words up in lower case.
_CONTRACTED = {
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'t": "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn shan shouldn wasn weren won "
    "wouldn",
    "'ve": "could might must not should they we what where who would you",
    "'d've": "he it she somebody someone something there they we who you",
    "n't've": "could had might should would",
}
_IRREGULAR = {
    "let's": "let's", "maam": "ma'am", "oclock": "o'clock", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at", "she's": "she's", "somebody'd": "somebodyd", "twas": "'twas", "yall": "y'all",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll", "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've",
}  # fmt: skip


def _contractions() -> dict[str, str]:
    """Every spelling without one of its apostrophes, and the right one."""
    spellings = {}
    for ending, words in _CONTRACTED.items():
        for word in words.split():
            right = word + ending
            marks = [place for place, letter in enumerate(right) if letter == "'"]
            for mark in marks:
                spellings[right[:mark] + right[mark + 1 :]] = right
    return {**spellings, **_IRREGULAR}


_CONTRACTIONS = _contractions()


class VqaAccuracy(TypedDict):
    """What :func:`vqa_accuracy` gives, in percent."""

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[AnswerId, float]


def _strip_punctuation(text: str) -> str:
    out = text
    joined = _THOUSANDS.search(text) is not None
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def _plain_words(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(answer: str) -> str:
    """An answer as the official scorer compares it.

    Parameters
    ----------
    answer : str

    Returns
    -------
    str
        In lower case, without punctuation and articles, number words as digits, contractions with their apostrophes.
    """
    return _plain_words(_strip_punctuation(_one_line(answer)))


def vqa_accuracy(results: Table, annotations: Table, *, partial: bool = False) -> VqaAccuracy:
    """The official VQAv2 accuracy of answers.

    An answer scores min(1, matches / 3) against each nine of the ten annotators' answers, and the mean of the ten.

    Parameters
    ----------
    results : str, Path, or list of dict
        ``[{"question_id": ..., "answer": ...}, ...]``, the official result file, or what it holds.
    annotations : str, Path, list of dict, or dict
        The official annotation file, what it holds, or its list ``annotations``.
    partial : bool
        Score the questions that have a result, where not all have.

    Returns
    -------
    dict
        ``overall``, ``per_answer_type``, ``per_question_type`` and ``per_question`` (by question_id), in percent with two
        digits.

    Raises
    ------
    ValueError
        A row lacks a key or holds another type, an id stands twice, a result is of no annotated question, or (unless
        `partial`) a question has no result.
    """
    answers: dict[AnswerId, str] = {
        row["question_id"]: _text(row, "answer", where) for where, row in _rows(results, "results")
    }
    asked: dict[AnswerId, Mapping[str, Any]] = {row["question_id"]: row for _, row in _rows(annotations, "annotations")}
    unknown = [number for number in answers if number not in asked]
    if unknown:
        raise ValueError(f"results: question_id {unknown[0]!r} has no annotation ({len(unknown)} such of {len(answers)})")
    missing = [number for number in asked if number not in answers]
    if (missing and not partial) or not answers:
        raise ValueError(
            f"results: {len(missing)} of {len(asked)} annotated questions have no result, such as {missing[:1]}; "
            "partial=True scores the others"
        )
    scores: dict[AnswerId, float] = {}
    by_answer: dict[str, list[float]] = {}
    by_question: dict[str, list[float]] = {}
    for number, row in asked.items():
        if number not in answers:
            continue
        score = _score(normalize_answer(answers[number]), row, f"annotations: question_id {number!r}")
        scores[number] = score
        by_answer.setdefault(str(row.get("answer_type")), []).append(score)
        by_question.setdefault(str(row.get("question_type")), []).append(score)
    return {
        "overall": _percent(list(scores.values())),
        "per_answer_type": {kind: _percent(values) for kind, values in by_answer.items()},
        "per_question_type": {kind: _percent(values) for kind, values in by_question.items()},
        "per_question": {number: _percent([score]) for number, score in scores.items()},
    }


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _percent(scores: list[float]) -> float:
    return round(100 * float(sum(scores)) / len(scores), 2)


def _score(answer: str, row: Mapping[str, Any], where: str) -> float:
    given = row.get("answers")
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 2:
        raise ValueError(f"{where}: expected a list of at least two answers, got {type(given).__name__}")
    people = [{**person, "answer": _text(person, "answer", where)} for person in given]
    if len({person["answer"] for person in people}) > 1:
        for person in people:
            person["answer"] = _strip_punctuation(person["answer"])
    total = 0.0
    for person in people:
        others = [other for other in people if other != person]
        total += min(1.0, sum(other["answer"] == answer for other in others) / 3)
    return total / len(people)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a text as {key!r}, got {type(value).__name__}")
    return value


def _rows(table: Table, what: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows with where each stands; their ids are there, and different."""
    name = what
    if isinstance(table, (str, PathLike)):
        name, table = f"{what}: {table}", read_json(table, MAX_TABLE_BYTES)
    if isinstance(table, Mapping):
        table = table.get("annotations", table.get("results", table))
    if not isinstance(table, Sequence) or isinstance(table, str):
        raise ValueError(f"{name}: expected a list of rows, got {type(table).__name__}")
    seen: set[AnswerId] = set()
    rows = []
    for place, row in enumerate(table):
        where = f"{name}, row {place}"
        number = row.get("question_id") if isinstance(row, Mapping) else None
        if not isinstance(number, (int, str)) or isinstance(number, bool):
            raise ValueError(f"{where}: expected a whole number or a text as 'question_id', got {type(number).__name__}")
        if number in seen:
            raise ValueError(f"{where}: question_id {number!r} stands twice")
        seen.add(number)
        rows.append((where, row))
    return rows
