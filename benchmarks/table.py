"""Rows with both sides in each, and the Markdown table of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEAD = ("work", "qavit", "ms", "peer", "peer's ms", "ratio", "peak MB", "peer's peak MB")
#: What a contender needs that is not in every environment, and what it is called on its line where it is left out.
PACKAGES = {
    "openvino": ("openvino", "OpenVINO"),
    "nncf": ("nncf", "OpenVINO int8 (NNCF)"),
    "onnx": ("onnx", "ONNX Runtime (its exporter)"),
    "onnxruntime": ("onnxruntime", "ONNX Runtime"),
    "ctranslate2": ("ctranslate2", "CTranslate2"),
    "transformers": ("transformers", "transformers"),
}


@dataclass(frozen=True)
class Row:
    """One piece of work as qavit does it, beside the same by a peer; milliseconds and MiB, None where not measured."""

    work: str
    side: str
    ms: float
    peer: str = ""
    peer_ms: float | None = None
    peak: float | None = None
    peer_peak: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster qavit is; below 1 the peer is."""
        return None if self.peer_ms is None else self.peer_ms / self.ms


def number(value: float | None) -> str:
    """Three digits, but no fewer than all before the point."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|" + "---:|---|" + "---:|" * 4]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        cells = (row.work, row.side, number(row.ms), row.peer, number(row.peer_ms), ratio)
        memory = tuple("" if value is None else f"{value:.0f}" for value in (row.peak, row.peer_peak))
        lines.append("| " + " | ".join((*cells, *memory)) + " |")
    return "\n".join(lines)


def missing(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(PACKAGES[name][0]) is None]


def skipped(what: str, packages: Sequence[str]) -> str:
    """The line for a contender that is left out."""
    return f"left out: {what}, for want of {' and '.join(PACKAGES[name][0] for name in packages)}"


def beside(
    work: str, found: Mapping[str, Mapping[str, float]], own: Sequence[str], peers: Mapping[str, Sequence[str]]
) -> list[Row]:
    """Rows of sides (name -> "ms" and, where measured, "peak"): each of `own` beside those `peers` says of it."""
    rows = []
    for side in own:
        if side not in found:
            continue
        mine = found[side]
        others = [peer for peer in peers.get(side, ()) if peer in found]
        for peer in others:
            its = found[peer]
            rows.append(Row(work, side, mine["ms"], peer, its["ms"], mine.get("peak"), its.get("peak")))
        if not others:
            rows.append(Row(work, side, mine["ms"], peak=mine.get("peak")))
    return rows


def write_rows(file: Path | None, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Rows, and lines on what was left out, as JSON; nothing where `file` is None."""
    if file is not None:
        file.write_text(json.dumps({"rows": [asdict(row) for row in rows], "notes": list(notes)}, indent=1))


def read_rows(file: Path) -> tuple[list[Row], list[str]]:
    """What `write_rows` wrote."""
    found: dict[str, Any] = json.loads(file.read_text())
    return [Row(**row) for row in found["rows"]], list(found["notes"])
