"""Evaluate a model folder with qavit: `python -m training.evaluate --model qavit/demo_model --card docs/DEMO_MODEL.md`.

Held-out scenes, each showing at least one combination of colour and shape that training never showed. Pointing: the centre
of the map's largest patch lies inside a box that the question refers to. Answers: the likeliest answer is the right one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import qavit
from training.questions import KINDS, ask, position_of, questions_for
from training.scenes import COLORS, HELD_OUT, SHAPES, Box, Scene, draw_scene

FIRST_SEED = 5_000_000
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass
class Case:
    """One question on one scene, and what the model made of it."""

    scene: int
    kind: str
    text: str
    answer: str
    boxes: tuple[Box, ...]
    new: bool  # a referred object's combination never occurs in training
    hits: NDArray[np.bool_]  # [blocks]
    answered: str
    probability: float
    map: NDArray[np.float32] = field(repr=False)  # [gh, gw], the default block


def hit(heatmap: NDArray[np.float32], boxes: tuple[Box, ...], size: int) -> bool:
    """Whether the centre of the largest patch of a map [gh, gw] lies in a box (pixels of a size x size picture)."""
    rows, columns = heatmap.shape
    row, column = divmod(int(heatmap.argmax()), columns)
    x, y = (column + 0.5) * size / columns, (row + 0.5) * size / rows
    return any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes)


def held_out_scenes(count: int, first: int = FIRST_SEED) -> list[Scene]:
    """Scenes that training cannot have shown."""
    return [draw_scene(first + i, 96, "held_out") for i in range(count)]


def run_cases(model: qavit.QAViT, scenes: list[Scene], seed: int = 0, shift: int = 0) -> list[Case]:
    """Ask every scene its questions; with `shift`, look with the questions of the scene `shift` places on."""
    rng = np.random.default_rng(seed)
    asked = [questions_for(scene, rng) for scene in scenes]
    cases = []
    for i, scene in enumerate(scenes):
        own, others = asked[i], asked[(i + shift) % len(scenes)]
        texts = [others[k % len(others)].text for k in range(len(own))]
        result = model.heatmaps(scene.image, texts)
        maps = result.block_maps  # [blocks, Q, gh, gw]
        for k, question in enumerate(own):
            names = [(scene.objects[t].color, scene.objects[t].shape) for t in question.targets]
            hits = np.array([hit(m[k], question.boxes, scene.image.shape[0]) for m in maps])
            answered, probability = result.answers[k][0]
            new = any(name in HELD_OUT for name in names)
            cases.append(
                Case(
                    i,
                    question.kind,
                    texts[k],
                    question.answer,
                    question.boxes,
                    new,
                    hits,
                    answered,
                    probability,
                    result.maps[k],
                )
            )
    return cases


def question_method(model: qavit.QAViT, scenes: list[Scene], seed: int = 0) -> NDArray[np.float64]:
    """Pointing of the method "question" (which patches look at the question's words) by block; NaN where it is blind."""
    rng = np.random.default_rng(seed)
    hits = []
    for scene in scenes:
        for question in questions_for(scene, rng):
            if question.boxes:
                maps = model.extract_attention(scene.image, [question.text], blocks=model.integrated, method="question")
                size = scene.image.shape[0]
                hits.append([hit(m.reshape(model.grid), question.boxes, size) for m in maps[0]])
    found = np.full(model.num_blocks, np.nan)
    found[list(model.integrated)] = np.mean(hits, axis=0)
    return found


def pointing(cases: list[Case], block: int) -> float:
    """Share of hits among the cases that refer to something."""
    found = [bool(case.hits[block]) for case in cases if case.boxes]
    return float(np.mean(found)) if found else float("nan")


def accuracy(cases: list[Case]) -> float:
    """Share of right answers."""
    return float(np.mean([case.answer == case.answered for case in cases])) if cases else float("nan")


def box_share(cases: list[Case], grid: int = 12, size: int = 96) -> float:
    """What a uniformly random patch would reach: the mean share of patches whose centre lies in a box."""
    shares = []
    for case in cases:
        if case.boxes:
            spots = np.eye(grid * grid, dtype=np.float32).reshape(-1, grid, grid)
            shares.append(np.mean([hit(spot, case.boxes, size) for spot in spots]))
    return float(np.mean(shares))


def wordings(model: qavit.QAViT, scenes: list[Scene], block: int) -> dict[str, tuple[float, float, int]]:
    """Pointing and position answers for one object a scene, the same question put in several forms."""
    forms = {
        "where is the red star": "where is the {}",
        "Where is the red star?": "Where is the {}?",
        "WHERE IS THE RED STAR?": "upper",
        "show me the red star": "show me the {}",
        "point to the red star, please": "point to the {}, please",
        "red star": "{}",
        "synonym of the shape": "synonym",
        "whereabouts of said red star, good sir (words it does not know)": "whereabouts of said {}, good sir",
        "where is teh red star (misspelt)": "where is teh {}",
    }
    synonyms = {
        "circle": "disc",
        "square": "box",
        "triangle": "pyramid",
        "star": "star",
        "cross": "plus sign",
        "ring": "donut",
    }
    score: dict[str, list[tuple[bool, bool]]] = {name: [] for name in forms}
    for scene in scenes:
        pairs = [(o.color, o.shape) for o in scene.objects]
        alone = [i for i, o in enumerate(scene.objects) if pairs.count(pairs[i]) == 1 and position_of(o)]
        if not alone:
            continue
        thing, box = scene.objects[alone[0]], scene.boxes[alone[0]]
        noun = f"{thing.color} {thing.shape}"
        texts = []
        for form in forms.values():
            if form == "upper":
                texts.append(f"WHERE IS THE {noun.upper()}?")
            elif form == "synonym":
                texts.append(f"where is the {thing.color} {synonyms[thing.shape]}")
            else:
                texts.append(form.format(noun))
        result = model.heatmaps(scene.image, texts, block=block)
        for k, name in enumerate(forms):
            score[name].append((hit(result.maps[k], (box,), 96), result.answers[k][0][0] == position_of(thing)))
    return {name: (*(float(v) for v in np.mean(values, axis=0)), len(values)) for name, values in score.items()}


def absent(model: qavit.QAViT, scenes: list[Scene], block: int) -> tuple[dict[str, float], int]:
    """Where the map's maximum lies when the asked combination is absent, though its colour and its shape both occur."""
    counts = {"an object of that colour": 0, "an object of that shape": 0, "another object": 0, "background": 0}
    total = 0
    for scene in scenes:
        present = {(o.color, o.shape) for o in scene.objects}
        pairs = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
        pairs = [
            (c, s) for c, s in pairs if any(c == o.color for o in scene.objects) and any(s == o.shape for o in scene.objects)
        ]
        if not pairs:
            continue
        color, shape = pairs[scene.seed % len(pairs)]
        heatmap = model.heatmaps(scene.image, f"where is the {color} {shape}", block=block).maps[0]
        groups = {
            "an object of that colour": [b for o, b in zip(scene.objects, scene.boxes) if o.color == color],
            "an object of that shape": [b for o, b in zip(scene.objects, scene.boxes) if o.shape == shape],
            "another object": list(scene.boxes),
            "background": [(0.0, 0.0, 96.0, 96.0)],
        }
        total += 1
        for name, boxes in groups.items():
            if hit(heatmap, tuple(boxes), 96):
                counts[name] += 1
                break
    return {name: value / max(total, 1) for name, value in counts.items()}, total


def exists_answers(model: qavit.QAViT, scenes: list[Scene]) -> dict[str, tuple[float, int]]:
    """Accuracy of yes and of no."""
    rng = np.random.default_rng(3)
    right: dict[str, list[bool]] = {"yes": [], "no": []}
    for scene in scenes:
        question = ask(scene, rng, "exists")
        if question is not None:
            right[question.answer].append(model.answer(scene.image, question.text)[0].text == question.answer)
    return {name: (float(np.mean(values)) if values else float("nan"), len(values)) for name, values in right.items()}


def randomised_copy(folder: Path, target: Path, seed: int = 0) -> None:
    """A copy of a model folder whose every matrix has its values shuffled: same statistics, nothing learnt."""
    from safetensors.numpy import load_file, save_file

    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, target / name)
    rng = np.random.default_rng(seed)
    weights = load_file(folder / "model.safetensors")
    for name in sorted(weights):
        if weights[name].ndim >= 2:
            weights[name] = rng.permutation(weights[name].reshape(-1)).reshape(weights[name].shape)
    save_file(weights, target / "model.safetensors")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}%"


