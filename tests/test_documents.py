"""The code of README.md and docs/, run as it stands there: small models and drawn pictures lie under the names it uses."""

from __future__ import annotations

import glob
import json
import re
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_models import GOLDEN

import qavit
import qavit.data
from qavit.checkpoints._positions import WAYS
from qavit.cli import _main as cli_main
from qavit.heatmaps._packages import PACKAGES

ROOT = Path(__file__).parent.parent
LATE, BLIP = GOLDEN / "qavit_official_late", GOLDEN / "blip_itm"


def python(document: str) -> list[str]:
    """The Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


def commands(document: str, verb: str) -> list[list[str]]:
    """Arguments of the indented `qavit VERB` lines of a document, and of those in the middle of a sentence."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(rf"^    qavit ({verb} .*)$|`qavit ({verb} [^`]*)`", text, re.M)
    return [shlex.split(one or other) for one, other in found]


def run(code: str, names: dict[str, Any], changes: dict[str, str] | None = None) -> None:
    for old, new in (changes or {}).items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "document", "exec"), names)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with what the documents mention."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    (tmp_path / "val2014").mkdir()
    for name in ("picture.jpg", "street.jpg", "cat.jpg", "scene.png", "val2014/COCO_val2014_000000000042.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    shutil.copy(LATE / "checkpoint.pth", "qavit-base2.pth")
    shutil.copytree(LATE / "clip", "clip-vit-large-patch14-336")
    shutil.copytree(LATE / "clip", "clip-vit-base-patch16")
    shutil.copytree(LATE / "t5", "flan-t5-base")
    shutil.copy(BLIP / "checkpoint.pth", "model_large_retrieval_coco_train2014.pth")
    shutil.copy(BLIP / "vocab.txt", "vocab.txt")
    asked = [{"image_id": 42, "question": "where is the car?", "question_id": 42000}]
    Path("v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    return tmp_path


def test_readme(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    five_lines, by_name, three_files = python("README.md")
    names: dict[str, Any] = {}
    run(five_lines, names)
    assert names["result"].maps.shape == (3, *names["model"].grid)
    assert Image.open("heatmaps.png").width > 1000
    warnings.simplefilter("ignore", qavit.QavitWarning)  # small random models know few words
    kinds = ("clip", "blip_vqa", "blip_itm", "blip_caption", "reader")
    made = {kind: f"**qavit.stand_in_weights({kind!r})" for kind in kinds}
    hub = {'"hf://openai/clip-vit-base-patch16"': made["clip"], '"hf://Salesforce/blip-vqa-base"': made["blip_vqa"]}
    run(by_name, names, hub)
    assert Image.open("where.png").width > 500
    assert Image.open("why.png").width > 500
    files = {
        'checkpoint="model_large_retrieval_coco_train2014.pth", tokenizer="vocab.txt"': made["blip_itm"],
        'checkpoint="model_large_caption_coco_train2014.pth", tokenizer="vocab.txt"': made["blip_caption"],
        'reader="unifiedqa-v2-t5-large-1363200/"': made["reader"],
        '"what color is the car?")': '"what color is the car?", num_captions=9)',
    }
    run(three_files, names, files)
    assert len(names["found"].captions) == 9
    assert Image.open("answer.png").width > 1000
    assert capsys.readouterr().out


def test_usage(place: Path) -> None:
    public_weights, _, pnp_vqa, batch, texts, stream, numbers = python("docs/USAGE.md")
    names: dict[str, Any] = {}
    # The model that stands in has six blocks.
    run(public_weights, names, {"blocks=(13, 18, 23)": "blocks=(4, 5)"})
    assert names["maps"].shape == (1, 2, 25)
    size = names["model"].image_size
    names.update(images=np.zeros((1, 3, size, size), np.float32), questions=["where is the car?"])
    run(batch, names, {"block_num=18": "block_num=5"})
    assert names["maps"].shape == (1, 25)
    run(stream, names)
    assert qavit.HeatmapResult.load("cat.jpg.npz").questions == ["where is the car?"]
    pytest.importorskip("pandas")
    run(numbers, names)
    assert Path("page.html").stat().st_size > 10_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qavit.QuestionBlindWarning)
        assert qavit.load(vision="clip-vit-base-patch16/").heatmaps("cat.jpg").maps.shape == (1, 5, 5)
    own: dict[str, Any] = {"qavit": qavit}
    run(texts, own, {'"clip-vit-base-patch16/"': repr(str(GOLDEN / "methods_clip"))})
    assert own["cats"].shape == (2, own["model"].embedding_dim)
    assert own["result"].maps.shape == (2, 6, 6)
    torch = pytest.importorskip("torch")
    from test_lavis import PnpVqa

    facts = json.loads((BLIP / "cases.json").read_text())
    model = names["pnp_vqa_model"] = PnpVqa()
    names["config"] = {"text": facts["med_config"], "vision": facts["vit"]}
    run(pnp_vqa, names, {'tokenizer="vocab.txt")': 'tokenizer="vocab.txt", config=config)'})
    answers, maps = model.predict_answers({"image": torch.rand(1, 3, 384, 384), "text_input": ["where is it?"]})
    assert answers == ["20 patches"]
    assert tuple(maps.shape) == (1, 576)


TRANSLATED = ("README.md", "docs/USAGE.md", "docs/PNP_VQA.md")


@pytest.mark.parametrize("document", TRANSLATED)
def test_both_languages_say_the_same(document: str) -> None:
    """Code and structure are equal, and what is linked to is there."""
    other = document.replace("docs/", "docs/zh/") if "/" in document else document.replace(".md", ".zh.md")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in (document, other)]
    for pattern in (r"^```\w*\n.*?^```$", r"^    \S.*$", r"^#+(?= )"):
        here, there = (re.findall(pattern, text, re.M | re.S if "`" in pattern else re.M) for text in texts)
        assert here == there
        assert here or pattern.startswith("^    ")
    tables = [re.findall(r"^\|.*\|$", text, re.M) for text in texts]
    assert len(tables[0]) == len(tables[1])
    for row, translated in zip(*tables):
        # a line's first cell of code is the same line; what stands in place of it is, too, where it is code alone
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", one)[1:-1]] for one in (row, translated)]
        for mine, theirs in zip(*cells):
            if re.fullmatch(r"\**`[^`]*`\**", mine):
                assert theirs.strip("*") == mine.strip("*")
    for name, text in zip((document, other), texts):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), (name, target)


