"""bfloat16 changes no more of the demo model's maps than it may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qavit
from benchmarks.faithfulness import Faithfulness, measure, ranks, spearman

FOLDER = Path(qavit.__file__).parent / "demo_model"


def test_rank_correlation() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a = rng.integers(0, 20, 50).astype(np.float32)
    b = (a + rng.normal(0, 4, 50)).astype(np.float32)
    assert np.array_equal(ranks(a), stats.rankdata(a))
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_demo_maps_in_bfloat16() -> None:
    found = measure(FOLDER, 60)
    assert isinstance(found, Faithfulness)
    assert found.spearman > 0.998
    assert found.least_spearman > 0.98
    assert found.same_patch >= 57 / 60
    assert found.pointing_points <= 100 * 2 / 60
