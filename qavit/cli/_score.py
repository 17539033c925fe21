"""`qavit score`: how many answers are right."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ._options import FILE, OK, completed


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit score``."""
    for name, said in (
        ("results", "the result file: VQAv2's question_id and answer, or GQA's questionId and prediction"),
        ("annotations", "VQAv2's annotations, or GQA's questions with their answers"),
    ):
        completed(parser.add_argument(name, metavar=name.upper(), help=said), FILE)
    parser.add_argument("--partial", action="store_true", help="score the questions that have a result, where not all have")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_score(options: argparse.Namespace) -> int:
    """The official accuracy, by what the layout of the annotations says."""
    score = score_of(options.results, options.annotations, options.partial)
    print(json.dumps(score, ensure_ascii=False) if options.json else score_text(score))
    return OK


def score_of(results: Any, annotations: Any, partial: bool = False) -> dict[str, Any]:
    """The accuracy by VQAv2's or GQA's rule, and how sure it is where only a part has a result."""
    from ..metrics._gqa import gqa_accuracy, is_gqa
    from ..metrics._vqa import accuracy_interval, table_of, vqa_accuracy

    table = table_of(annotations, "annotations")
    if is_gqa(table):
        found: dict[str, Any] = {"rule": "GQA", **gqa_accuracy(results, table, partial=partial)}
    else:
        found = {"rule": "VQAv2", **vqa_accuracy(results, table, partial=partial)}
    scores = list(found["per_question"].values())
    found["questions"], found["of"] = len(scores), len(table)
    if len(scores) < len(table):
        found["interval"] = accuracy_interval(scores, len(table))
    return found


def score_text(score: dict[str, Any]) -> str:
    """A score as a person reads it."""
    lines = [f"{score['rule']} accuracy {score['overall']:.2f}, {score['questions']:,} questions"]
    if "interval" in score:
        low, high = score["interval"]
        lines[0] += f" of {score['of']:,}: {low:.2f} to {high:.2f} (95%), if they were drawn at random"
    for name, kinds in score.items():
        if name.startswith("per_") and name != "per_question" and kinds:
            lines.append(name.replace("_", " "))
            width = max(map(len, kinds))
            lines += [f"  {kind:<{width}}  {percent:6.2f}" for kind, percent in sorted(kinds.items())]
    return "\n".join(lines)
