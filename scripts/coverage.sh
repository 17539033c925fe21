#!/usr/bin/env bash
# Builds the core with gcov counters into build/coverage and measures which lines of csrc/ and qavit/ the tests run:
# scripts/coverage.sh [PYTEST ARGUMENT...]. Needs the packages coverage and gcovr. Reports are left in out/coverage.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
folder=$root/build/coverage
mkdir -p "$folder" out/coverage
echo "building with gcov counters"
QAVIT_COVERAGE=1 "$python" setup.py -q build_ext --build-temp "$folder/temp" --build-lib "$folder/lib" \
    >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
find qavit -type f ! -name '*.so' ! -path '*/.libs/*' ! -name '*.pyc' -exec cp --parents {} "$folder/lib" \;
find "$folder/temp" -name '*.gcda' -delete
[ $# -gt 0 ] || set -- -m "not full_size" -k "not failed_allocation"
# Tests start processes of their own, which count too.
cat >out/coverage/settings <<SETTINGS
[run]
source_pkgs = qavit
parallel = true
sigterm = true
data_file = $root/out/coverage/data
[paths]
source =
    qavit
    build/coverage/lib/qavit
SETTINGS
export COVERAGE_PROCESS_START=$root/out/coverage/settings PYTEST_ADDOPTS="-p no:cacheprovider -o \"pythonpath='$folder/lib'\""
export PYTHONPATH=$folder/lib:$root/out/coverage
echo "import coverage; coverage.process_startup()" >out/coverage/sitecustomize.py
rm -f out/coverage/data*
status=0
"$python" -m pytest "$@" || status=$?
"$python" -m coverage combine -q --rcfile out/coverage/settings || true
"$python" -m coverage report --rcfile out/coverage/settings --skip-covered --sort=cover | tee out/coverage/python.txt
"$python" -m gcovr --root "$root" --filter 'csrc/' --object-directory "$folder/temp" --exclude-throw-branches \
    --txt out/coverage/c.txt --txt-summary
exit $status
