"""The engine of a cluster: Ray Data reads and groups, and actors with a model each compute and write."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from .._base.extras import require
from .._base.files import absolute_paths
from ._output import PartFolder
from ._plan import Part
from ._worker import PartDone, PartWorker, Settings, Tick


def run_ray(
    settings: Settings, plan: Any, files: Sequence[int], folder: PartFolder, workers: int, gpus: float, tick: Tick
) -> Generator[PartDone, None, None]:
    """Parts by a Ray cluster, as they are done: the one that `RAY_ADDRESS` names, or one started here.

    A task for each input file reads it and cuts it into parts, one block each; actors write them under their own names, so
    that a part which is done twice after the death of a worker is there once, whole.
    """
    ray = require("ray", "ray")
    data = require("ray.data", "ray")
    if not files:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="warning")
    settings = settings._replace(actor={**settings.actor, **absolute_paths(settings.actor)})
    context = data.DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars
    context.target_max_block_size, context.enable_progress_bars = 1, False  # a block a part
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        rows = (
            data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
            .flat_map(_Reader(plan, folder), num_cpus=0)
            .map_batches(
                _RayWorker,
                batch_size=1,
                batch_format="numpy",
                compute=data.ActorPoolStrategy(size=workers),
                num_cpus=settings.actor["threads"],
                num_gpus=gpus,
                fn_constructor_args=(settings,),
            )
            .iter_rows()
        )
        for row in rows:
            result = pickle.loads(row["result"])
            if isinstance(result, BaseException):
                raise result
            tick(result.images, result.rows, result.errors)
            yield result
    finally:
        context.target_max_block_size, context.enable_progress_bars = before


class _Reader:
    """One input file in, its parts out."""

    def __init__(self, plan: Any, folder: PartFolder) -> None:
        self._plan, self._folder = plan, folder

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for part in self._plan.parts(int(row["file"]), self._folder):
            yield {"part": pickle.dumps(part)}


class _RayWorker:
    """A `PartWorker` as Ray Data calls it."""

    def __init__(self, settings: Settings) -> None:
        self._work = PartWorker(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = []
        for packed in batch["part"]:
            part: Part = pickle.loads(packed)
            try:
                results.append(pickle.dumps(self._work(part)))
            except Exception as error:
                results.append(pickle.dumps(RuntimeError(f"part {part.name}: {type(error).__name__}: {error}")))
        return {"result": results}
