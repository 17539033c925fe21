"""What whole data sets cost: measured here, and worked out for sizes that cannot be run.

python -m benchmarks.scale throughput | share | memory | reading | plot [--folder build/scale]

Each part writes its numbers as JSON into the folder; plot draws docs/images/scale.png and prints the model of cost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import qavit.data
from qavit.data._plan import plan_file
from qavit.data._worker import PartWorker, Settings
from tests.small_models import write_qavit

ROOT = Path(__file__).parent.parent
QUESTIONS_EACH = 5
VQA_PICTURES, VQA_QUESTIONS = 40_504, 214_354  # VQAv2, validation
PICTURE_BYTES = 150e3  # COCO's val2014: 6 GB in 40,504 files
ROW_BYTES = {"B/16": 1131, "BLIP L/16@384": 3288}  # parts of 512 rows of random float32 maps, measured
WINDOWS = [1, 16, 64, 256, 1024, 4096, 8192, 16384, 65536, 262144]


def write_pictures(folder: Path, count: int) -> list[str]:
    """JPEG files of 640 x 480 with some detail, about 60 kB each."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    names = [f"{number:06d}.jpg" for number in range(count)]
    for name in names:
        if not (folder / name).exists():
            coarse = Image.fromarray(chance.integers(0, 256, (60, 80, 3), np.uint8))
            smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))
            pixels = np.clip(smooth + chance.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name, quality=85)
    return names


def write_questions(path: Path, names: list[str], each: int = QUESTIONS_EACH) -> Path:
    """`each` questions a picture, those of a picture in a row."""
    kinds = ("what color is the bus", "where is the dog", "how many people are there", "is it raining", "what is he holding")
    with open(path, "w", encoding="utf-8") as file:
        for name in names:
            for number in range(each):
                file.write(json.dumps({"image": name, "question": f"{kinds[number % 5]}?"}) + "\n")
    return path


def base_model(folder: Path) -> Path:
    """A QA-ViT with a vision transformer of B/16's size and random weights."""
    if not (folder / "config.json").exists():
        write_qavit(folder, blocks=12, image_size=224, patch=16, heads=12, width=768, feed_forward=3072)
    return folder


