"""The Ray engine on a cluster of two workers on this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import make_rows, same_rows, write_lines, write_model, write_pictures

import qavit.data

ray: Any = pytest.importorskip("ray")
pytest.importorskip("ray.data")

pytestmark = pytest.mark.nightly
STORE = 100 * 2**20  # bytes of shared memory a node; the least that Ray takes is 75 MiB


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    try:
        started.workers = [started.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
        ray.init(address=started.address, log_to_driver=False, logging_level="error")
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


def test_a_cluster_gives_the_same_rows_and_outlives_a_worker(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_pictures(tmp_path, 60)
    rows = make_rows(names, 3)
    rows[5]["image"] = "missing.png"
    questions = write_lines(tmp_path / "q.jsonl", rows)
    model = write_model(tmp_path / "model")
    options: dict[str, Any] = {"model": model, "part_rows": 3, "window": 30}
    qavit.data.run(questions, tmp_path / "local", **options)
    out = tmp_path / "ray"
    seen: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while len(list((out / "parts").glob("*.parquet")) if out.exists() else ()) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        cluster.remove_node(cluster.workers[1], allow_graceful=False)
        seen.append(len(list((out / "parts").glob("*.parquet"))))

    killer = threading.Thread(target=kill)
    killer.start()
    summary = qavit.data.run(questions, out, engine="ray", workers=2, **options)
    killer.join()
    assert 5 <= seen[0] < 60  # in the middle
    assert (summary.rows, summary.errors) == (180, 1)
    assert same_rows(tmp_path / "local", out) == 180
    assert qavit.data.read_maps(out).complete
    (out / "parts" / "00000-000007.parquet").unlink()
    assert qavit.data.run(questions, out, engine="ray", workers=1, resume=True, **options).rows == 3
    assert same_rows(tmp_path / "local", out) == 180

    # The actor class as a pipeline of one's own uses it.
    items = [{"image": str(tmp_path / name), "question": "where is the dog?"} for name in names[:6]]
    pool = ray.data.ActorPoolStrategy(size=1)
    maps = (
        ray.data.from_items(items)
        .map_batches(qavit.data.HeatmapActor, batch_size=4, compute=pool, fn_constructor_kwargs={"model": str(model)})
        .take_all()
    )
    expected = qavit.data.HeatmapActor(model)({key: [item[key] for item in items] for key in ("image", "question")})
    by_image = dict(zip(expected["image"], expected["map"]))
    assert len(maps) == 6
    assert all(np.array_equal(row["map"], by_image[row["image"]]) for row in maps)
    assert os.path.exists(maps[0]["image"])
