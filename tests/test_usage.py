"""Every code block of the usage document (tests/data/usage.md), unchanged but for paths and devices."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qavit

DOCUMENT = Path(__file__).parent / "data" / "usage.md"
ROOT = Path(__file__).resolve().parent.parent


def read_blocks() -> dict[str, str]:
    """Heading -> the code under it."""
    found = re.findall(r"^#+ ([^\n]*)\n\n```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    return {heading: code.replace('"your_image.jpg"', '"picture.png"') for heading, code in found}


BLOCKS = read_blocks()
RUN = "2. 运行演示"
REAL = "3. 使用真实模型"
FORWARD = "1. 问题感知注意力生成"
STATISTICS = "3. 注意力分析"
MEMORY = "内存管理"
BATCH = "批处理支持"
EXTRACTOR = "自定义注意力提取"
SCALES = "多尺度注意力"


def test_the_document_has_the_blocks_that_are_tested():
    assert list(BLOCKS) == [RUN, REAL, FORWARD, STATISTICS, MEMORY, BATCH, EXTRACTOR, SCALES]


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict[str, Any]:
    """The names that blocks share, in a folder with a picture, with a LAVIS that has qavit's Config for its own."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    (tmp_path / "path/to/your").mkdir(parents=True)
    for name in ("picture.png", "path/to/your/image.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    lavis = {name: ModuleType(name) for name in ("lavis", "lavis.models", "lavis.common", "lavis.common.config")}
    lavis["lavis.models"].load_model = lambda *arguments: None
    lavis["lavis.common.config"].Config = qavit.Config
    for name, module in lavis.items():
        monkeypatch.setitem(sys.modules, name, module)
    return {}


def run(block: str, names: dict[str, Any], **changes: str) -> None:
    code = BLOCKS[block]
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, f"usage.md: {block}", "exec"), names)


@pytest.fixture(params=["numpy", "torch"])
def kind(request) -> SimpleNamespace:
    """How samples are made and stacked: NumPy alone, or torch."""
    if request.param == "numpy":
        return SimpleNamespace(make=np.asarray, stack=np.stack, type=np.ndarray, float32=np.dtype("float32"))
    torch = pytest.importorskip("torch")
    return SimpleNamespace(make=torch.from_numpy, stack=torch.stack, type=torch.Tensor, float32=torch.float32)


def make_samples(model: Any, kind: SimpleNamespace, count: int = 3) -> dict[str, Any]:
    size = model.qavit.image_size
    images = np.random.default_rng(5).standard_normal((count, 3, size, size)).astype(np.float32)
    questions = ["Where is the red star?", "What color is the circle?", "Is there a blue square on the left side?"]
    return {"image": kind.make(images), "text_input": questions[:count]}


def check_maps(maps: Any, kind: SimpleNamespace, count: int, patches: int) -> None:
    assert isinstance(maps, kind.type)
    assert maps.dtype == kind.float32
    assert tuple(maps.shape) == (count, patches)
    values = np.asarray(maps)
    assert (values >= 0).all()
    np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=1e-5)


def test_run_the_demo_and_its_statistics(names, tmp_path, capsys):
    run(RUN, names)
    result, results = names["result"], names["results"]
    assert result["attention_map"].shape == names["model"].qavit.grid
    assert [entry["question"] for entry in results] == [
        "Where is the car?", "What color is the building?", "Is there a person in the image?",
    ]  # fmt: skip
    drawn = sorted(path.name for path in (tmp_path / "results").iterdir())
    for kind in ("original", "heatmap", "overlay", "patches", "panels", "blocks", "questions"):
        assert any(kind in name for name in drawn), (kind, drawn)
    assert {path.name for entry in (result, *results) for path in entry["files"].values()} == set(drawn)
    names["attention_map"] = result["attention_map"]
    run(STATISTICS, names)
    printed = capsys.readouterr().out
    assert "熵值" in printed
    assert names["stats"] == result["statistics"]
    assert len(names["stats"]["top_patches"]) == 5


def test_statistics_are_what_they_are_called(names):
    demo = names["demo"] = qavit_demo().QAViTHeatmapDemo(qavit_demo().create_simple_demo_model())
    values = np.arange(12, dtype=np.float32)
    for form in (values, values.reshape(3, 4), values[None]):
        names["attention_map"] = form
        run(STATISTICS, names)
        assert names["stats"]["attention_mean"] == pytest.approx(5.5)
        assert names["stats"]["attention_std"] == pytest.approx(values.std())
        assert names["stats"]["attention_max"] == 11.0
        share = values[1:] / values.sum()
        assert names["stats"]["entropy"] == pytest.approx(-(share * np.log(share)).sum(), rel=1e-5)
        assert names["stats"]["top_patches"] == [11, 10, 9, 8, 7]
    with pytest.raises(ValueError, match="attention_map: expected one map"):
        demo.analyze_attention_statistics(np.ones((2, 3, 4)))


def qavit_demo() -> Any:
    import qavit_heatmap_demo

    return qavit_heatmap_demo


def test_use_a_real_model(names):
    pytest.importorskip("yaml")
    names["QAViTHeatmapDemo"] = qavit_demo().QAViTHeatmapDemo
    if not qavit.build_info()["cuda"]:
        with pytest.raises(RuntimeError, match=r"'cuda'.*no CUDA.*'cpu'"):
            run(REAL, names)
        assert names["config"].model.path == "demo"
    run(REAL, names, cuda="cpu")
    assert names["result"]["question"] == "What is the main object in the image?"
    assert names["result"]["files"] == {}


