"""What int8 changes of maps, as it is and with outliers folded: the bundled model, and models with outliers of known size.

    python -m benchmarks.int8_fidelity                       # 500 pairs of the bundled model; B/16 with g = 3, 15, 50
    python -m benchmarks.int8_fidelity --pairs 20 --small    # the same code in a few seconds

The bundled model: pairs of a held-out scene and one of its questions, as `benchmarks.faithfulness` draws them. Outliers: no
weights of a large CLIP lie here, so its size is made with Gaussian weights that look about as real ones do: the class token
attends to a hundred patches or so; from block 2 on six channels of the residual stream are g times the others (by the bias
of fc2 in block 1), with gains of 1/2 and columns that read them 3 / g as large; in each block eight neurons of fc1 are g / 3
times as large, and fc2's columns for them as much smaller. Four smooth pictures, all blocks, the class token's map, the mean
of its heads. Maps are all but flat here: their largest patches are near ties.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qavit
from qavit.checkpoints import convert, open_model
from qavit.metrics import Differences

from .quiet import be_quiet
from .sizes import SIZES, Size

SIDES = ("bfloat16", "int8", "int8 folded", "int8 folded by weights", "int8_mixed folded")
OUTLIERS, NEURONS, FIRST = 6, 8, 2
PICTURES, CALIBRATION = 4, 2
#: The scores' standard deviation that leaves about a hundred patches of 196.
SCORES = 0.85


def random_state(size: Size, g: float, residual: float) -> dict[str, np.ndarray]:
    """CLIP's tensors; `residual` is the residual stream's size behind block 1, which outliers are g times of."""
    rng, d, f = np.random.default_rng(3), size.hidden, size.feed_forward
    state: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, scale: float) -> None:
        state[name] = (scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> None:
        state[name + ".weight"], state[name + ".bias"] = np.ones(d, np.float32), np.zeros(d, np.float32)

    embeddings = "vision_model.embeddings."
    add(embeddings + "class_embedding", d, scale=1.0)
    add(embeddings + "patch_embedding.weight", d, 3, size.patch, size.patch, scale=(3 * size.patch**2) ** -0.5)
    add(embeddings + "position_embedding.weight", size.tokens, d, scale=0.7)
    norm("vision_model.pre_layrnorm")
    norm("vision_model.post_layernorm")
    large = rng.choice(d, OUTLIERS, replace=False)
    signs = rng.choice([-1.0, 1.0], OUTLIERS)
    shrunk = np.sqrt(1 + OUTLIERS * g * g / d)
    for i in range(size.blocks):
        block, behind = f"vision_model.encoder.layers.{i}.", i >= FIRST
        norm(block + "layer_norm1")
        norm(block + "layer_norm2")
        # What the norm leaves of the other channels is smaller where there are outliers: scores stay as they are.
        scores = np.sqrt(SCORES) * (shrunk if behind else 1.0)
        for part, scale in (("q_proj", scores), ("k_proj", scores), ("v_proj", 1.0), ("out_proj", 0.7)):
            add(f"{block}self_attn.{part}.weight", d, d, scale=scale * d**-0.5)
            add(f"{block}self_attn.{part}.bias", d, scale=0.02)
        add(block + "mlp.fc1.weight", f, d, scale=d**-0.5)
        add(block + "mlp.fc1.bias", f, scale=0.02)
        add(block + "mlp.fc2.weight", d, f, scale=0.7 * f**-0.5)
        add(block + "mlp.fc2.bias", d, scale=0.02)
        neurons = rng.choice(f, NEURONS, replace=False)
        if i == FIRST - 1:
            state[block + "mlp.fc2.bias"][large] = g * residual * signs
        if behind:
            for name in ("layer_norm1", "layer_norm2"):
                state[f"{block}{name}.weight"][large] = 0.5
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"):
                state[f"{block}{name}.weight"][:, large] *= 3 / g
            state[block + "mlp.fc1.weight"][neurons] *= g / 3
            state[block + "mlp.fc2.weight"][:, neurons] *= 3 / g
    return state


def smooth_pictures(size: Size, count: int, seed: int) -> list[np.ndarray]:
    """Noise of several scales, normalised [3, S, S]."""
    rng, pictures = np.random.default_rng(seed), []
    for _ in range(count):
        picture = np.zeros((3, size.image, size.image), np.float32)
        for cells in (2, 4, 8):
            steps = -(-size.image // cells)
            coarse = rng.standard_normal((3, cells, cells)).astype(np.float32)
            picture += np.kron(coarse, np.ones((1, steps, steps), np.float32))[:, : size.image, : size.image] / 2
        pictures.append(picture)
    return pictures


def write_model(folder: Path, size: Size, g: float) -> None:
    """A CLIP vision folder with outliers g times the other channels."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {"model_type": "clip_vision_model", **size.config}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_state(size, g, 0.0), folder / "model.safetensors")
    hidden = qavit.load(vision=folder).vision(smooth_pictures(size, 1, 9)[0][None], output_hidden_states=True).hidden_states
    save_file(random_state(size, g, float(hidden[FIRST].std())), folder / "model.safetensors")