def test_every_line_of_their_document_has_one_here() -> None:
    table = (ROOT / "docs" / "USAGE.md").read_text(encoding="utf-8").split("## Public QA-ViT")[0]
    theirs = (ROOT / "tests" / "data" / "usage.md").read_text(encoding="utf-8")
    imported = re.findall(r"^(?:from|import) .*$", theirs, re.M)
    called = set(re.findall(r"\b(?:demo|model|self|Config|PNPVQAWithQAViT)\.(\w+)\(", theirs))
    assert imported
    assert called
    assert not [line for line in imported if line.split(" import ")[-1].split(",")[0] not in table]
    assert not sorted(name for name in called if name not in table)


def write_three_models(place: Path) -> None:
    """LAVIS's file of PnP-VQA with the public code's small models, whose sizes no shape tells."""
    import yaml

    text = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "ANSWERS.md").read_text(encoding="utf-8"), re.M | re.S)[0]
    settings: Any = yaml.safe_load(text)
    for name, folder in (("image_question_matching_model", "blip_itm"), ("image_captioning_model", "blip_caption")):
        facts = json.loads((GOLDEN / folder / "cases.json").read_text())
        block = settings["model"][name]
        shutil.copytree(GOLDEN / folder, place / folder)
        del block["vit_type"]  # large
        block.update(
            finetuned=f"{folder}/checkpoint.pth", config={"text": facts["med_config"], "vision": facts["vit"]}
        )
    settings["model"]["question_answering_model"]["pretrained"] = str(GOLDEN / "unifiedqa_fid")
    (place / "pnp_vqa.yaml").write_text(yaml.safe_dump(settings))


