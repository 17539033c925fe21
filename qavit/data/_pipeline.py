"""A run: questions in, parts out, by one engine or another."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from .._base.arguments import whole_number
from .._base.extras import require
from .._base.files import PathLike, make_folder, remove_leftovers
from .._base.progress import RunProgress
from .._base.system import usable_cpus
from .._base.types import Fit, Heads
from .._core import get_num_threads
from ._actor import HeatmapActor
from ._estimate import COUNTED_BYTES, Estimate, rows_left
from ._local import Alone, Crew
from ._output import OutputFolder, PartFolder, check_keep, file_identity, model_identity
from ._plan import ENGINES, PART_ROWS, WINDOW, Part, Shard, plan_file
from ._questions import QuestionFile, open_questions
from ._results import LAYOUTS, ResultLayout, write_finished
from ._sample import Sample, draw_sample
from ._worker import About, PartDone, Settings


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
    sample: Optional[Sample] = None

    def parts(self, file: int, out: PartFolder) -> Iterator[Part]:
        """The parts of one input file that are to be done."""
        count = rows = 0
        for part in plan_file(self.sources[file], file, self.window, self.part_rows, self.sample):
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
    columns: Optional[Mapping[str, str]] = None,
    keep: Union[Mapping[str, str], Sequence[str]] = (),
    encoding: Optional[str] = None,
    model: Optional[PathLike] = None,
    method: Optional[str] = None,
    block: Union[int, Sequence[int], None] = None,
    heads: Heads = "mean",
    fit: Optional[Fit] = None,
    answers: Optional[PathLike] = None,
    layout: Optional[ResultLayout] = None,
    answering: Optional[Mapping[str, Any]] = None,
    sample: Optional[int] = None,
    dtype: str = "float32",
    engine: str = "local",
    workers: int = 1,
    threads: Optional[int] = None,
    gpus: float = 0.0,
    shard: Union[str, Shard, None] = None,
    window: int = WINDOW,
    part_rows: int = PART_ROWS,
    again: bool = False,
    retry_errors: bool = False,
    keep_going: bool = False,
    events: bool = False,
    **parts: Any,
) -> RunSummary:
    """Maps for every question of a data set, written to a folder; what ``qavit run`` does.

    Parameters
    ----------
    questions, images, image_name, columns, keep, encoding
        As for `open_questions`.
    out : path
        The folder to write. A run that is there already, whole or not, is gone on with: its parts are not done again.
    model, method, block, heads, fit, answering, dtype
        As for `HeatmapActor`.
    answers : path, optional
        The file that the model's answers are written to when every row of `out` is there, in the layout that the data set's
        scorer takes; a row that failed has the answer "".
    layout : {"vqa", "gqa"}, optional
        ``[{"question_id": int, "answer": str}]``, or ``[{"questionId": str, "prediction": str}]``; None: as the questions
        have it.
    sample : int, optional
        Only so many rows, drawn at random: which they are depends on the input alone.
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
    again : bool
        Do everything anew, whatever is there already.
    retry_errors : bool
        Do parts anew that have rows with an error.
    keep_going : bool
        Go on where every row of the first part failed, which is mostly a wrong folder or name.
    events : bool
        JSON events on standard output in place of progress on standard error.
    **parts
        `max_pixels` and `decoders`, as for `HeatmapActor`; `checkpoint`, `vision`, `text`, `tokenizer`, `config`,
        `precision`, `device`, `image_size`, as for `qavit.load`.

    Returns
    -------
    RunSummary

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        An argument is wrong, the input cannot be read, `out` holds another run, or every row of the first part failed.
    ImportError
        pyarrow or Ray is not installed; the message names the extra.
    OSError
        `out` cannot be written: a full disk, for one. Parts that are there are whole.

    Notes
    -----
    Rows depend on the input, the model, `window` and `part_rows`, not on engine, workers, threads or interruptions. On CPUs
    of another kind the last bits may differ.
    """
    share = _check_numbers(engine, workers, window, part_rows, shard)
    answer_options = _answer_options(answers, layout, answering, sample)
    sources = open_questions(questions, images, image_name, columns, keep, encoding)
    check_keep(kept := tuple(keep))
    threads = _threads_each(threads, engine, workers)
    if model is None and not (parts.get("checkpoint") or parts.get("vision")):
        model = "demo"
    asked = {"model": model, "method": method, "block": block, "heads": heads, "fit": fit, "dtype": dtype, **parts}
    asked.update(answer_options)
    settings = Settings({**asked, "threads": threads}, os.path.abspath(PartFolder(out).parts), kept)
    # Workers end before their folder is let go of: they may be writing.
    with contextlib.ExitStack() as of_folder, contextlib.ExitStack() as of_workers:
        worker = _worker(settings, engine, workers, of_workers)
        model_is = worker.about()
        manifest = {
            **_about_model(model_is, {"model": model, **parts}),
            **_about_input(sources, image_name, columns, keep, encoding),
            "heads": heads,
            "fit": fit,
            "dtype": dtype,
            "window": window,
            "part_rows": part_rows,
            "answers": answer_options.get("answering"),
            "sample": sample,
        }
        folder = OutputFolder(out, manifest, share, len(sources), again, retry_errors)
        of_folder.callback(folder.close)
        of_folder.callback(remove_leftovers, folder.parts)
        drawn = None if sample is None else draw_sample(sources, sample)
        plan = Plan(sources, window, part_rows, share, frozenset(folder.done), drawn)
        left = plan.files(folder)
        sizes = [source.size if share.has_file(file, len(sources)) else 0 for file, source in enumerate(sources)]
        progress = RunProgress(sizes, [file not in left for file in range(len(sources))], events)
        worker.begin(_begun(plan, left, folder, progress))
        speed = workers * (threads or 1) / get_num_threads() if engine == "ray" else workers
        about = {"engine": engine, "workers": workers, "shard": str(share), "model": model_is.model}
        _begin(progress, _estimate(worker, plan, left, folder, sizes, speed), plan, out=str(folder.path), **about)
        if engine == "local":
            results = worker.run(progress.tick)
        else:
            from ._ray_engine import run_ray

            results = run_ray(settings, plan, left, PartFolder(os.path.abspath(out)), workers, gpus, progress.tick)
        del worker  # Ray's have models of their own
        summary = _follow(results, folder, progress, keep_going)
        if answers is not None:
            write_finished(folder.path, answers, layout or ("gqa" if all(source.is_gqa for source in sources) else "vqa"))
        return summary


def _worker(settings: Settings, engine: str, workers: int, ends: contextlib.ExitStack) -> Union[Alone, Crew]:
    """Who has the model: workers of this machine, or this process where it is the only one, or for Ray's."""
    if engine == "local" and workers > 1:
        crew = Crew(settings, workers)
        ends.callback(crew.close)
        return crew
    threads = settings.actor["threads"] if engine == "local" else None
    return Alone(settings, HeatmapActor(**{**settings.actor, "threads": threads}))


