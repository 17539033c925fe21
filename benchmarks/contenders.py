"""The same maps from each library: functions of pixel values [B, 3, S, S] that give [L, B, h, P].

A contender is prepared once (files are written into a folder, which may need torch and time) and opened from those files, by
the process that times all of them, and by one of its own that says how much memory it holds:

    python -m benchmarks.contenders "openvino int8" FOLDER B/16@224 --threads 2
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .peak import peak_memory
from .quiet import be_quiet, hushed
from .table import missing, skipped

Array = Any
Contender = Callable[[Array], Array]
HUGGING_FACE, IR, IR_INT8, ONNX, ONNX_INT8 = "hf", "model.xml", "int8.xml", "model.onnx", "int8.onnx"
#: Pictures that NNCF sees; here noise, as the pixels that are timed.
CALIBRATION = 8


def class_maps(vit: Any, size: Any) -> Contender:
    """The core's maps of the class token, of every block; it needs only the class token of the last block."""
    wanted = [(i, "class") for i in range(size.blocks)]

    def run(pixels: Array) -> Array:
        attentions = vit.forward(pixels, attention=wanted)["attentions"]
        return np.stack([attentions[i][:, :, 0, 1:] for i in range(size.blocks)])

    return run


def ours(model: Any, size: Any, precision: str) -> Contender:
    """The core on a CLIPVisionModel's own weights."""
    from qavit import _core

    from .models import core_weights, state_of

    return class_maps(_core.Vit(size.config, core_weights(state_of(model)), precision), size)


def open_ours(folder: Path, size: Any, threads: int, precision: str) -> Contender:
    """The core on the folder's weights."""
    from qavit import _core
    from qavit.checkpoints import open_model

    _core.set_num_threads(threads)
    return class_maps(_core.Vit(size.config, open_model(vision=folder / HUGGING_FACE).weights, precision), size)


def torch_model(folder: Path, attention: str, precision: str) -> Any:
    """Hugging Face's CLIPVisionModel of the folder."""
    import torch
    from transformers import CLIPVisionModel

    dtype = getattr(torch, precision)
    return CLIPVisionModel.from_pretrained(folder / HUGGING_FACE, attn_implementation=attention, dtype=dtype).eval()


def open_eager(folder: Path, size: Any, threads: int) -> Contender:
    """Hugging Face's own maps: eager attention, output_attentions=True."""
    import torch

    from .models import ClassMaps

    torch.set_num_threads(threads)
    maps = ClassMaps(torch_model(folder, "eager", "float32"))

    def run(pixels: Array) -> Array:
        with torch.inference_mode():
            return maps(torch.from_numpy(pixels)).numpy()

    return run


def open_sdpa(folder: Path, size: Any, threads: int, precision: str) -> Contender:
    """Fused attention, which gives no maps: the pooled output alone, for comparison."""
    import torch

    torch.set_num_threads(threads)
    model = torch_model(folder, "sdpa", precision)

    def run(pixels: Array) -> Array:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels).to(model.dtype)).pooler_output.float().numpy()

    return run


def prepare_openvino(model: Any, size: Any, folder: Path) -> None:
    """The traced model as OpenVINO's files."""
    import openvino as ov
    import torch

    from .models import ClassMaps

    model.set_attn_implementation("eager")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        example = torch.zeros(1, 3, size.image, size.image)
        converted = ov.convert_model(ClassMaps(model), example_input=example, input=[1, 3, size.image, size.image])
    ov.save_model(converted, folder / IR, compress_to_fp16=False)


def prepare_nncf(model: Any, size: Any, folder: Path) -> None:
    """The same, quantised by NNCF for transformers (SmoothQuant among it), calibrated with noise."""
    import nncf
    import openvino as ov

    rng = np.random.default_rng(1)
    pictures = [rng.standard_normal((1, 3, size.image, size.image), dtype=np.float32) for _ in range(CALIBRATION)]
    made = nncf.quantize(
        ov.Core().read_model(folder / IR), nncf.Dataset(pictures), model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATION,
    )  # fmt: skip
    ov.save_model(made, folder / IR_INT8, compress_to_fp16=False)


