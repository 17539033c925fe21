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

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(0, place - 1)) for place, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_DEVIATIONS = 1.959964  # of a normal distribution: 95% lie within

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


def strip_punctuation(text: str) -> str:
    """The scorer's rule for marks and periods."""
    out = text
    joined = _THOUSANDS.search(text) is not None
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def plain_words(text: str) -> str:
    """The scorer's rule for number words, articles and contractions, in lower case."""
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
    return plain_words(strip_punctuation(_one_line(answer)))


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
        row["question_id"]: text_of(row, "answer", where) for where, row in id_rows(table_of(results, "results"), "results")
    }
    asked: dict[AnswerId, Mapping[str, Any]] = {
        row["question_id"]: row for _, row in id_rows(table_of(annotations, "annotations"), "annotations")
    }
    check_answered(answers, asked, partial)
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
        "overall": percent(list(scores.values())),
        "per_answer_type": {kind: percent(values) for kind, values in by_answer.items()},
        "per_question_type": {kind: percent(values) for kind, values in by_question.items()},
        "per_question": {number: percent([score]) for number, score in scores.items()},
    }


def accuracy_interval(scores: Sequence[float], total: int | None = None) -> tuple[float, float]:
    """Between which bounds the accuracy of all questions lies with 95%, where those of a random sample are known.

    Parameters
    ----------
    scores : sequence of float, [n]
        Of the sampled questions, in percent.
    total : int, optional
        How many questions there are; None: many more than were sampled.

    Returns
    -------
    (float, float)
        In percent with two digits: Wilson's interval (JASA 22, 1927), narrowed where the sample is much of the whole. It is
        made for answers that are right or wrong; scores in between have a narrower one, so 95% is the least.

    Raises
    ------
    ValueError
        There are no scores, or fewer questions than scores.
    """
    count = len(scores)
    if count == 0 or (total is not None and total < count):
        raise ValueError(f"scores: {count}, of {total or 'many'} questions; expected at least one, and no more")
    if total == count:
        return percent([score / 100 for score in scores]), percent([score / 100 for score in scores])
    # Without replacement, n of N questions tell as much as n (N - 1) / (N - n) with it.
    weight = count if total is None else count * (total - 1) / (total - count)
    mean, spread = sum(scores) / count / 100, _DEVIATIONS**2 / weight
    middle = (mean + spread / 2) / (1 + spread)
    half = (spread * (mean * (1 - mean) + spread / 4)) ** 0.5 / (1 + spread)
    return round(100 * max(0.0, middle - half), 2), round(100 * min(1.0, middle + half), 2)


def check_answered(answers: Mapping[Any, str], asked: Mapping[Any, Any], partial: bool) -> None:
    """ValueError where answers and annotated questions are not the same, or, if `partial`, where none is both."""
    unknown = [number for number in answers if number not in asked]
    if unknown:
        raise ValueError(f"results: question_id {unknown[0]!r} has no annotation ({len(unknown)} such of {len(answers)})")
    missing = [number for number in asked if number not in answers]
    if (missing and not partial) or not answers:
        raise ValueError(
            f"results: {len(missing)} of {len(asked)} annotated questions have no result, such as {missing[:1]}; "
            "partial=True (--partial) scores the others"
        )


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def percent(scores: Sequence[float]) -> float:
    """The mean of scores from 0 to 1, in percent with two digits."""
    return round(100 * float(sum(scores)) / len(scores), 2)


def _score(answer: str, row: Mapping[str, Any], where: str) -> float:
    given = row.get("answers")
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 2:
        raise ValueError(f"{where}: expected a list of at least two answers, got {type(given).__name__}")
    answers = [text_of(person, "answer", where) for person in given]
    people = [{**person, "answer": text} for person, text in zip(given, answers)]
    if len({person["answer"] for person in people}) > 1:
        for person in people:
            person["answer"] = strip_punctuation(person["answer"])
    total = 0.0
    for person in people:
        others = [other for other in people if other != person]
        total += min(1.0, sum(other["answer"] == answer for other in others) / 3)
    return total / len(people)


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """A row's text by its key; ValueError where it has none."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a text as {key!r}, got {type(value).__name__}")
    return value


def table_of(table: Table, what: str) -> Any:
    """A table, read where it is a file; an object with a list of annotations or results as that list."""
    if isinstance(table, (str, PathLike)):
        try:
            given, table = table, read_json(table, MAX_TABLE_BYTES)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        if not isinstance(table, (list, dict)):  # a text would be a path
            raise ValueError(f"{what}: {given}: expected a list of rows, or an object, got {type(table).__name__}")
    rows = table.get("annotations", table.get("results", table)) if isinstance(table, Mapping) else table
    if isinstance(rows, (str, PathLike)):  # would be a path where it is handed on
        raise ValueError(f"{what}: expected a list of rows, got {type(rows).__name__}")
    return rows


def id_rows(table: Any, what: str, key: str = "question_id") -> list[tuple[str, Mapping[str, Any]]]:
    """Rows with where each stands; their ids are there, and different."""
    if not isinstance(table, Sequence) or isinstance(table, str):
        raise ValueError(f"{what}: expected a list of rows, got {type(table).__name__}")
    seen: set[AnswerId] = set()
    rows = []
    for place, row in enumerate(table):
        where = f"{what}, row {place}"
        number = row.get(key) if isinstance(row, Mapping) else None
        if not isinstance(number, (int, str)) or isinstance(number, bool):
            raise ValueError(f"{where}: expected a whole number or a text as {key!r}, got {type(number).__name__}")
        if number in seen:
            raise ValueError(f"{where}: {key} {number!r} stands twice")
        seen.add(number)
        rows.append((where, row))
    return rows
