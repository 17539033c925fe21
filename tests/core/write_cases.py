"""The public codes' small models and what they gave, for tests/core/models_check.c: `python write_cases.py FILE`.

The file is little-endian: the count of tensors (uint64), a record of each (name, shape, offset in bytes), sorted by
name, and their items in float32. Needs qavit and NumPy, no torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"
RECORD = np.dtype([("name", "S128"), ("shape", "<u8", 4), ("offset", "<u8")])
ALIGNMENT = 64


def collect() -> dict[str, Any]:
    """Names -> arrays: the weights as a converted folder names them, and what went in and came out."""
    from qavit.checkpoints import open_model
    from qavit.checkpoints._weights import float_array
    from qavit.text import Tokenizer

    late, blip = GOLDEN / "qavit_official_late", GOLDEN / "blip_itm"
    facts = json.loads((blip / "cases.json").read_text())
    sources = (
        open_model(checkpoint=late / "checkpoint.pth", vision=late / "clip", text=late / "t5"),
        open_model(
            checkpoint=blip / "checkpoint.pth",
            tokenizer=blip / "vocab.txt",
            config={"text": facts["med_config"], "vision": facts["vit"]},
        ),
    )
    tensors = {
        prefix + name: float_array(weight)
        for prefix, source in zip(("", "blip."), sources)
        for name, weight in source.weights.items()
    }
    for name, array in np.load(late / "golden.npz").items():
        tensors["late." + name] = array
    with np.load(blip / "golden.npz") as golden:
        for name in ("ids", "mask", "image_embeds", "itm_logits", "gradcams_block7"):
            tensors["blip." + name] = golden[name]
        picture = golden["image_u8"].repeat(8, axis=1).repeat(8, axis=2).astype(np.float32) / 255
    # The golden ids begin with [CLS], as the contrastive heads take them; matching reads [ENC] there.
    assert sources[1].tokenizer is not None
    tensors["blip.ids"] = tensors["blip.ids"].copy()
    tensors["blip.ids"][:, 0] = Tokenizer(sources[1].tokenizer).id_of("[ENC]")
    normalised = (picture - np.array(facts["mean"], np.float32)) / np.array(facts["std"], np.float32)
    tensors["blip.pixels"] = normalised.transpose(0, 3, 1, 2)
    return tensors


def main(path: str) -> None:
    """Write them."""
    tensors = {name: np.ascontiguousarray(array, "<f4") for name, array in collect().items()}
    records = np.zeros(len(tensors), RECORD)
    offset = 8 + records.nbytes
    for row, name in enumerate(sorted(tensors)):
        offset += -offset % ALIGNMENT
        shape = tensors[name].shape
        records[row] = (name.encode(), (*shape, *[0] * (4 - len(shape))), offset)
        offset += tensors[name].nbytes
    with open(path, "wb") as file:
        file.write(np.uint64(len(tensors)).astype("<u8").tobytes() + records.tobytes())
        for name, place in zip(sorted(tensors), records["offset"]):
            file.write(b"\0" * (int(place) - file.tell()))
            file.write(tensors[name].tobytes())


if __name__ == "__main__":
    main(sys.argv[1])
