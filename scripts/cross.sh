#!/usr/bin/env bash
# Compiles the core for aarch64 and runs its ops against plain loops under an emulator; then this machine's own build on
# emulated x86-64 CPUs with AVX2 alone and with neither AVX nor FMA, where a stray instruction would be fatal.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=build/cross
flags="-std=c11 -O2 -fno-math-errno -fno-trapping-math -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror \
    -D_GNU_SOURCE -Icsrc"
mkdir -p "$folder"

check() { # check NAME COMMAND...: run it; show its first line, and all of it if it fails
    local name=$1
    shift
    if "$@" >"$folder/$name.log" 2>&1; then
        echo "$name: $(grep -m1 ^kernels "$folder/$name.log"); $(tail -n 1 "$folder/$name.log")"
    else
        cat "$folder/$name.log"
        echo "$name: failed"
        exit 1
    fi
}

for tool in aarch64-linux-gnu-gcc qemu-aarch64-static qemu-x86_64-static; do
    command -v $tool >/dev/null || { echo "$tool is not here: scripts/system_packages.sh cross"; exit 2; }
done

# OpenBLAS is left out where it would have to be cross-compiled too.
# shellcheck disable=SC2046,SC2086
aarch64-linux-gnu-gcc $flags $(ls csrc/{base,ops,models,image}/*.c | grep -v base/blas.c) tests/core/{ops_check,plain_blas}.c \
    -o "$folder/ops_check_aarch64" -pthread -lm
check aarch64 qemu-aarch64-static -L /usr/aarch64-linux-gnu "$folder/ops_check_aarch64"

if [ "$(uname -m)" = x86_64 ]; then
    library=$("$python" -c 'import scipy_openblas32 as b; print(b.get_lib_dir())')
    include=$("$python" -c 'import scipy_openblas32 as b; print(b.get_include_dir())')
    # shellcheck disable=SC2086
    gcc $flags -DQV_BLAS_SCIPY_PREFIX "-I$include" csrc/{base,ops,models,image}/*.c tests/core/ops_check.c \
        -o "$folder/ops_check" "-L$library" -lscipy_openblas "-Wl,-rpath,$library" -pthread -lm
    check native "$folder/ops_check"
    check x86_64-avx2 qemu-x86_64-static -cpu Haswell "$folder/ops_check"
    check x86_64-plain qemu-x86_64-static -cpu core2duo "$folder/ops_check"
fi
