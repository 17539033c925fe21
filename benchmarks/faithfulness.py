"""How faithful bfloat16 is on the demo model: python -m benchmarks.faithfulness [--pairs 500] [--model FOLDER].

Pairs of a held-out scene and one of its questions, drawn at random; the map of each in bfloat16 against float32's: rank
correlation, whether the largest patch is the same, and how many maps point at what the question refers to.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import qavit
from training.evaluate import held_out_scenes, hit
from training.questions import questions_for

FIRST_SEED = 7_000_000
GOALS = {"spearman": 0.999, "same_patch": 0.98, "pointing_points": 0.3}


@dataclass
class Faithfulness:
    """What bfloat16 changes; `pointing` shares are of the pairs whose question refers to something."""

    pairs: int
    block: int
    kernels: str
    spearman: float
    least_spearman: float
    same_patch: float
    pointing_float32: float
    pointing_bfloat16: float
    same_answer: float

    @property
    def pointing_points(self) -> float:
        """Percentage points between the two pointing shares."""
        return 100 * abs(self.pointing_bfloat16 - self.pointing_float32)

    @property
    def good(self) -> bool:
        """Whether every goal is reached."""
        return (
            self.spearman >= GOALS["spearman"]
            and self.same_patch >= GOALS["same_patch"]
            and self.pointing_points <= GOALS["pointing_points"]
        )


def ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks of the values [P]; equal ones share the mean of their ranks."""
    _, inverse, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse.ravel()]


def spearman(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Rank correlation of two maps."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def measure(folder: Path, pairs: int) -> Faithfulness:
    """Both precisions on the same pairs."""
    high, low = (qavit.load(folder, precision=precision) for precision in ("float32", "bfloat16"))
    rng = np.random.default_rng(0)
    correlations, same, answers, points = [], [], [], []
    for scene in held_out_scenes(pairs, FIRST_SEED):
        asked = questions_for(scene, rng)
        question = asked[int(rng.integers(len(asked)))]
        results = [model.heatmaps(scene.image, question.text) for model in (high, low)]
        maps = [result.maps[0] for result in results]
        correlations.append(spearman(*maps))
        same.append(maps[0].argmax() == maps[1].argmax())
        answers.append(len({result.answers[0][0][0] for result in results if result.answers}) <= 1)
        if question.boxes:
            points.append([hit(values, question.boxes, scene.image.shape[0]) for values in maps])
    shares = np.mean(points, axis=0)
    return Faithfulness(
        pairs=pairs,
        block=high.default_block,
        kernels=str(qavit.build_info()["kernels"]["bfloat16"]),
        spearman=float(np.mean(correlations)),
        least_spearman=float(np.min(correlations)),
        same_patch=float(np.mean(same)),
        pointing_float32=float(shares[0]),
        pointing_bfloat16=float(shares[1]),
        same_answer=float(np.mean(answers)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path(qavit.__file__).parent / "demo_model")
    parser.add_argument("--pairs", type=int, default=500)
    options = parser.parse_args()
    found = measure(options.model, options.pairs)
    print(json.dumps(asdict(found), indent=1))
    print(
        f"{found.pairs} pairs, block {found.block}: Spearman {found.spearman:.5f} on average (least "
        f"{found.least_spearman:.4f}), same largest patch {100 * found.same_patch:.1f}%, pointing "
        f"{100 * found.pointing_bfloat16:.1f}% for {100 * found.pointing_float32:.1f}% "
        f"({found.pointing_points:.2f} points), same answer {100 * found.same_answer:.1f}%: "
        f"{'good' if found.good else 'NOT as faithful as ' + str(GOALS)}"
    )
    raise SystemExit(0 if found.good else 1)


if __name__ == "__main__":
    main()
