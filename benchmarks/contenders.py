"""The same maps from each library: functions of pixel values [B, 3, S, S] that give [L, B, h, P]."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qavit import _core

from .models import ClassMaps, Size, core_weights, state_of

Array = Any
Contender = Callable[[Array], Array]


def ours(model: Any, size: Size, precision: str) -> Contender:
    """The core, class token's rows of every block; it needs only the class token of the last block."""
    vit = _core.Vit(size.config, core_weights(state_of(model)), precision)
    wanted = [(i, "class") for i in range(size.blocks)]

    def run(pixels: Array) -> Array:
        attentions = vit.forward(pixels, attention=wanted)["attentions"]
        return np.stack([attentions[i][:, :, 0, 1:] for i in range(size.blocks)])

    return run


def torch_eager(model: Any, size: Size) -> Contender:
    """Hugging Face's own maps: eager attention, output_attentions=True."""
    model.set_attn_implementation("eager")
    maps = ClassMaps(model)

    def run(pixels: Array) -> Array:
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            return maps(torch.from_numpy(pixels)).numpy()

    return run


def torch_sdpa(model: Any, size: Size, dtype: torch.dtype) -> Contender:
    """Fused attention, which gives no maps: the pooled output alone, for comparison."""
    import copy

    other = copy.deepcopy(model).to(dtype)
    other.set_attn_implementation("sdpa")

    def run(pixels: Array) -> Array:
        with torch.inference_mode():
            return other(torch.from_numpy(pixels).to(dtype)).pooler_output.float().numpy()

    return run


def openvino(model: Any, size: Size, precision: str, threads: int) -> Contender:
    """OpenVINO's CPU plugin, tuned for latency, on the traced model."""
    import openvino as ov

    model.set_attn_implementation("eager")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        example = torch.zeros(1, 3, size.image, size.image)
        converted = ov.convert_model(ClassMaps(model), example_input=example, input=[1, 3, size.image, size.image])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[precision]
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def run(pixels: Array) -> Array:
        request.infer([pixels])
        return np.array(request.get_output_tensor(0).data)

    return run


def onnx_runtime(model: Any, size: Size, threads: int) -> Contender:
    """ONNX Runtime's CPU provider, all optimisations, on the exported model."""
    import onnxruntime

    model.set_attn_implementation("eager")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            example = torch.zeros(1, 3, size.image, size.image)
            torch.onnx.export(ClassMaps(model), (example,), str(path), dynamo=False, opset_version=17, input_names=["x"])
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixels: Array) -> Array:
        return session.run(None, {"x": pixels})[0]

    return run
