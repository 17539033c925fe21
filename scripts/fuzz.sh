#!/usr/bin/env bash
# Fuzzes each target of fuzz/ from its seeds, corpus and regression files, two minutes in all; C beside Python:
# SECONDS_EACH=60 scripts/fuzz.sh [TARGET...]
# EXECUTIONS=100000 ends each kind of files after so many, in place of the time that all kinds share.
# What crashes, hangs or takes too much memory is left in out/fuzz and fails the run.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=out/fuzz
seconds=${SECONDS_EACH:-60}
command -v "${CC:-clang}" >/dev/null || { echo "fuzz: ${CC:-clang} is not here (Debian: clang libclang-rt-dev)"; exit 1; }
named=$#
[ $# -gt 0 ] || set -- $(for file in fuzz/fuzz_*.c; do basename "$file" .c; done | sed 's/^fuzz_//')
fuzz/build.sh "$out" "$@"
compiled() {
    local target more folders
    for target; do
        mkdir -p "$out/corpus/$target" "$out/seeds/$target"
        [ ! -e "fuzz/${target}_seeds.py" ] || "$python" "fuzz/${target}_seeds.py" "$out/seeds/$target"
        more=()
        [ ! -e "fuzz/$target.dict" ] || more+=("-dict=fuzz/$target.dict")
        folders=("$out/corpus/$target" "$out/seeds/$target")
        [ ! -d "fuzz/regressions/$target" ] || folders+=("fuzz/regressions/$target")
        echo "fuzz: $target, $seconds s"
        "$out/fuzz_$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
            -malloc_limit_mb=256 -verbosity=0 -print_final_stats=1 "${more[@]}" -artifact_prefix="$out/$target-" "${folders[@]}" || return 1
    done
}
[ "$named" -eq 0 ] || { compiled "$@"; exit; }
# What Python code reads: each kind of files has its share of the same time; guided by coverage where atheris is installed.
bound=(--together "$seconds" --iterations 1000000)
[ -z "${EXECUTIONS:-}" ] || bound=(--iterations "$EXECUTIONS")
status=0
compiled "$@" >"$out/compiled.txt" 2>&1 &
RUST_BACKTRACE=0 "$python" fuzz/fuzz_files.py "${bound[@]}" --out "$out" || status=1
wait $! || status=1
cat "$out/compiled.txt"
exit $status
