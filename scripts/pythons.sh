#!/usr/bin/env bash
# For each Python that is named (python3.12, a path): builds a wheel, installs it with its extras in an environment of its own,
# build/pythons/VERSION, and runs there, from a folder where only the installed package can be imported, the tests that what is
# there allows: without torch, transformers and safetensors those that compare with them are left out. NUMPY says which NumPy ("numpy==1.23.5"),
# QAVIT_SITE=1 lets the environment see the system's packages (a distribution's torch), TESTS which files of tests/ to run
# ("test_*.py" for all), WORKERS how many at once.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
export PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/usr/lib/ccache:$PATH
usual="test_core_runtime.py test_ops.py test_vit.py test_blip.py test_decoder.py test_heatmaps.py test_images.py test_text.py
    test_result_files.py test_cli.py test_serve.py test_processes.py test_pythons.py test_system.py
    test_threads.py test_core_safety.py test_writers.py test_generation.py test_naflex.py test_picture_cache.py test_picture_folder.py"
[ $# -gt 0 ] || { echo "which Pythons? scripts/pythons.sh python3.10 python3.13 ..." >&2; exit 2; }

try() {
    local python=$1 version venv place
    version=$("$python" -c 'import sys, sysconfig; print("%d.%d" % sys.version_info[:2] + "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED")))')
    venv=$root/build/pythons/$version place=$root/build/pythons/$version-tests
    echo "== $("$python" --version) ($version)"
    [ -x "$venv/bin/python" ] || "$python" -m venv ${QAVIT_SITE:+--system-site-packages} "$venv"
    rm -rf "$place"
    mkdir -p "$place/wheel" "$place/tests"
    "$venv/bin/python" -m pip install -q "setuptools>=77" wheel "numpy>=2.0" scipy-openblas32
    "$venv/bin/python" -m pip wheel -q --no-build-isolation --no-deps -w "$place/wheel" "$root"
    # The ops by themselves, which no wheel holds.
    QAVIT_TESTING=1 "$venv/bin/python" setup.py -q build_ext --build-temp "$place/temp" --build-lib "$place/lib"
    "$venv/bin/python" -m pip install -q --force-reinstall --no-deps "$place"/wheel/*.whl
    "$venv/bin/python" -m pip install -q --no-compile "$(echo "$place"/wheel/*.whl)[data,completion,yaml,metrics,serve]" "${NUMPY:-numpy}" \
        pytest pytest-xdist hypothesis
    "$venv/bin/python" -m pip install -q --only-binary=:all: safetensors 2>/dev/null || echo "safetensors has no wheel for this Python"
    "$venv/bin/python" -m pip check || [ -n "${QAVIT_SITE:-}" ] # where the system's own packages may not agree
    cp "$place"/lib/qavit/_core_testing* "$(cd "$place" && "$venv/bin/python" -c 'import qavit; print(*qavit.__path__)')/"
    (cd "$place" && env -u PYTHONPATH "$venv/bin/qavit" demo -o "$place/demo")
    cp -r tests/data tests/core "$place/tests/"
    cp -r benchmarks "$place/"
    cp tests/*.py "$place/tests/"
    mkdir "$place/qavit"  # with pictures for tests alone; Python passes over a folder without modules
    cp -r qavit/demo_model "$place/qavit/"
    cp qavit_config_example.yaml "$place/"
    printf '[pytest]\naddopts = -q --strict-markers -m "not nightly"\nmarkers =\n    nightly: takes long\n    every_level: parity\nfilterwarnings = error::qavit.QuestionBlindWarning\n' \
        >"$place/pytest.ini"
    cd "$place"
    "$venv/bin/python" - <<'SEEN'
import importlib.util, platform
import numpy, qavit
has = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
print(platform.python_version(), "numpy", numpy.__version__, *has, qavit.build_info()["cpu_features"])
SEEN
    local files=()
    mapfile -t files < <("$venv/bin/python" - ${TESTS:-$usual} <<'FILES'
import importlib.util, re, sys
from glob import glob

needs = [name for name in ("torch", "transformers", "safetensors") if not importlib.util.find_spec(name)]
for name in sorted(path for pattern in sys.argv[1:] for path in glob(f"tests/{pattern}")):
    with open(name, encoding="utf-8") as file:
        text = file.read()
    if not needs or not re.search(rf"^(?:import|from) (?:{'|'.join(needs)})\b", text, re.MULTILINE):
        print(name)
FILES
)
    env -u PYTHONPATH "$venv/bin/python" -m pytest -n "${WORKERS:-2}" --dist worksteal "${files[@]}"
    cd "$root"
}

for python in "$@"; do
    try "$python"
done