def tables(folder: Path, count: int) -> tuple[str, list[Case], dict[str, float]]:
    """The figures as Markdown, the cases, and the main figures by name."""
    scenes = held_out_scenes(count)
    model = qavit.load(folder)
    block = model.default_block
    cases = run_cases(model, scenes)
    blocks = len(cases[0].hits)
    by_block = [pointing(cases, i) for i in range(blocks)]
    aware = model.first_question_aware_block
    blind = max(by_block[:aware])
    other = pointing(run_cases(model, scenes, shift=1), block)
    with tempfile.TemporaryDirectory() as scratch:
        randomised_copy(folder, Path(scratch))
        shuffled = pointing(run_cases(qavit.load(Path(scratch)), scenes[: max(count // 4, 1)]), block)
    low_cases = run_cases(qavit.load(folder, precision="bfloat16"), scenes[: max(count // 4, 1)])
    high_cases = [case for case in cases if case.scene < max(count // 4, 1)]

    referring = sum(1 for case in cases if case.boxes)
    lines = [
        f"{count:,} held-out scenes, {len(cases):,} questions, {referring:,} of which refer to something; "
        f"block {block}, method `class`.",
        "",
        "| question kind | questions | pointing | pointing, block 7 | answer |",
        "|---|---|---|---|---|",
    ]
    groups = [(kind, [case for case in cases if case.kind == kind]) for kind in KINDS]
    groups += [("**all**", cases)]
    groups += [("object of a new combination", [case for case in cases if case.new])]
    groups += [("objects of known combinations", [case for case in cases if case.boxes and not case.new])]
    for name, group in groups:
        lines.append(
            f"| {name} | {len(group)} | {_percent(pointing(group, block))} | {_percent(pointing(group, 7))} | "
            f"{_percent(accuracy(group))} |"
        )
    lines += ["", "| pointing by | |", "|---|---|"]
    lines.append(f"| the model, block {block} | {_percent(by_block[block])} |")
    lines.append(f"| a random patch (the boxes' share of the picture) | {_percent(box_share(cases))} |")
    lines.append(f"| the best question-blind block (0 to {aware - 1}) | {_percent(blind)} |")
    lines.append(f"| the question of another scene | {_percent(other)} |")
    lines.append(f"| shuffled weights ({max(count // 4, 1)} scenes) | {_percent(shuffled)} |")
    low, high = pointing(low_cases, block), pointing(high_cases, block)
    lines.append(
        f"| bfloat16 ({max(count // 4, 1)} scenes; float32 on the same: {_percent(high)}, "
        f"answers {_percent(accuracy(high_cases))}) "
        f"| {_percent(low)}, answers {_percent(accuracy(low_cases))} |"
    )
    lines += ["", "| block | " + " | ".join(str(i) for i in range(blocks)) + " |", "|---" * (blocks + 1) + "|"]
    lines.append("| method `class` | " + " | ".join(_percent(v) for v in by_block) + " |")
    few = max(count // 10, 1)
    other_method = question_method(model, scenes[:few])
    lines.append(f"| method `question` ({few} scenes) | " + " | ".join(_percent(v) for v in other_method) + " |")
    lines += ["", "| one object a scene, asked as | scenes | pointing | position answered |", "|---|---|---|---|"]
    for name, (point, answer, number) in wordings(model, scenes, block).items():
        lines.append(f"| {name} | {number} | {_percent(point)} | {_percent(answer)} |")
    shares, number = absent(model, scenes, block)
    lines += ["", f"| asked for an absent pair ({number} scenes), the map's maximum lies on | |", "|---|---|"]
    lines += [f"| {name} | {_percent(value)} |" for name, value in shares.items()]
    said = exists_answers(model, scenes)
    lines += ["", '| "is there a ..." | questions | right |', "|---|---|---|"]
    lines += [f"| the answer is {name} | {number} | {_percent(value)} |" for name, (value, number) in said.items()]
    main = {"pointing": by_block[block], "block7": by_block[7], "answers": accuracy(cases), "blind": blind, "other": other}
    return "\n".join(lines), cases, main


def picture(cases: list[Case], count: int, path: Path, block: int, each: int = 8) -> None:
    """The first hits and the first misses, one a scene, in the order of the scenes' seeds: nothing is picked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    from qavit.plots._labels import wrap

    scenes = held_out_scenes(count)
    rng = np.random.default_rng(1)
    rows = []
    for wanted in (True, False):
        chosen: list[Case] = []
        for i in range(count):
            mine = [case for case in cases if case.scene == i and case.boxes and bool(case.hits[block]) == wanted]
            if mine and len(chosen) < each:
                chosen.append(mine[int(rng.integers(len(mine)))])
        rows.append(chosen)
    columns, side = each // 2, 384
    figure = plt.figure(figsize=(2.6 * columns, 13.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    for part, name, chosen in zip(figure.subfigures(2, 1, hspace=0.03), ("Hits", "Misses"), rows):
        part.suptitle(f"{name}, the first by seed", x=0.004, ha="left", fontsize=12, fontweight="bold")
        axes = part.subplots(2, columns, squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, case in zip(axes.flat, chosen):
            scene = scenes[case.scene].image
            axis.imshow(qavit.HeatmapResult(case.map[None], [case.text], scene).overlay(size=side))
            for box in case.boxes:
                left, top, right, bottom = (edge * side / scene.shape[0] for edge in box)
                border = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1.2)
                border.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
                axis.add_patch(border)
            axis.set_title("\n".join(["", "", *wrap(case.text, 30, 2)][-3:]), fontsize=9, loc="left")
            axis.set_xlabel(f"says {case.answered} ({case.probability:.0%}), is {case.answer}", fontsize=8, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight", pad_inches=0.08, pil_kwargs={"quality": 86, "optimize": True})
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("qavit/demo_model"))
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--card", type=Path, help="a Markdown file whose figures are replaced")
    parser.add_argument("--picture", type=Path, help="a JPEG of hits and misses")
    options = parser.parse_args()
    warnings.simplefilter("ignore", qavit.QuestionBlindWarning)
    text, cases, main_figures = tables(options.model, options.scenes)
    print(text)
    print(json.dumps(main_figures))
    if options.card is not None:
        card = options.card.read_text(encoding="utf-8")
        before, rest = card.split(BEGIN)
        after = rest.split(END)[1]
        options.card.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    if options.picture is not None:
        picture(cases, options.scenes, options.picture, qavit.load(options.model).default_block)


if __name__ == "__main__":
    main()
