#!/usr/bin/env bash
# Runs parity (the tests marked every_level) once more at each level of CPU features below this machine's own, all levels at
# once. A process reads QAVIT_CPU once, so that each level is a process of its own; a failure names it behind the test's name.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
read -r -a levels <<<"$(PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" "$python" tests/cpu_levels.py || echo failed)"
[ "${levels[*]}" != failed ] || exit 1
[ ${#levels[@]} -gt 0 ] || { echo "levels: there is none below this CPU's own"; exit 0; }
echo "levels: ${levels[*]}"
[ $# -gt 0 ] || set -- $(grep -l "mark.every_level" tests/test_*.py)
exec "$python" -m pytest -m "every_level and not nightly" --dist each "${levels[@]/#/--tx=popen//env:QAVIT_CPU=}" "$@"