def open_openvino(folder: Path, size: Any, threads: int, file: str, hint: str) -> Contender:
    """OpenVINO's CPU plugin, tuned for latency; what is not int8 in `hint`'s precision."""
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    request = ov.Core().compile_model(str(folder / file), "CPU", settings).create_infer_request()

    def run(pixels: Array) -> Array:
        request.infer([pixels])
        return np.array(request.get_output_tensor(0).data)

    return run


def prepare_onnx(model: Any, size: Any, folder: Path) -> None:
    """The exported model."""
    import torch

    from .models import ClassMaps

    model.set_attn_implementation("eager")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        example, file = torch.zeros(1, 3, size.image, size.image), str(folder / ONNX)
        torch.onnx.export(ClassMaps(model), (example,), file, dynamo=False, opset_version=17, input_names=["x"])


def prepare_onnx_int8(model: Any, size: Any, folder: Path) -> None:
    """Its products with weights in int8, a scale a column; inputs' scales are found as it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        folder / ONNX, folder / ONNX_INT8, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
    )


def open_onnx(folder: Path, size: Any, threads: int, file: str) -> Contender:
    """ONNX Runtime's CPU provider, all optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])

    def run(pixels: Array) -> Array:
        return session.run(None, {"x": pixels})[0]

    return run


@dataclass(frozen=True)
class Side:
    """How a contender is opened, what of its files is written before, and the packages it needs."""

    open: Callable[..., Contender]
    prepare: tuple[Callable[..., None], ...] = ()
    packages: tuple[str, ...] = ()


SIDES: dict[str, Side] = {
    "qavit float32": Side(partial(open_ours, precision="float32")),
    "qavit bfloat16": Side(partial(open_ours, precision="bfloat16")),
    "qavit int8": Side(partial(open_ours, precision="int8")),
    "qavit int8_mixed": Side(partial(open_ours, precision="int8_mixed")),
    "openvino float32": Side(partial(open_openvino, file=IR, hint="f32"), (prepare_openvino,), ("openvino",)),
    "openvino bfloat16": Side(partial(open_openvino, file=IR, hint="bf16"), (prepare_openvino,), ("openvino",)),
    "openvino int8": Side(
        partial(open_openvino, file=IR_INT8, hint="bf16"), (prepare_openvino, prepare_nncf), ("openvino", "nncf")
    ),
    "onnxruntime": Side(partial(open_onnx, file=ONNX), (prepare_onnx,), ("onnx", "onnxruntime")),
    "onnxruntime int8": Side(partial(open_onnx, file=ONNX_INT8), (prepare_onnx, prepare_onnx_int8), ("onnx", "onnxruntime")),
    "torch eager": Side(open_eager),
    "torch sdpa (no maps)": Side(partial(open_sdpa, precision="float32")),
    "torch bfloat16 (no maps)": Side(partial(open_sdpa, precision="bfloat16")),
}


def prepare(names: list[str], model: Any, size: Any, folder: Path) -> dict[str, str]:
    """Write what the contenders are opened from; those that cannot be, each with a line that says why."""
    from qavit.models._devices import PRECISIONS

    model.save_pretrained(folder / HUGGING_FACE)
    lacking, done = {}, set()
    for name in names:
        maker, _, precision = name.partition(" ")
        if maker == "qavit" and precision not in PRECISIONS:
            lacking[name] = f"left out: {name}, which this qavit has not"
            continue
        lacks = missing(SIDES[name].packages)
        if lacks:
            lacking[name] = skipped(name, lacks)
            continue
        for write in SIDES[name].prepare:
            if write not in done:
                with hushed():
                    write(model, size, folder)
                done.add(write)
    return lacking


def main() -> None:
    from .sizes import SIZES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.contenders", description="peak memory of one contender")
    parser.add_argument("name", choices=list(SIDES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    be_quiet()
    size = SIZES[arguments.size]
    pixels = np.zeros((1, 3, size.image, size.image), np.float32)
    with hushed():
        run = SIDES[arguments.name].open(arguments.folder, size, arguments.threads)
        for _ in range(2):
            run(pixels)
    print(json.dumps({"peak": peak_memory()}))


if __name__ == "__main__":
    main()
