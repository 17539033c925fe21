#!/usr/bin/env bash
# Builds a wheel, installs it beside the libraries that LAVIS is used with (NumPy 1.x, transformers 4.26, tokenizers 0.13)
# in a second environment, and runs there the tests of what PnP-VQA scripts use. PYTHON: the interpreter, 3.10 or 3.11.
# BUILD_PYTHON: one of the same version that has what setup.py needs; without it, pip brings that for the one build.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
venv=$root/.venv-old
export PIP_DISABLE_PIP_VERSION_CHECK=1

if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))'; then
    echo "tokenizers 0.13 has no wheel for $("$python" --version); set PYTHON to a Python 3.10 or 3.11" >&2
    exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing the old libraries"
"$venv/bin/python" -m pip install -q --no-compile "numpy==1.23.5" "matplotlib==3.7.5" "tokenizers==0.13.3" "transformers==4.26.1" \
    "torch==2.13.0" "pytest>=7" PyYAML safetensors
echo "building the wheel"
if [ -n "${BUILD_PYTHON:-}" ]; then
    "$BUILD_PYTHON" -m pip wheel -q --no-build-isolation --no-deps -w "$work" "$root"
else
    "$venv/bin/python" -m pip wheel -q --no-deps -w "$work" "$root"
fi
# Without letting pip change any of the old libraries: what is missing beside them is an error.
"$venv/bin/python" -m pip install -q --force-reinstall --no-deps "$work"/qavit-*.whl
"$venv/bin/python" -m pip install -q tqdm lazy_loader
"$venv/bin/python" -m pip check
"$venv/bin/python" -c 'import numpy, tokenizers, transformers; print(numpy.__version__, tokenizers.__version__, transformers.__version__)'

# From a folder where only the installed package can be imported.
mkdir "$work/tests"
cp -r tests/data "$work/tests/"
cp qavit_config_example.yaml "$work/"
cp tests/small_models.py tests/test_lavis.py tests/test_usage.py tests/test_pnpvqa.py tests/test_config.py "$work/tests/"
printf '[pytest]\nfilterwarnings = error::qavit.QuestionBlindWarning\n' >"$work/pytest.ini"
cd "$work"
"$venv/bin/python" -m pytest -q tests
