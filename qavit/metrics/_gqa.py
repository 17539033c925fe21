"""The accuracy of GQA answers (Hudson and Manning, arXiv 1902.09506) as LAVIS computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ._vqa import Table, check_answered, id_rows, percent, plain_words, strip_punctuation, table_of, text_of

RESULT_KEYS = (("questionId", "prediction"), ("question_id", "answer"), ("question_id", "pred_ans"))
"""Names of id and answer in a result file: the leaderboard's, VQAv2's, LAVIS's."""


class GqaAccuracy(TypedDict):
    """What :func:`gqa_accuracy` gives, in percent."""

    overall: float
    per_structural_type: dict[str, float]
    per_semantic_type: dict[str, float]
    per_question: dict[str, float]


def is_gqa(annotations: Any) -> bool:
    """Whether a table has GQA's layout: one right answer a question."""
    rows = list(annotations.values()) if isinstance(annotations, Mapping) else annotations
    first = rows[0] if isinstance(rows, list) and rows else None
    return isinstance(first, Mapping) and "answer" in first and "answers" not in first


def gqa_accuracy(results: Table, questions: Table, *, partial: bool = False) -> GqaAccuracy:
    """The share of answers that are GQA's own.

    An answer is right where, by the punctuation, number and article rules of :func:`vqa_accuracy`, it becomes the text that
    GQA gives. That is LAVIS's score; GQA's own tool compares the texts as they are.

    Parameters
    ----------
    results : str, Path, or list of dict
        ``[{"questionId": ..., "prediction": ...}, ...]``, the leaderboard's file, or what it holds; rows of ``question_id``
        and ``answer`` too.
    questions : str, Path, dict or list of dict
        GQA's file of questions with their answers, by their ids, or a list of rows with ``question_id`` and ``answer``.
    partial : bool
        Score the questions that have a result, where not all have.

    Returns
    -------
    dict
        ``overall``, ``per_structural_type`` and ``per_semantic_type`` (of the questions that say theirs) and
        ``per_question`` (by id, a text), in percent with two digits.

    Raises
    ------
    ValueError
        A row lacks a key or holds another type, an id stands twice, a result is of no question of the file, or (unless
        `partial`) a question has no result.
    """
    answers = _answers(table_of(results, "results"))
    table = table_of(questions, "annotations")
    if isinstance(table, Mapping):
        asked = {str(number): row for number, row in table.items()}
    else:
        asked = {str(row["question_id"]): row for _, row in id_rows(table, "annotations")}
    check_answered(answers, asked, partial)
    scores: dict[str, float] = {}
    by_type: dict[str, dict[str, list[float]]] = {"structural": {}, "semantic": {}}
    for number, row in asked.items():
        if number not in answers:
            continue
        right = text_of(row, "answer", f"annotations: question {number!r}")
        scores[number] = float(plain_words(strip_punctuation(answers[number])) == right)
        types = row.get("types")
        for name, found in by_type.items():
            if isinstance(types, Mapping) and name in types:
                found.setdefault(str(types[name]), []).append(scores[number])
    return {
        "overall": percent(list(scores.values())),
        "per_structural_type": {kind: percent(values) for kind, values in by_type["structural"].items()},
        "per_semantic_type": {kind: percent(values) for kind, values in by_type["semantic"].items()},
        "per_question": {number: percent([score]) for number, score in scores.items()},
    }


def _answers(table: Any) -> dict[str, str]:
    """The predictions by their ids, under the names that the first row has."""
    first = table[0] if isinstance(table, list) and table else None
    names = first if isinstance(first, Mapping) else {}
    key, text = next((keys for keys in RESULT_KEYS if set(keys) <= set(names)), RESULT_KEYS[0])
    return {str(row[key]): text_of(row, text, where) for where, row in id_rows(table, "results", key)}