def throughput(folder: Path, pictures: int) -> dict[str, float]:
    """Processor time of a question, all processes together, with one worker and with two of one thread each.

    The difference of two runs of different length, so that starting is not in it. Where it stays the same, workers that have
    a core each do not slow each other.
    """
    found = {}
    for workers in (1, 2):
        spent = []
        for count in (pictures // 4, pictures):
            names = write_pictures(folder / "pictures", count)
            questions = write_questions(folder / f"{count}.jsonl", names)
            where = ["--images", str(folder / "pictures"), "-o", str(folder / f"out-{time.time_ns()}")]
            where += ["--model", str(base_model(folder / "base")), "--part-rows", "10"]
            options = ["--workers", str(workers), "--threads", "1"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "qavit", "run", str(questions), *where, *options], check=True, cwd=ROOT)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        found[str(workers)] = (spent[1] - spent[0]) / (QUESTIONS_EACH * (pictures - pictures // 4))
    return found


def share(folder: Path, pictures: int = 12) -> dict[str, Any]:
    """Processor time outside the core's passes, of all of this process: reading, decoding, Python, Parquet."""
    names = write_pictures(folder / "pictures", pictures)
    model = base_model(folder / "base")
    found: dict[str, Any] = {"pictures": pictures}
    for each in (1, QUESTIONS_EACH):
        (source,) = qavit.data.open_questions(write_questions(folder / "share.jsonl", names, each), folder / "pictures")
        actor = qavit.data.HeatmapActor(model, threads=1)
        spent = 0.0

        def timed(function: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal spent
                start = time.thread_time()
                try:
                    return function(*arguments, **options)
                finally:
                    spent += time.thread_time() - start

            return call

        class Timed:
            def __init__(self, core: Any, name: str) -> None:
                self._core = core
                setattr(self, name, timed(getattr(core, name)))

            def __getattr__(self, name: str) -> Any:
                return getattr(self._core, name)

        actor.model._vit = Timed(actor.model._vit, "forward")
        actor.model._text = Timed(actor.model._text, "encode")
        out = folder / f"share-{time.time_ns()}"
        out.mkdir()
        for part_rows in (each, 512):  # in parts of one picture first, so that libraries are imported
            spent, start = 0.0, time.process_time()
            worker = PartWorker(Settings({}, str(out)), actor)
            for part in plan_file(source, 0, 8192, part_rows):
                worker(part)
            total = time.process_time() - start
        each_picture = {"core_seconds": spent / pictures, "all_seconds": total / pictures}
        found[f"{each} questions"] = {**each_picture, "outside": 1 - spent / total}
        print(each, found[f"{each} questions"])
    one, many = (found[f"{each} questions"]["all_seconds"] for each in (1, QUESTIONS_EACH))
    found["question_seconds"] = (many - one) / (QUESTIONS_EACH - 1)
    found["picture_seconds"] = one - found["question_seconds"]
    return found


def memory(folder: Path, questions: int = 100_000) -> dict[str, Any]:
    """Resident memory of a run of the bundled model, as it goes on."""
    real = write_pictures(folder / "pictures", 200)
    names = [f"link-{number:06d}.jpg" for number in range(questions // QUESTIONS_EACH)]
    for number, name in enumerate(names):
        link = folder / "pictures" / name
        if not link.is_symlink():
            link.symlink_to(real[number % len(real)])
    listed = write_questions(folder / "memory.jsonl", names)
    out = folder / f"memory-{time.time_ns()}"
    where = ["--images", str(folder / "pictures"), "-o", str(out)]
    command = [sys.executable, "-m", "qavit", "run", str(listed), *where, "--json", "--threads", "1"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    done, points = 0, []
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "part":
            done += event["rows"]
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            points.append((done, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
    return {"points": points, "code": process.wait(), "seconds": time.monotonic() - start}


def reading(folder: Path) -> dict[str, Any]:
    """How fast questions are read and planned, and how many of them find their picture's work done already."""
    chance = random.Random(0)
    counts = [VQA_QUESTIONS // VQA_PICTURES] * VQA_PICTURES
    for place in range(VQA_QUESTIONS - sum(counts)):
        counts[place] += 1
    rows = [picture for picture, count in enumerate(counts) for _ in range(count)]
    found: dict[str, Any] = {}
    for order in ("in order", "shuffled"):
        if order == "shuffled":
            chance.shuffle(rows)
        path = folder / "vqa.jsonl"
        lines = ({"image": f"COCO_val2014_{row:012d}.jpg", "question": "what color is the bus?"} for row in rows)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (source,) = qavit.data.open_questions(path)
        hits = []
        for window in WINDOWS:
            start = time.process_time()
            groups = sum(len(part.groups) for part in plan_file(source, 0, window, 512))
            seconds = time.process_time() - start
            hits.append(1 - groups / len(rows))
            if window == 8192:
                found["rows_a_second"] = len(rows) / seconds
        found[order] = hits
    found["input_bytes_a_row"] = path.stat().st_size / len(rows)
    return found


# ---- what follows ----


def costs(share_found: dict[str, Any], reading_found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Core hours and bytes for data sets of three sizes, with B/16 and with PnP-VQA's BLIP."""
    models = {
        "B/16": (share_found["picture_seconds"], share_found["question_seconds"]),
        # From docs/logs/SPEED.md: 3.89 s of processor time for one question on a picture, 4.2 s of two cores for ten.
        "BLIP L/16@384": (3.89 - (8.4 - 3.89) / 9, (8.4 - 3.89) / 9),
    }
    for name, pairs in (("VQAv2 validation", VQA_QUESTIONS), ("10^8", 10**8), ("10^10", 10**10)):
        pictures = pairs * VQA_PICTURES / VQA_QUESTIONS
        for model, (picture, question) in models.items():
            yield {
                "pairs": name,
                "model": model,
                "core_hours_together": (pictures * picture + pairs * question) / 3600,
                "core_hours_apart": pairs * (picture + question) / 3600,
                "read_gb": (pictures * PICTURE_BYTES + pairs * reading_found["input_bytes_a_row"]) / 1e9,
                "planning_hours": pairs / reading_found["rows_a_second"] / 3600,
                "written_gb": pairs * ROW_BYTES[model] / 1e9,
                "files": pairs / 512,
            }


def plot(folder: Path) -> None:
    """docs/images/scale.png, and the model of cost on standard output."""
    from matplotlib.figure import Figure

    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    rates, rss, hits = figure.subplots(1, 3)
    spent = found["throughput"]
    bars = rates.bar([f"{workers} worker{'s' * (workers > 1)}" for workers in (1, 2)], [spent["1"], spent["2"]], width=0.5)
    rates.bar_label(bars, fmt="%.3f")
    rates.set(ylabel="processor seconds a question, B/16", ylim=(0, 1.3 * max(spent.values())))
    points = np.array(found["memory"]["points"])
    rss.plot(points[:, 0], points[:, 1])
    rss.set(xlabel="questions done", ylabel="resident memory, MB", ylim=(0, 1.3 * points[:, 1].max()))
    for order, style in (("in order", "-"), ("shuffled", "--")):
        hits.semilogx(WINDOWS, [100 * value for value in found["reading"][order]], style, label=f"VQAv2's counts, {order}")
    hits.set(xlabel="window, rows", ylabel="questions whose picture\nis computed already, %")
    hits.legend(fontsize=7)
    figure.savefig(ROOT / "docs" / "images" / "scale.png", dpi=110)
    for row in costs(found["share"], found["reading"]):
        print({key: value if isinstance(value, str) else float(f"{value:.3g}") for key, value in row.items()})


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("throughput", "share", "memory", "reading", "plot"))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "scale")
    parser.add_argument("--pictures", type=int, default=16, help="of throughput")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if options.part == "plot":
        plot(folder)
        return
    target = folder / f"{options.part}.json"
    if options.part == "throughput":
        known = throughput(folder, options.pictures)
    else:
        known = {"share": share, "memory": memory, "reading": reading}[options.part](folder)
    target.write_text(json.dumps(known, indent=1))
    print({key: value for key, value in known.items() if key != "points"})


if __name__ == "__main__":
    main()
