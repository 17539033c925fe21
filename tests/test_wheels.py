"""For which systems and Pythons wheels are made: what cibuildwheel and CI are told, held against what is promised."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
#: Each runner of CI, and what its wheels are for, as cibuildwheel calls it.
RUNNERS = {
    "ubuntu-24.04": ("linux", {"manylinux_x86_64", "musllinux_x86_64"}),
    "ubuntu-24.04-arm": ("linux", {"manylinux_aarch64", "musllinux_aarch64"}),
    "macos-15-intel": ("macos", {"macosx_x86_64"}),
    "macos-15": ("macos", {"macosx_arm64"}),
    "windows-2022": ("windows", {"win_amd64"}),
}
SYSTEMS = {"linux": "POSIX :: Linux", "macos": "MacOS", "windows": "Microsoft :: Windows"}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the sources are not beside the tests")


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def promised() -> list[str]:
    """Pythons that the metadata names: "3.10", ..."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def workflow() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    jobs: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    return jobs


def test_every_python_that_is_promised_has_its_wheels() -> None:
    build = settings()["tool"]["cibuildwheel"]["build"]
    assert [each for each in build if "t-" not in each] == [f"cp{version.replace('.', '')}-*" for version in promised()]
    assert promised()[0] == settings()["project"]["requires-python"].removeprefix(">=")


def test_a_python_without_a_global_lock_is_promised_by_its_wheels() -> None:
    build, classifiers = settings()["tool"]["cibuildwheel"]["build"], settings()["project"]["classifiers"]
    free = [each for each in build if "t-" in each]
    assert bool(free) == any("Free Threading" in each for each in classifiers)
    assert free == [f"cp{promised()[-1].replace('.', '')}t-*"], "tokenizers has none for older ones"


def test_every_system_has_its_wheels_and_is_promised() -> None:
    assert workflow()["wheels"]["strategy"]["matrix"]["os"] == list(RUNNERS)
    project, wheels = settings()["project"], settings()["tool"]["cibuildwheel"]
    classifiers = set(re.findall(r"Operating System :: ([^\n]+)", "\n".join(project["classifiers"])))
    assert classifiers == set(SYSTEMS.values())
    assert {name for name in wheels if isinstance(wheels[name], dict)} == set(SYSTEMS)
    for name in SYSTEMS:
        # OpenBLAS lies in the package already; a repair that brings it again would load it twice.
        assert re.search(r"--exclude '?libscipy_openblas", wheels[name]["repair-wheel-command"])
    for kind in ("manylinux", "musllinux"):
        assert {f"{kind}-{machine}-image" for machine in ("x86_64", "aarch64")} <= wheels["linux"].keys()
    assert (ROOT / wheels["windows"]["environment"]["DIST_EXTRA_CONFIG"]).is_file()


def test_what_tries_a_wheel_is_there() -> None:
    command = " ".join(settings()["tool"]["cibuildwheel"]["test-command"])
    files = re.findall(r"tests/\w+\.py", command)
    assert files
    for file in files:
        assert (ROOT / file).is_file(), file
        assert "import torch\n" not in (ROOT / file).read_text(encoding="utf-8"), f"{file}: no wheel is tried beside torch"


def test_pythons_of_ci_are_promised() -> None:
    ran = {each["python"] for each in workflow()["check"]["strategy"]["matrix"]["include"]}
    assert ran <= {*promised(), f"{promised()[-1]}t"}
    assert {promised()[0], promised()[-1]} <= ran


@pytest.mark.nightly
@pytest.mark.parametrize(("platform", "wanted"), RUNNERS.values(), ids=RUNNERS)
def test_cibuildwheel_reads_its_settings_so(platform: str, wanted: set[str]) -> None:
    pytest.importorskip("cibuildwheel")
    machine = "AMD64" if platform == "windows" else next(iter(wanted)).partition("_")[2]
    command = [sys.executable, "-m", "cibuildwheel", "--platform", platform, "--archs", machine, "--print-build-identifiers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tags = [f"cp{version.replace('.', '')}" for version in promised()]
    found = set(done.stdout.split())
    assert {f"{tag}-{system}" for tag in tags for system in wanted} <= found
    assert {name.partition("-")[2] for name in found} == wanted
