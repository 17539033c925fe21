"""A run: questions in, parts out, by one engine or another."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, Optional, Union

from .._base.arguments import whole_number
from .._base.extras import require
from .._base.files import PathLike, absolute_paths
from ..models._question_vit import Heads
from ._actor import HeatmapActor
from ._local import run_here, run_processes, usable_cpus
from ._output import OutputFolder, PartFolder, file_identity, model_identity
from ._plan import ENGINES, PART_ROWS, WINDOW, Part, Shard, plan_file
from ._progress import RunProgress
from ._questions import QuestionFile, open_questions
from ._worker import PartDone, Settings


class RunSummary(NamedTuple):
    """What a run did.

    Attributes
    ----------
    images, rows, errors : int
        Of this run.
    before : int
        Rows that were there already.
    errors_before : int
        Those of them that had failed.
    seconds : float
        In the model, summed over workers.
    """

    images: int
    rows: int
    errors: int
    before: int
    errors_before: int
    seconds: float


class Plan(NamedTuple):
    """Which parts are to be done; can be pickled."""

    sources: list[QuestionFile]
    window: int
    part_rows: int
    shard: Shard
    done: frozenset[str]

    def parts(self, file: int, out: PartFolder) -> Iterator[Part]:
        """The parts of one input file that are to be done."""
        count = rows = 0
        for part in plan_file(self.sources[file], file, self.window, self.part_rows):
            count += 1
            rows += part.rows
            if part.name not in self.done and self.shard.has_part(part, len(self.sources)):
                yield part
        out.finish_input(file, count, rows)

    def files(self, out: PartFolder) -> list[int]:
        """The input files that something is left to do for, as far as can be told without reading them."""
        return [file for file in range(len(self.sources)) if self._is_wanted(file, out)]

    def _is_wanted(self, file: int, out: PartFolder) -> bool:
        if not self.shard.has_file(file, len(self.sources)):
            return False
        known = out.finished_input(file)
        if known is None:
            return True
        parts = (Part(file, number) for number in range(known["parts"]))
        return any(self.shard.has_part(part, len(self.sources)) and part.name not in self.done for part in parts)


def run(
    questions: Union[PathLike, Sequence[PathLike]],
    out: PathLike,
    *,
    images: Optional[PathLike] = None,
    image_name: Optional[str] = None,
    model: Optional[PathLike] = None,
    method: Optional[str] = None,
    block: Optional[int] = None,
    heads: Heads = "mean",
    dtype: str = "float32",
    engine: str = "local",
    workers: int = 1,
    threads: Optional[int] = None,
    gpus: float = 0.0,
    shard: Union[str, Shard, None] = None,
    window: int = WINDOW,
    part_rows: int = PART_ROWS,
    resume: bool = False,
    events: bool = False,
    **parts: Any,
) -> RunSummary:
    """Maps for every question of a data set, written to a folder; what ``qavit run`` does.

    Parameters
    ----------
    questions : path or list of paths
        .jsonl, .csv, .tsv, .parquet, .json (VQAv2) or .tar (webdataset), read as a stream.
    out : path
        The folder to write.
    images : path, optional
        The folder that relative pictures lie in; by default the question file's own, then the working directory.
    image_name : str, optional
        A picture's name from the columns of its row, such as ``"{image_id}.jpg"``.
    model, method, block, heads, dtype
        As for `HeatmapActor`.
    engine : {"local", "ray"}
        Worker processes of this machine, or actors of a Ray cluster, whose machines all see `out` and the input.
    workers : int
        How many, with a model each.
    threads : int, optional
        The width of each worker's thread pool; by default this machine's CPUs divided among the workers (Ray: 1).
    gpus : float
        Ray: GPUs that each worker takes.
    shard : str or Shard, optional
        "i/n": do the i-th of n shares, i from 0. Shares may be written into one folder.
    window : int
        Rows looked at together: questions of one picture share its work when they stand in the same window.
    part_rows : int
        The most rows of a file of output, and what a worker that is killed has to do again.
    resume : bool
        Go on with a run that was interrupted; parts that are there are not done again.
    events : bool
        JSON events on standard output in place of progress on standard error.
    **parts
        `checkpoint`, `vision`, `text`, `tokenizer`, `config`, `precision`, `device`, `image_size`, as for `qavit.load`.

    Returns
    -------
    RunSummary

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        An argument is wrong, the input cannot be read, or `out` holds another run.
    ImportError
        pyarrow, ijson or Ray is not installed; the message names the extra.
    OSError
        `out` cannot be written: a full disk, for one. Parts that are there are whole.

    Notes
    -----
    Rows depend on the input, the model, `window` and `part_rows`, not on engine, workers, threads or interruptions. On CPUs
    of another kind the last bits may differ.
    """
    for name, number in (("workers", workers), ("window", window), ("part_rows", part_rows)):
        if whole_number(number, name) < 1:
            raise ValueError(f"{name}: got {number}, expected at least 1")
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, expected 'local' or 'ray'")
    require("pyarrow", "data")
    if engine == "ray":
        require("ray", "ray")
    share = shard if isinstance(shard, Shard) else Shard.parse(shard) if shard is not None else Shard()
    sources = open_questions(questions, images, image_name)
    if threads is None:
        threads = max(1, usable_cpus() // workers) if engine == "local" and workers > 1 else 1 if engine == "ray" else None
    if model is None and not (parts.get("checkpoint") or parts.get("vision")):
        model = "demo"
    asked = {"model": model, "method": method, "block": block, "heads": heads, "dtype": dtype, **parts}
    actor = HeatmapActor(**asked, threads=threads if engine == "local" else None)
    manifest = {
        "model": model_identity({"model": model, **parts}),
        "method": actor.method,
        "block": actor.block,
        "heads": heads,
        "dtype": dtype,
        "grid": list(actor.grid),
        "questions": [[os.path.basename(source.path), file_identity(source.path)] for source in sources],
        "image_name": image_name,
        "window": window,
        "part_rows": part_rows,
        "about": {"model": repr(actor.model), "qavit": _version()},
    }
    folder = OutputFolder(out, manifest, share, len(sources), resume)
    try:
        plan = Plan(sources, window, part_rows, share, frozenset(folder.done))
        settings = Settings({**asked, **absolute_paths(asked), "threads": threads}, os.path.abspath(folder.parts))
        left = plan.files(folder)
        sizes = [source.size if share.has_file(file, len(sources)) else 0 for file, source in enumerate(sources)]
        progress = RunProgress(sizes, [file not in left for file in range(len(sources))], events)
        progress.begin(out=str(folder.path), engine=engine, workers=workers, shard=str(share), model=repr(actor.model))
        if engine == "local" and workers == 1:
            results = run_here(actor, settings, _begun(plan, left, folder, progress), progress.tick)
        elif engine == "local":
            results = run_processes(settings, _begun(plan, left, folder, progress), workers, progress.tick)
        else:
            from ._ray_engine import run_ray

            results = run_ray(settings, plan, left, PartFolder(os.path.abspath(out)), workers, gpus, progress.tick)
        del actor  # workers have models of their own
        return _follow(results, folder, progress)
    finally:
        folder.remove_leftovers()
        folder.close()


def _follow(results: Generator[PartDone, None, None], folder: OutputFolder, progress: RunProgress) -> RunSummary:
    """Go through an engine's results, stopping it when something is wrong."""
    images = rows = errors = 0
    seconds = 0.0
    try:
        for result in results:
            progress.part(result)
            images += result.images
            rows += result.rows
            errors += result.errors
            seconds += result.seconds
        before, errors_before = folder.count()
        progress.close(rows=rows, before=before, errors_before=errors_before)
        return RunSummary(images, rows, errors, before, errors_before, seconds)
    except BaseException:
        results.close()
        progress.abandon()
        raise


def _begun(plan: Plan, files: Sequence[int], folder: PartFolder, progress: RunProgress) -> Iterator[Part]:
    """The parts of some input files; `progress` hears of the first, since what lies before it was done earlier."""
    for file in files:
        for part in plan.parts(file, folder):
            progress.start(part)
            yield part


def _version() -> str:
    from .._base.about import __version__

    return __version__
