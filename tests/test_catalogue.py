"""The families that are known: the table of docs/MODELS.md, `qavit models`, and what `qavit info` says a model can do."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_matchers as matchers
import torch
from test_blip_vqa import answering

import qavit
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.models._capabilities import Capabilities
from qavit.models._catalogue import catalogue, catalogue_markdown, family_of, refused
from qavit.models._load import MODELS

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden"
OFFICIAL = GOLDEN / "qavit_official_late"


def test_every_kind_of_model_is_in_one_family() -> None:
    assert {kind for family in catalogue() for kind in family["kinds"]} == set(MODELS)


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documents are not beside the tests")
def test_the_document_has_the_table() -> None:
    text = (ROOT / "docs" / "MODELS.md").read_text(encoding="utf-8")
    table = text.split("<!-- families -->\n")[1].split("\n<!-- /families -->")[0]
    assert table == catalogue_markdown(), "put what `qavit models --markdown` prints between docs/MODELS.md's marks"


def load_blip() -> Any:
    cases = json.loads((GOLDEN / "blip_itm" / "cases.json").read_text())
    return qavit.load(
        checkpoint=GOLDEN / "blip_itm" / "checkpoint.pth", tokenizer=GOLDEN / "blip_itm" / "vocab.txt", image_size=32,
        config={"text": cases["med_config"], "vision": cases["vit"]},
    )  # fmt: skip


def load_blip_vqa() -> Any:
    folder = Path(tempfile.mkdtemp())
    answering(1, folder)
    model = qavit.load(folder)
    shutil.rmtree(folder)
    return model


LOAD: dict[str, Callable[[], Any]] = {
    "qavit": lambda: qavit.load(checkpoint=OFFICIAL / "checkpoint.pth", vision=OFFICIAL / "clip", text=OFFICIAL / "t5"),
    "clip": lambda: qavit.load(vision=GOLDEN / "qavit_official_late" / "clip"),
    "clip with texts": lambda: qavit.load(GOLDEN / "methods_clip"),
    "blip_itm": load_blip,
    "blip_vqa": load_blip_vqa,
    "albef": lambda: matchers.load("albef_itm"),
    "blip2_itm": lambda: matchers.load("blip2_itm"),
    "reader": lambda: qavit.load(reader=GOLDEN / "unifiedqa_fid"),
}


@pytest.mark.parametrize("kind", LOAD)
def test_a_family_says_what_its_models_can(kind: str) -> None:
    model = LOAD[kind]()
    family = family_of(model.kind, kind != "clip")
    assert model.kind == kind.split()[0]
    assert tuple(family["methods"]) == model.methods
    own = {call for call in Capabilities.HAVE if getattr(type(model), call) is not getattr(Capabilities, call)}
    assert set(family["calls"]) <= own


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["models"]) == cli_options.OK
    text = capsys.readouterr().out
    assert "BLIP-2 image-text matching (kind blip2_itm)\n  loads           LAVIS checkpoints with or without" in text
    assert "Segment Anything" in text
    assert cli_main.main(["models", "--json"]) == cli_options.OK
    assert json.loads(capsys.readouterr().out) == {"families": catalogue(), "refused": refused()}
    assert cli_main.main(["models", "--markdown"]) == cli_options.OK
    assert capsys.readouterr().out == catalogue_markdown() + "\n"


def test_info_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, config = GOLDEN / "blip2_itm" / "checkpoint.pth", json.dumps(matchers.settings("blip2_itm"))
    assert cli_main.main(["info", str(file), "--config", config]) == cli_options.OK
    text = capsys.readouterr().out
    assert "checkpoint.pth: BLIP-2 image-text matching (Q-Former)" in text
    assert "methods     gradcam\ncalls       forward_itm, itm, itc, gradcam_tokens\n" in text
    assert cli_main.main(["info", "--checkpoint", str(file), "--config", config, "--json"]) == cli_options.OK
    about = json.loads(capsys.readouterr().out)
    assert (about["architecture"], about["methods"], about["calls"][1]) == ("blip2_itm", ["gradcam"], "itm")
    assert cli_main.main(["info", str(file), "--checkpoint", str(file)]) == cli_options.USAGE
    assert "give a file once" in capsys.readouterr().err
    torch.save({"mask_decoder.iou_token.weight": torch.zeros(1, 4)}, tmp_path / "sam.pth")
    assert cli_main.main(["info", str(tmp_path / "sam.pth")]) == cli_options.SOME_FAILED
    assert "it holds Segment Anything" in capsys.readouterr().err
