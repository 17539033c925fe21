#!/usr/bin/env bash
# Runs parity (the tests marked every_level) once more at each level of CPU features below this machine's own, all levels at
# once. A process reads QAVIT_CPU once, so that each level is a process of its own; a failure names it behind the test's name.
# APART=1 has each started by itself, one after the other, and not by pytest's workers. Where this CPU has no tiles, what
# computes in bfloat16 runs at the level amx, too, by emulated instructions.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- $(grep -l "mark.every_level" tests/test_*.py)
read -r -a levels <<<"$(PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" "$python" tests/cpu_levels.py || echo failed)"
[ "${levels[*]}" != failed ] || exit 1
status=0
if [ ${#levels[@]} -gt 0 ]; then
    echo "levels: ${levels[*]}"
    if [ "${APART:-}" = 1 ]; then
        for level in "${levels[@]}"; do
            QAVIT_CPU=$level "$python" -m pytest -m "every_level and not nightly" "$@" || status=$?
        done
    else
        "$python" -m pytest -m "every_level and not nightly" --dist each "${levels[@]/#/--tx=popen//env:QAVIT_CPU=}" "$@" || status=$?
    fi
else
    echo "levels: there is none below this CPU's own"
fi
emulator=$(scripts/tile_emulator.sh)
if [ -n "$emulator" ] && ! grep -qw amx_tile /proc/cpuinfo; then
    echo "levels: amx, emulated"
    LD_PRELOAD=$emulator QAVIT_CPU=amx QAVIT_NUM_THREADS=3 "$python" -m pytest -m "every_level and not nightly" \
        -k "bfloat16 or int8 or build_info" "$@" || status=$?
fi
exit $status
