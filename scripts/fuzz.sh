#!/usr/bin/env bash
# Fuzzes each target of fuzz/ from its seeds, corpus and regression files, two minutes in all:
# SECONDS_EACH=60 scripts/fuzz.sh [TARGET...]
# What crashes, hangs or takes too much memory is left in out/fuzz and fails the run.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=out/fuzz
command -v "${CC:-clang}" >/dev/null || { echo "fuzz: ${CC:-clang} is not here (Debian: clang libclang-rt-dev)"; exit 1; }
named=$#
[ $# -gt 0 ] || set -- $(for file in fuzz/fuzz_*.c; do basename "$file" .c; done | sed 's/^fuzz_//')
fuzz/build.sh "$out" "$@"
for target; do
    mkdir -p "$out/corpus/$target" "$out/seeds/$target"
    [ ! -e "fuzz/${target}_seeds.py" ] || "$python" "fuzz/${target}_seeds.py" "$out/seeds/$target"
    more=()
    [ ! -e "fuzz/$target.dict" ] || more+=("-dict=fuzz/$target.dict")
    folders=("$out/corpus/$target" "$out/seeds/$target")
    [ ! -d "fuzz/regressions/$target" ] || folders+=("fuzz/regressions/$target")
    echo "fuzz: $target, ${SECONDS_EACH:-60} s"
    "$out/fuzz_$target" -max_total_time="${SECONDS_EACH:-60}" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
        -malloc_limit_mb=256 -verbosity=0 -print_final_stats=1 "${more[@]}" -artifact_prefix="$out/$target-" "${folders[@]}"
done
# The files that Python code reads: ten kinds, in the same time together; guided by coverage where atheris is installed.
[ "$named" -gt 0 ] || RUST_BACKTRACE=0 "$python" fuzz/fuzz_files.py --iterations 1000000 \
    --seconds $(((${SECONDS_EACH:-60} + 9) / 10)) --out "$out"