def open_side(side: str, given: dict[str, Any], scratch: Path, pictures: Sequence[Any]) -> Any:
    """A model of `SIDES`; one that is folded is converted first, by pictures or by weights alone."""
    precision, _, how = side.partition(" ")
    if how:
        folder = scratch / how.replace(" ", "-")
        if not folder.exists():
            convert(open_model(**given), folder, fold=True, calibrate=None if how.endswith("weights") else pictures)
        given = {"path": folder}
    return qavit.load(**given, precision=precision)


def report(what: str, meters: dict[str, Differences]) -> list[dict[str, Any]]:
    """Lines of the table, printed, and as JSON's objects."""
    rows = []
    for side, meter in meters.items():
        found = meter.summary()
        answers = f"{100 * found['same_answer']:.1f}%" if "same_answer" in found else ""
        print(
            f"| {what} | {side} | {found['spearman_mean']:.5f} / {found['spearman_least']:.4f} | "
            f"{100 * found['same_patch']:.1f}% | {answers} | {100 * found['difference_largest']:.2f}% |", flush=True,
        )  # fmt: skip
        rows.append({"model": what, "side": side, **found})
    return rows


def bundled(pairs: int, sides: Iterable[str], scratch: Path) -> list[dict[str, Any]]:
    """The bundled model on held-out scenes."""
    from training.evaluate import held_out_scenes
    from training.questions import questions_for

    from .faithfulness import FIRST_SEED

    scenes, rng = held_out_scenes(pairs + CALIBRATION, FIRST_SEED), np.random.default_rng(0)
    asked = []
    for scene in scenes:
        several = questions_for(scene, rng)
        asked.append((scene.image, several[int(rng.integers(len(several)))].text))
    calibration = [image for image, _ in asked[pairs:]]
    reference = qavit.load("demo")
    models = {side: open_side(side, {"path": "demo"}, scratch, calibration) for side in sides}
    meters = {side: Differences() for side in models}
    for image, question in asked[:pairs]:
        expected = reference.heatmaps(image, question)
        for side, model in models.items():
            found = model.heatmaps(image, question)
            meters[side].update(
                found.raw[0], expected.raw[0], answer=found.answers[0][0][0], reference_answer=expected.answers[0][0][0]
            )
    return report(f"bundled, {pairs} pairs", meters)


def outliers(size: Size, g: float, sides: Iterable[str], scratch: Path) -> list[dict[str, Any]]:
    """A model with outliers g times the others."""
    write_model(scratch / "model", size, g)
    given = {"vision": scratch / "model"}
    pictures, calibration = smooth_pictures(size, PICTURES, 1), smooth_pictures(size, CALIBRATION, 2)
    blocks = range(size.blocks)

    def maps(model: Any) -> np.ndarray:
        every = [qavit.extract_attention(model, picture, None, blocks=tuple(blocks)) for picture in pictures]
        return np.concatenate([np.asarray(one).reshape(size.blocks, *model.grid) for one in every])

    expected = maps(qavit.load(**given))
    flat = expected.reshape(len(expected), -1).astype(np.float64)
    shares = flat / flat.sum(axis=1, keepdims=True)
    effective = np.exp(-(shares * np.log(shares + 1e-30)).sum(axis=1))
    print(f"g = {g:g}: maps of {effective.min():.0f} to {effective.max():.0f} patches of {flat.shape[1]}", flush=True)
    meters = {}
    for side in sides:
        meter = meters[side] = Differences()
        for one, other in zip(maps(open_side(side, given, scratch, calibration)), expected):
            meter.update(one, other)
    return report(f"{size.name}, g = {g:g}", meters)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500, help="of the bundled model; 0: leave it out")
    parser.add_argument("--g", type=float, nargs="*", default=[3, 15, 50], help="how large outliers are (default: 3 15 50)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--small", action="store_true", help="small models with outliers, to try the code")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    be_quiet()
    warnings.simplefilter("ignore")
    print("| model | side | Spearman, mean / least | same largest patch | same answer | largest difference |")
    print("|---|---|---|---|---|---|")
    rows = []
    if options.pairs:
        with tempfile.TemporaryDirectory() as scratch:
            rows += bundled(options.pairs, options.sides, Path(scratch))
    for g in options.g:
        with tempfile.TemporaryDirectory() as scratch:
            rows += outliers(SIZES["small" if options.small else "B/16@224"], g, options.sides, Path(scratch))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