def _answer_options(
    answers: Optional[PathLike],
    layout: Optional[ResultLayout],
    answering: Optional[Mapping[str, Any]],
    sample: Optional[int],
) -> dict[str, Any]:
    """What the actor is told of answers; ValueError or TypeError where that cannot be."""
    if sample is not None and whole_number(sample, "sample") < 1:
        raise ValueError(f"sample: got {sample}, expected at least 1")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, expected {' or '.join(map(repr, LAYOUTS))}")
    if answers is None:
        if layout or answering:
            raise ValueError("layout, answering: they are for answers; name the file that they go to (answers, --answers)")
        return {}
    remove_leftovers(make_folder(Path(answers).absolute().parent, "answers"))
    return {"answers": True, "answering": dict(answering or {})}


def _threads_each(threads: Optional[int], engine: str, workers: int) -> Optional[int]:
    """The width of a worker's thread pool; None: as it is."""
    if threads is not None or (engine == "local" and workers == 1):
        return threads
    return 1 if engine == "ray" else max(1, usable_cpus() // workers)


def _about_model(about: About, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The model's share of the manifest."""
    return {
        "model": model_identity(parts),
        "method": about.method,
        "block": about.block,
        "grid": list(about.grid),
        "about": {"model": about.model, "qavit": _version()},
    }


def _about_input(
    sources: Sequence[QuestionFile],
    image_name: Optional[str],
    columns: Optional[Mapping[str, str]],
    keep: Union[Mapping[str, str], Sequence[str]],
    encoding: Optional[str],
) -> dict[str, Any]:
    """The input's share of the manifest."""
    return {
        "questions": [[os.path.basename(source.path), file_identity(source.path)] for source in sources],
        "image_name": image_name,
        "columns": dict(columns or {}),
        "keep": dict(keep) if isinstance(keep, Mapping) else {name: name for name in keep},
        "encoding": encoding,
    }


def _begin(progress: RunProgress, estimate: Optional[Estimate], plan: Plan, **about: Any) -> None:
    """The first word of a run, with what is to be expected of it."""
    if estimate is None:
        progress.begin(**about)
    else:
        advice = estimate.advice(about["workers"], plan.part_rows)
        more = {"advice": advice.removeprefix("; ")} if advice else {}
        progress.begin(estimate.text() + advice, **about, **estimate.to_dict(), **more)


def _estimate(
    worker: Union[Alone, Crew],
    plan: Plan,
    left: Sequence[int],
    folder: PartFolder,
    sizes: Sequence[int],
    speed: float,
) -> Optional[Estimate]:
    """How long the run will take; None where nothing is left to do."""
    share = 1.0 if len(plan.sources) >= plan.shard.total else 1.0 / plan.shard.total
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the rows are read to be done
        parts = ((place, part) for place, file in enumerate(left) for part in plan.parts(file, folder))
        place, first = next(parts, (0, None))
        if first is None:
            return None
        if sum(sizes[file] for file in left) <= COUNTED_BYTES:
            rows = first.rows + sum(part.rows for _, part in parts)
        else:
            rows = rows_left(first, sizes, left[place:], share)
    return worker.measure(first, rows).estimate(rows, speed)


def _check_numbers(engine: str, workers: int, window: int, part_rows: int, shard: Union[str, Shard, None]) -> Shard:
    """The share of the work that is asked for; ValueError, TypeError or ImportError where a run cannot be."""
    for name, number in (("workers", workers), ("window", window), ("part_rows", part_rows)):
        if whole_number(number, name) < 1:
            raise ValueError(f"{name}: got {number}, expected at least 1")
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, expected 'local' or 'ray'")
    require("pyarrow", "data")
    if engine == "ray":
        require("ray", "ray")
    return shard if isinstance(shard, Shard) else Shard.parse(shard) if shard is not None else Shard()


def _follow(
    results: Generator[PartDone, None, None], folder: OutputFolder, progress: RunProgress, keep_going: bool
) -> RunSummary:
    """Go through an engine's results, stopping it when something is wrong."""
    images = rows = errors = 0
    seconds = 0.0
    try:
        for result in results:
            told = {"name": result.name, "images": result.images}
            progress.part(result.file, result.position, result.rows, result.errors, result.problem, **told)
            first = rows == 0 and not folder.done and result.position < 1.0
            if first and result.errors == result.rows and not keep_going:
                results.close()
                folder.remove_new()
                raise ValueError(
                    f"every row of the first part failed, the first by {result.problem}; when that is mended, the same call "
                    "begins anew; keep_going (--keep-going) goes on all the same"
                )
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
            progress.start(part.file, part.start, part.position)
            yield part


def _version() -> str:
    from .._base.about import __version__

    return __version__
