#!/usr/bin/env bash
# Compiles the core for aarch64 and runs it under an emulator, on CPUs with dot products of bfloat16, of bytes alone and of
# neither: its ops against plain loops, whole models against the public codes' numbers. Then this machine's own build on emulated
# x86-64 CPUs with AVX2 alone and with neither AVX nor FMA, where a stray instruction would be fatal; and here, by clang, with
# FMA everywhere. PYTHON is one that has qavit.
# scripts/cross.sh clang does the last alone, for which no emulator is needed.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=build/cross
flags=(-std=c11 -O2 -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror
    -D_GNU_SOURCE -Icsrc -Itests/core)
mkdir -p "$folder"

# build NAME COMPILER...: ops_check_NAME and models_check_NAME from `sources` and `libraries`, by way of objects of their own
build() {
    local name=$1 program
    shift
    mkdir -p "$folder/$name"
    rm -f "$folder/$name"/*.o
    printf '%s\n' "${sources[@]}" tests/core/check.c | xargs -P "$(nproc)" -I{} bash -c '
        folder=$1 file=$2
        shift 2
        "$@" -c "$file" -o "$folder/$(echo "${file%.c}" | tr / _).o"' _ "$folder/$name" {} "$@" "${flags[@]}"
    for program in ops_check models_check; do
        "$@" "${flags[@]}" "tests/core/$program.c" "$folder/$name"/*.o -o "$folder/${program}_$name" "${libraries[@]}" -pthread -lm
    done
}

# check NAME PROGRAM COMMAND...: run it; show its first line, and all of it if it fails
check() {
    local log=$folder/$1_$2.log
    local title="$1, $2"
    shift 2
    if "$@" >"$log" 2>&1; then
        echo "$title: $(grep -m1 ^kernels "$log"); $(tail -n 1 "$log")"
    else
        cat "$log"
        echo "$title: failed"
        exit 1
    fi
}

# check_both NAME BUILD RUNNER...: start both programs of a build, by an emulator or (none) here
started=()
check_both() {
    local name=$1 build=$2
    shift 2
    (
        check "$name" ops "$@" "$folder/ops_check_$build"
        check "$name" models "$@" "$folder/models_check_$build" "$folder/cases.bin"
    ) &
    started+=($!)
}

PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" "$python" tests/core/write_cases.py "$folder/cases.bin"

# OpenBLAS is left out where it would have to be compiled for another CPU, or says nothing about the compiler.
sources=(csrc/{base,ops,image,models}/*.c)
sources=("${sources[@]/#csrc\/base\/blas.c/tests/core/plain_blas.c}")
libraries=()
if command -v clang >/dev/null; then
    fused=()
    [ "$(uname -m)" != x86_64 ] || fused=(-mavx2 -mfma)
    build clang clang "${fused[@]}"
    check_both clang clang
else
    echo "clang is not here: skipped"
fi
if [ "${1:-}" = clang ]; then
    wait "${started[0]}"
    exit
fi

for tool in aarch64-linux-gnu-gcc qemu-aarch64-static qemu-x86_64-static; do
    command -v $tool >/dev/null || { echo "$tool is not here: scripts/system_packages.sh cross"; exit 2; }
done
build aarch64 aarch64-linux-gnu-gcc
check_both aarch64 aarch64 qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu
for cpu in cortex-a57 neoverse-n1; do
    check_both "aarch64-$cpu" aarch64 qemu-aarch64-static -cpu $cpu -L /usr/aarch64-linux-gnu
done

if [ "$(uname -m)" = x86_64 ]; then
    { read -r include; read -r library; } < <("$python" -c '
import scipy_openblas32 as blas
print(blas.get_include_dir(), blas.get_lib_dir(), sep="\n")')
    sources=(csrc/{base,ops,image,models}/*.c)
    libraries=("-L$library" -lscipy_openblas "-Wl,-rpath,$library")
    build native gcc -DQV_BLAS_SCIPY_PREFIX "-I$include"
    check_both native native
    check_both x86_64-avx2 native qemu-x86_64-static -cpu Haswell
    check_both x86_64-plain native qemu-x86_64-static -cpu core2duo
fi
status=0
for process in "${started[@]}"; do
    wait "$process" || status=1
done
exit $status