def test_answers_document(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("yaml")
    pytest.importorskip("pyarrow")
    write_three_models(place)
    names: dict[str, Any] = {}
    (bundled,) = python("docs/ANSWERS.md")
    run(bundled, names)
    assert len(capsys.readouterr().out.splitlines()) == 3
    answered: dict[str, Any] = {"qavit": qavit}
    run(python("docs/USAGE.md")[1], answered, {'"what color is the car?")': '"what color is the car?", num_captions=9)'})
    assert Image.open(answered["found"].save("why.png")).width > 1000
    few = ["--answering", "num_captions=5"]
    (ask, *_), (data_set, _), (score, *_) = (commands("docs/ANSWERS.md", verb) for verb in ("ask", "run", "score"))
    assert cli_main.main([*ask, *few]) == 0
    answer = capsys.readouterr().out
    data_set = [one for one in data_set if one not in ("--workers", "2")]
    assert cli_main.main([*data_set, *few]) == 0
    (row,) = json.loads(Path("val.json").read_text())
    assert row["question_id"] == 42000
    (stored,) = qavit.data.read_maps("val")
    assert stored.answer == row["answer"]
    assert len(stored.captions) == 5
    people = [{"answer": row["answer"] or "none", "answer_id": number} for number in range(10)]
    truth = {"annotations": [{"question_id": 42000, "answer_type": "other", "question_type": "what", "answers": people}]}
    Path("v2_mscoco_val2014_annotations.json").write_text(json.dumps(truth))
    capsys.readouterr()
    assert cli_main.main(score) == 0
    assert capsys.readouterr().out.startswith("VQAv2 accuracy")
    assert answer


def test_commands_of_the_readme(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    (convert, *_), (heatmap, *_) = commands("docs/USAGE.md", "convert"), commands("README.md", "heatmap")
    (data_set,) = (one for one in commands("README.md", "run") if "..." not in one)
    assert cli_main.main(convert) == 0
    model = qavit.load("qavit-base2/")
    assert isinstance(model, qavit.QAViT)
    assert model.integrated == (3, 4, 5)
    pictures = sorted(glob.glob(heatmap[1]))
    assert cli_main.main([heatmap[0], *pictures, *heatmap[2:]]) == 0
    for picture in pictures:
        assert {path.suffix for path in Path("out").glob(f"{Path(picture).stem}*")} >= {".png", ".npz", ".html"}
    assert commands("docs/SCALE.md", "run")[0] == data_set
    assert cli_main.main(data_set) == 0
    names: dict[str, Any] = {"samples": {"question_id": [42000]}}
    run(python("docs/SCALE.md")[0], names)
    assert "where is the car? (5, 5)" in capsys.readouterr().out
    assert len(names["ids"]) == len(names["maps"]) == 1
    assert names["samples"]["gradcams"].shape == (1, 25)


def test_demo_model_document(place: Path) -> None:
    (code,) = python("docs/DEMO_MODEL.md")
    names: dict[str, Any] = {}
    run(code, names)
    assert names["result"].maps.shape == (2, 12, 12)


def test_pnp_vqa_document(place: Path) -> None:
    pytest.importorskip("yaml")
    torch = pytest.importorskip("torch")
    from test_lavis import PnpVqa

    # What the first and the third need of LAVIS itself is in tests/test_lavis.py.
    _, question_aware, _, scripts = python("docs/PNP_VQA.md")
    names: dict[str, Any] = {"qavit": qavit, "model": PnpVqa()}
    run("import qavit.lavis\n" + question_aware, names, {"block_num=18": "block_num=5"})
    samples = {"image": torch.rand(1, 3, 384, 384), "text_input": ["where is it?"]}
    assert tuple(names["model"].forward_itm(samples)["gradcams"].shape) == (1, 576)
    size = qavit.load("demo").image_size
    names = {"images": np.zeros((1, 3, size, size), np.float32), "questions": ["where is the star?"]}
    run(scripts, names)
    assert names["maps"].shape == (1, 144)
    assert len(list(Path("results").iterdir())) == 6


def test_methods_document(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(GOLDEN / "methods_clip")
    code, of_heads = python("docs/METHODS.md")
    names: dict[str, Any] = {"qavit": qavit}
    run(code, names, {"clip-vit-base-patch16/": clip})
    assert names["result"].method == "gem"
    run(of_heads, names)
    assert names["result"].head_maps.shape == (1, names["model"].num_heads, *names["model"].grid)
    assert Path("heads.png").stat().st_size > 3000
    text = (ROOT / "docs" / "METHODS.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \| .* \|$", text.split("## What each does")[1].split("## What a map")[0], re.M)
    assert set(names["model"].methods) <= set(named)
    assert set(re.findall(r'`"(\w+)"`', text.split("The figure.")[1])) == set(PACKAGES)
    assert set(re.findall(r"^  \| `(\w+)`", text, re.M)) <= set(WAYS)
    rows = [json.loads(line) for line in re.findall(r"^    (\{.*\})$", text, re.M)]
    Path("boxes.jsonl").write_text("".join(json.dumps({**row, "bbox": [7, 3, 25, 29]}) + "\n" for row in rows))
    shutil.copy("cat.jpg", rows[0]["image"])
    Path("questions.jsonl").write_text(json.dumps({"image": rows[0]["image"], "question": rows[0]["text"]}) + "\n")
    for command, said in zip(commands("docs/METHODS.md", "eval"), ("gem", "rank correlation, mean"), strict=True):
        assert cli_main.main([clip if word == "clip-vit-base-patch16/" else word for word in command]) == 0
        assert said in capsys.readouterr().out


def test_the_map_of_the_code_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:csrc|qavit|tests|docs|training|benchmarks|fuzz|notebooks)/[\w./]+|\.\w+/[\w./]+)`", text))
    assert len(named) > 40
    assert not sorted(name for name in named if not (ROOT / name).exists())
    rooms = {f"qavit/{path.parent.name}" for path in (ROOT / "qavit").glob("*/__init__.py")}
    folders = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    assert not sorted((rooms | folders) - named)
