"""A GPU's attention alone: on tensor cores, beside float32's kernel. `python -m benchmarks.cuda_attention`.

The data lie on the GPU; what crosses is not counted. A line each: GFLOP/s, times float32's, and how far the output is from
float32's, of its largest number. Needs a build with CUDA and `qavit._core_testing`, and no torch. `--small` tries the script
itself, on the host.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from qavit import _core, _core_testing

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Sizes:
    """Of self-attention: pictures, their tokens, heads and the heads' width."""

    batch: int
    tokens: int
    heads: int
    width: int

    @property
    def operations(self) -> float:
        """Of the two products."""
        return 4.0 * self.batch * self.heads * self.tokens * self.tokens * self.width


#: ViT-B/16 at 224 pixels and L/14 at 336, one to 32 pictures; and the other widths that models have.
FULL = (
    *(Sizes(batch, tokens, heads, 64) for tokens, heads in ((197, 12), (577, 16)) for batch in (1, 8, 32)),
    *(Sizes(8, 577, 16, width) for width in (80, 88, 96, 128)),
)
SMALL = (Sizes(1, 50, 2, 64), Sizes(2, 20, 1, 80))


def attend(device: str, sizes: Sizes, precision: str, arrays: list[Any], repeats: int) -> tuple[Any, float]:
    """The output, and the seconds of one pass, the first one left out."""
    out = np.empty_like(arrays[0])
    seconds = _core_testing.attention(
        out, *arrays, None, None, None, None, None, None, None, None, None, sizes.heads, sizes.batch, sizes.width**-0.5,
        False, 0, sizes.tokens, 0, 0, "float32" if precision == "tf32" else precision, device, precision == "tf32", repeats,
    )  # fmt: skip
    return out, seconds / repeats


def lines(device: str, sizes: Sizes, rounds: int, seconds_each: float) -> list[dict[str, Any]]:
    """One of each precision, the best of interleaved rounds."""
    random = np.random.default_rng(0)
    shape = (sizes.batch, sizes.tokens, sizes.heads * sizes.width)
    arrays = [random.standard_normal(shape, dtype=np.float32) for _ in range(3)]
    outputs, best = {}, dict.fromkeys(PRECISIONS, float("inf"))
    repeats = dict.fromkeys(PRECISIONS, 1)
    for _ in range(rounds + 1):  # the first one tells how often
        for precision in PRECISIONS:
            outputs[precision], seconds = attend(device, sizes, precision, arrays, repeats[precision])
            best[precision] = min(best[precision], seconds)
            repeats[precision] = max(1, min(200, int(seconds_each / seconds)))
    exact = outputs["float32"]
    return [
        {
            "batch": sizes.batch, "tokens": sizes.tokens, "heads": sizes.heads, "width": sizes.width, "precision": precision,
            "microseconds": round(1e6 * best[precision], 1),
            "gigaflops": float(f"{sizes.operations / best[precision] / 1e9:.4g}"),
            "times_float32": round(best["float32"] / best[precision], 2),
            "off": float(f"{np.abs(outputs[precision] - exact).max() / np.abs(exact).max():.1e}"),
        }
        for precision in PRECISIONS
    ]  # fmt: skip


def measure(device: str, small: bool, rounds: int, as_json: bool) -> None:
    """Print a line for each precision of each size."""
    for sizes in SMALL if small else FULL:
        for line in lines(device, sizes, rounds, 0.0 if small else 0.03):
            shown = json.dumps({"work": "attention", **line})
            if not as_json:
                shown = (
                    f"attention  {sizes.batch} x {sizes.tokens} tokens, {sizes.heads} heads of {sizes.width}  "
                    f"{line['precision']:8}  {line['microseconds']:10} us  {line['gigaflops']:9} GFLOP/s  "
                    f"{line['times_float32']} x float32  off by {line['off']}"
                )
            print(shown, flush=True)


def main() -> int:
    """Measure; a line a precision, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--small", action="store_true", help="small sizes on cuda-host: whether this script runs, no times")
    options = parser.parse_args()
    device = "cuda-host" if options.small else "cuda"
    try:
        _core.check_device(device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    measure(device, options.small, options.rounds, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
