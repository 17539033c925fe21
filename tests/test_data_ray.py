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

STORE = 100 * 2**20  # bytes of shared memory a node; the least that Ray takes is 75 MiB


def ask(tmp_path: Path, pictures: int, each: int) -> tuple[Path, dict[str, Any], list[str]]:
    """A file of questions, one of them about a picture that is missing; options of a run; the pictures' names."""
    names = write_pictures(tmp_path, pictures)
    rows = make_rows(names, each)
    rows[5]["image"] = "missing.png"
    options: dict[str, Any] = {"model": write_model(tmp_path / "model"), "part_rows": 3, "window": 30}
    return write_lines(tmp_path / "q.jsonl", rows), options, names


def test_one_machine_gives_the_same_rows(tmp_path: Path) -> None:
    questions, options, _ = ask(tmp_path, 6, 3)
    qavit.data.run(questions, tmp_path / "local", **options)
    ray.init(num_cpus=1, object_store_memory=STORE, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        summary = qavit.data.run(questions, tmp_path / "ray", engine="ray", workers=1, **options)
    finally:
        ray.shutdown()
    assert (summary.rows, summary.errors) == (18, 1)
    assert same_rows(tmp_path / "local", tmp_path / "ray") == 18


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


@pytest.mark.nightly
def test_a_cluster_gives_the_same_rows_and_outlives_a_worker(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, options, names = ask(tmp_path, 60, 3)
    model = options["model"]
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
    assert qavit.data.run(questions, out, engine="ray", workers=1, **options).rows == 3
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


def test_answers_are_the_same_by_ray(tmp_path: Path) -> None:
    rows = make_rows(write_pictures(tmp_path, 5), 3)
    questions = write_lines(tmp_path / "q.jsonl", rows)
    options: dict[str, Any] = {"part_rows": 4, "window": 12, "sample": 10}
    qavit.data.run(questions, tmp_path / "local", answers=tmp_path / "local.json", **options)
    ray.init(num_cpus=1, object_store_memory=STORE, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        qavit.data.run(questions, tmp_path / "ray", answers=tmp_path / "ray.json", engine="ray", **options)
    finally:
        ray.shutdown()
    assert same_rows(tmp_path / "local", tmp_path / "ray") == 10
    assert (tmp_path / "local.json").read_bytes() == (tmp_path / "ray.json").read_bytes()