def test_forward_itm_as_an_override(names, kind):
    run(FORWARD, names)
    from qacap_vqa_fixed import PNPVQAWithQAViT

    class Written(PNPVQAWithQAViT):
        forward_itm = names["forward_itm"]

    written, built_in = Written(), PNPVQAWithQAViT()
    samples = make_samples(written, kind)
    maps = written.forward_itm(samples)
    check_maps(maps, kind, 3, built_in.qavit.grid[0] * built_in.qavit.grid[1])
    np.testing.assert_allclose(np.asarray(maps), np.asarray(built_in.forward_itm(samples)), atol=1e-6)
    np.testing.assert_allclose(np.asarray(maps), qavit.forward_itm(built_in.qavit, samples, block_num=7), atol=1e-6)
    assert not np.array_equal(np.asarray(maps), np.asarray(written.forward_itm(samples, block_num=11)))


def test_memory_options(names):
    from qacap_vqa_fixed import PNPVQAWithQAViT

    names.update(PNPVQAWithQAViT=PNPVQAWithQAViT, qavit_config=qavit.Config(path="demo"))
    run(MEMORY, names)
    assert names["model"].offload_model
    assert PNPVQAWithQAViT.from_config(names["qavit_config"]).gradient_checkpointing


def test_batches(names, kind):
    model = names["model"] = qavit_demo().create_simple_demo_model()
    images = make_samples(model, kind)["image"]
    names.update(torch=SimpleNamespace(stack=kind.stack), img1=images[0], img2=images[1], img3=images[2])
    run(BATCH, names)
    check_maps(names["attention_maps"], kind, 3, model.qavit.grid[0] * model.qavit.grid[1])


def test_an_extractor_of_ones_own(names, kind):
    from qacap_vqa_fixed import PNPVQAWithQAViT

    seen = []

    def process_attention(attentions: Any) -> Any:
        seen.append(attentions)
        patches = model.qavit.grid[0] * model.qavit.grid[1]
        return attentions[:, 0, 0, -patches:]

    names["process_attention"] = process_attention
    run(EXTRACTOR, names)

    class Own(PNPVQAWithQAViT):
        extract_qavit_attention = names["custom_attention_extractor"]

    model = Own()
    samples = make_samples(model, kind)
    maps = model.forward_itm(samples, block_num=9)
    assert isinstance(maps, kind.type)
    tokens = maps.shape[1] + 1
    question = model.encode_questions(samples["text_input"]).states.shape[1]
    assert tuple(seen[0].shape) == (3, model.qavit.num_heads, tokens, question + tokens)
    head = qavit.extract_attention(model.qavit, samples["image"], samples["text_input"], (9,), heads=0)[:, 0]
    np.testing.assert_allclose(np.asarray(maps) / np.asarray(maps).sum(1, keepdims=True), head, atol=1e-6)
    shown = qavit_demo().QAViTHeatmapDemo(model).demo_single_image("picture.png", "where?", block_num=9)
    assert shown["attention_map"].sum() < 1.0


def test_several_scales(names, kind):
    from qacap_vqa_fixed import PNPVQAWithQAViT

    names["torch"] = SimpleNamespace(stack=kind.stack)
    run(SCALES, names)

    class Written(PNPVQAWithQAViT):
        multi_scale_attention = names["multi_scale_attention"]

    written, built_in = Written(), PNPVQAWithQAViT()
    samples = make_samples(written, kind)

    def outputs() -> Any:
        return written.qavit_vision_model(
            pixel_values=samples["image"],
            instruct_states=written.encode_questions(samples["text_input"]),
            output_attentions=True,
        )

    with pytest.warns(qavit.QuestionBlindWarning, match="block 3"):
        maps = written.multi_scale_attention(outputs())
    assert isinstance(maps, kind.type)
    assert maps.shape[:2] == (3, 3)
    np.testing.assert_allclose(np.asarray(maps), np.asarray(built_in.multi_scale_attention(outputs())), atol=1e-6)
    with pytest.warns(qavit.QuestionBlindWarning):
        wanted = qavit.extract_attention(written.qavit, samples["image"], samples["text_input"], (3, 7, 11))
    np.testing.assert_allclose(np.asarray(maps), wanted.transpose(1, 0, 2), atol=1e-6)


@pytest.mark.skipif(not (ROOT / "qacap_vqa_fixed-stubs").is_dir(), reason="the stubs are not beside the tests")
@pytest.mark.parametrize("name", ["qacap_vqa_fixed", "qavit_heatmap_demo"])
def test_the_stubs_have_the_names_of_their_modules(name):
    # A module outside a package can't say that it is typed: type checkers look for a package of stubs.
    stub = ast.parse((ROOT / f"{name}-stubs" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {(node.module, alias.name) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    module = importlib.import_module(name)
    assert {named for _, named in imported} == set(module.__all__)
    for home, named in imported:
        assert getattr(importlib.import_module(home), named) is getattr(module, named)


def test_torch_is_not_imported_for_numpy_samples():
    code = (
        "import sys, numpy as np\n"
        "from qacap_vqa_fixed import PNPVQAWithQAViT\n"
        "model = PNPVQAWithQAViT()\n"
        "size = model.qavit.image_size\n"
        "maps = model.forward_itm({'image': np.zeros((1, 3, size, size), np.float32), 'text_input': ['where?']})\n"
        "assert type(maps) is np.ndarray\n"
        "loaded = {'torch', 'matplotlib', 'transformers', 'lavis'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
