"""Config: files, access by item and attribute, and every kind of configuration node."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import qavit
from qavit import Config
from qavit._base.config import to_mapping

ROOT = Path(__file__).resolve().parent.parent


def test_values_by_item_and_attribute():
    config = Config({"model": {"path": "demo", "blocks": [3, {"deep": 7}]}, "run": None}, seed=3)
    assert config.model.path == config["model"]["path"] == "demo"
    assert config.model.blocks[1].deep == 7
    assert config.run is None
    assert config.seed == 3
    assert list(config) == ["model", "run", "seed"]
    assert config.get("absent", 5) == 5
    assert config.to_dict() == {"model": {"path": "demo", "blocks": [3, {"deep": 7}]}, "run": None, "seed": 3}


def test_values_can_be_set_and_removed():
    given = {"model": {"path": "demo"}}
    config = Config(given)
    config.model.gradient_checkpointing = True
    config.more = {"nested": 1}
    assert config["model"]["gradient_checkpointing"] is True
    assert config.more.nested == 1
    del config.more
    assert "more" not in config
    with pytest.raises(AttributeError, match="more"):
        del config.more
    assert given == {"model": {"path": "demo"}}


def test_settings_are_shown_and_listed():
    config = Config({"model": {"path": "demo"}, "seed": 3})
    assert repr(config) == "Config({'model': {'path': 'demo'}, 'seed': 3})"
    assert {"model", "seed", "to_dict"} <= set(dir(config))
    del config["seed"]
    assert repr(config) == "Config({'model': {'path': 'demo'}})"
    with pytest.raises(TypeError, match=r"expected a name as key, got 3 \(int\)"):
        config[3] = 1


def test_an_unknown_name_is_named_with_a_guess():
    with pytest.raises(AttributeError, match=r"no 'modle'.*did you mean 'model'"):
        Config({"model": {}}).modle  # noqa: B018


def test_copies_and_pickles():
    config = Config({"model": {"path": "demo"}})
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        assert twin.model.path == "demo"
    twin = copy.deepcopy(config)
    twin.model.path = "other"
    assert config.model.path == "demo"


def test_yaml_and_json_files_give_the_same(tmp_path):
    pytest.importorskip("yaml")
    values = {"model": {"path": "demo", "block_num": 7, "offload_model": False}}
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.yaml").write_text("model:\n  path: demo\n  block_num: 7\n  offload_model: false\n")
    assert Config.from_file(tmp_path / "a.json") == Config.from_file(str(tmp_path / "a.yaml")) == Config(values)


def test_the_example_is_found_from_anywhere(tmp_path, monkeypatch):
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    config = Config.from_file("qavit_config_example.yaml")
    assert config.model.path == "demo"
    (tmp_path / "qavit_config_example.yaml").write_text("model: {path: mine}\n")
    assert Config.from_file("qavit_config_example.yaml").model.path == "mine"
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        Config.from_file("elsewhere/qavit_config_example.yaml")


def test_the_example_at_the_top_is_the_one_in_the_package():
    door = ROOT / "qavit_config_example.yaml"
    packaged = Path(qavit.__file__).parent / "lavis" / door.name
    assert door.read_text(encoding="utf-8") == packaged.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("absent.yaml", None, FileNotFoundError, "does not exist"),
        ("list.json", b"[1, 2]", ValueError, "mapping.*list"),
        ("broken.json", b"{", ValueError, "broken.json: not the JSON"),
        ("broken.yaml", b"a: [1", ValueError, "not YAML"),
        ("binary.yaml", b"\xff\xfe\x00", ValueError, "not YAML"),
        ("empty.yaml", b"", ValueError, "NoneType"),
        ("numbers.yaml", b"1: 2\n", ValueError, "expected names"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, error, message):
    if name.endswith(".yaml") and content is not None:
        pytest.importorskip("yaml")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        Config.from_file(path)


def test_a_folder_or_a_wrong_type_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        Config.from_file(tmp_path)
    with pytest.raises(TypeError, match="path: expected"):
        Config.from_file(3)


def test_without_pyyaml_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "a.yaml").write_text("model: {}\n")
    (tmp_path / "a.json").write_text('{"model": {}}')
    with pytest.raises(ImportError, match=r"qavit\[yaml\]"):
        Config.from_file(tmp_path / "a.yaml")
    assert Config.from_file(tmp_path / "a.json").model == {}


@dataclass
class Settings:
    path: str = "demo"
    block_num: int = 7


@pytest.mark.parametrize("kind", ["mapping", "config", "namespace", "dataclass", "omegaconf"])
def test_every_kind_of_node(kind):
    values = {"path": "demo", "block_num": 7}
    if kind == "omegaconf":
        omegaconf = pytest.importorskip("omegaconf")
        node = omegaconf.OmegaConf.create({"model": {**values, "block_num": "${n}"}, "n": 7}).model
    else:
        kinds = {"mapping": dict, "config": Config, "namespace": SimpleNamespace, "dataclass": Settings}
        node = kinds[kind](**values)
    assert to_mapping(node) == values
    assert Config(node).block_num == 7


def test_nodes_of_no_kind_are_refused():
    assert to_mapping(None) == {}
    for node in (3, "demo", [1], Settings, len):
        with pytest.raises(TypeError, match="config: expected a mapping"):
            to_mapping(node)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("deep.json", '{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("deep.yaml", "a: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("itself.yaml", "a: &a [*a]\n", "more than 100000 values"),
        (
            "laughs.yaml",
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)),
            "more than 100000 values",
        ),
        ("long.yaml", "a: 1\n" * 300_000, "longer than the 1048576 bytes"),
        ("number.yaml", 'a: !!float ""', "is not YAML"),
        ("date.yaml", "a: !!timestamp x", "is not YAML"),
        ("code.yaml", 'a: !!python/object/apply:os.system ["id"]', "is not YAML"),
        ("key.yaml", "1: 2", "expected names as keys"),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path, name, text, message):
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Config.from_file(path)
    assert name in str(error.value)
