"""How many instructions a fixed small forward pass takes: a change that doubles them does not go unseen."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# One thread, AVX2 (valgrind knows no AVX-512): 4 blocks of width 96 over 145 tokens, 0.18 GFLOP.
SCRIPT = """
import numpy as np
from qavit import _core
rng = np.random.default_rng(0)
D, F, T = 96, 384, 145
def normal(*shape):
    array = rng.standard_normal(shape, dtype=np.float32) * 0.1
    return (array, "float32", shape, 0)
weights = {"embeddings.class_embedding": normal(D), "embeddings.patch_embedding.weight": normal(D, 3, 8, 8),
           "embeddings.position_embedding.weight": normal(T, D)}
shapes = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (D, D), "self_attn.v_proj": (D, D),
          "self_attn.out_proj": (D, D), "mlp.fc1": (F, D), "mlp.fc2": (D, F), "layer_norm1": (D,), "layer_norm2": (D,)}
layers = {f"encoder.layers.{i}.{name}": shape for i in range(4) for name, shape in shapes.items()}
for name, shape in {**layers, "pre_layrnorm": (D,), "post_layernorm": (D,)}.items():
    weights[name + ".weight"], weights[name + ".bias"] = normal(*shape), normal(shape[0])
config = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": 4, "num_attention_heads": 3,
          "image_size": 96, "patch_size": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
vit = _core.Vit(config, weights, "float32", "")
vit.forward(normal(1, 3, 96, 96)[0], attention=[(i, "class") for i in range(4)], outputs=("last",))
"""
OBSERVED = 27  # million instructions


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the count is of x86-64 instructions")
def test_forward_takes_no_more_instructions_than_it_did(tmp_path: Path) -> None:
    environment = {**os.environ, "QAVIT_CPU": "avx2", "QAVIT_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=qv_vit_forward"]
    command += [f"--callgrind-out-file={tmp_path / 'callgrind.out'}", sys.executable, "-S", "-c", SCRIPT]
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *(p for p in sys.path if p)])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counted = re.search(r"Collected : (\d+)", done.stderr)
    assert counted is not None, done.stderr[-2000:]
    millions = int(counted.group(1)) / 1e6
    if millions == 0:
        pytest.skip("the core was built without symbols")
    assert millions < 1.6 * OBSERVED
    assert millions > 0.4 * OBSERVED, "far fewer than before: set OBSERVED to what it is now"
