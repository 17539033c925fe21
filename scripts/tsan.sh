#!/usr/bin/env bash
# Builds the core and tests/core/threads.c with ThreadSanitizer into build/tsan and runs it: scripts/tsan.sh [ROUNDS]
# A race, or a result that is not what one thread got, is exit status 1. CC names the compiler.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=build/tsan
mkdir -p "$folder"
{ read -r include; read -r library; read -r name; } < <("$python" -c '
import scipy_openblas32 as blas
print(blas.get_include_dir(), blas.get_lib_dir(), blas.get_library(), sep="\n")')
echo "building with ThreadSanitizer"
rm -f "$folder"/*.o
printf '%s\n' csrc/{base,image,ops,models}/*.c tests/core/threads.c | xargs -P "$(nproc)" -I{} bash -c '
    object=$2/$(echo "${1%.c}" | tr / _).o
    ${CC:-gcc} -std=c11 -ffp-contract=off -D_GNU_SOURCE -DQV_BLAS_SCIPY_PREFIX -Wall -Wextra -O1 -g1 -fsanitize=thread -Icsrc -I"$3" \
        -c "$1" -o "$object"' _ {} "$folder" "$include"
${CC:-gcc} -fsanitize=thread -o "$folder/threads" "$folder"/*.o -L"$library" -l"$name" -Wl,-rpath,"$library" -lm -pthread
# A kernel that spreads addresses wider than this runtime knows stops it at its start; without spreading it runs.
run=()
setarch -R true 2>/dev/null && run=(setarch -R)
export TSAN_OPTIONS=halt_on_error=0:exitcode=1:second_deadlock_stack=1
"${run[@]}" "$folder/threads" "${1:-20}"
QAVIT_CPU=portable "${run[@]}" "$folder/threads" "$(((${1:-20} + 3) / 4))"
