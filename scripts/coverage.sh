#!/usr/bin/env bash
# Measures which lines of csrc/ and qavit/ the tests run: scripts/coverage.sh [PYTEST ARGUMENT...]. A copy of the checkout in
# build/coverage/tree is built with gcov counters and the failing allocator, and the tests run there, so that the processes
# that they start count too. Needs the packages coverage (7.13 or later) and gcovr. Reports are left in out/coverage.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
folder=$root/build/coverage
tree=$folder/tree
reports=$root/out/coverage
rm -rf "$tree" "$reports"
mkdir -p "$tree" "$reports"
tar -c --exclude='*.so' --exclude=.libs --exclude=__pycache__ --exclude=runs --exclude=results \
    csrc qavit tests scripts fuzz benchmarks notebooks docs training .ci .github ./*-stubs \
    ./*.py ./*.toml ./*.md ./*.yaml Makefile MANIFEST.in LICENSE |
    tar -x -C "$tree"
cd "$tree"
echo "building with gcov counters"
QAVIT_COVERAGE=1 QAVIT_DEBUG=1 "$python" setup.py -q build_ext --inplace --build-temp "$folder/temp" \
    >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
find "$folder/temp" -name '*.gcda' -delete
cat >"$reports/settings" <<SETTINGS
[run]
source_pkgs = qavit
parallel = true
sigterm = true
patch = _exit
data_file = $reports/data
SETTINGS
export COVERAGE_PROCESS_START=$reports/settings
status=0
tests() { "$python" -m pytest -p no:cacheprovider "$@"; }
if [ $# -gt 0 ]; then
    tests "$@" || status=$?
else
    # Left out: what is left to the night anyway; the demo model's accuracy, which unoptimised kernels make slow; what counts
    # milliseconds, leaks or instructions or compiles a core of its own; processes that end under a limit on the size
    # of files, which would cut the counters short; and children forked beside threads, which wait for a lock of coverage's.
    mapfile -t files < <(printf '%s\n' tests/test_*.py | grep -vE '_(cross|demo_model|instructions|leaks)\.py$')
    half() { tests -k "not full_disk and not 200_ms and not forked_children_use and not children_forked" "$@"; }
    # Two processes of pytest's own, and not its workers: one that has threads is ended there without its counters.
    mapfile -t first < <(printf '%s\n' "${files[@]}" | awk 'NR % 2')
    mapfile -t second < <(printf '%s\n' "${files[@]}" | awk 'NR % 2 == 0')
    half "${first[@]}" >"$reports/first.log" 2>&1 &
    half "${second[@]}" || status=$?
    wait $! || status=$?
    cat "$reports/first.log"
    # The kernels of lesser CPUs, and tiles that are emulated.
    PYTHON=$python APART=1 scripts/levels.sh || status=$?
fi
unset COVERAGE_PROCESS_START
"$python" -m coverage combine -q --rcfile "$reports/settings" || true
"$python" -m coverage report --rcfile "$reports/settings" --show-missing --sort=cover >"$reports/python.txt" || true
"$python" -m coverage json -q --rcfile "$reports/settings" -o "$reports/python.json"
"$python" -m gcovr --root . --filter 'csrc/' --object-directory "$folder/temp" --exclude-throw-branches \
    --gcov-ignore-parse-errors=all --gcov-suspicious-hits-threshold 0 --txt "$reports/c.txt" --json-summary "$reports/c.json" 2>"$reports/gcovr.log"
"$python" - "$reports" <<'SUMMARY'
import collections, json, os, sys

lines = collections.Counter()
run = collections.Counter()
for file in json.load(open(f"{sys.argv[1]}/c.json"))["files"]:
    folders = os.path.dirname(file["filename"]), "csrc"
    for folder in folders:
        lines[folder] += file["line_total"]
        run[folder] += file["line_covered"]
for name, file in json.load(open(f"{sys.argv[1]}/python.json"))["files"].items():
    if os.path.isabs(name):
        continue  # a module that a test wrote
    for folder in {os.path.dirname(name), "qavit"}:
        lines[folder] += file["summary"]["num_statements"]
        run[folder] += file["summary"]["covered_lines"]
for folder in sorted(lines):
    print(f"{folder:<14} {100 * run[folder] / lines[folder]:5.1f}% of {lines[folder]} lines")
SUMMARY
echo "the lines that were not run: out/coverage/c.txt and out/coverage/python.txt"
exit $status
