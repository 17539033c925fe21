#!/bin/sh
# Builds fuzz targets with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer:
#   fuzz/build.sh OUT [TARGET...]       each fuzz/fuzz_TARGET.c becomes OUT/fuzz_TARGET; all of them by default
# and runs one:
#   OUT/fuzz_image -max_total_time=120 -max_len=4096 -dict=fuzz/image.dict CORPUS    (scripts/fuzz.sh does both)
# CC names the compiler. -fwrapv as in the extension module, where Python's own flags bring it.
set -eu
out=$1
shift
cd "$(dirname "$0")/.."
mkdir -p "$out"
[ $# -gt 0 ] || set -- $(for file in fuzz/fuzz_*.c; do basename "$file" .c; done | sed 's/^fuzz_//')
sources=$(ls csrc/base/*.c csrc/image/*.c | grep -v -x csrc/base/blas.c)
stb=
printf '#include <stdio.h>\n#include <stb/stb_image.h>\n' | ${CC:-clang} -fsyntax-only -x c - 2>/dev/null && stb=-DQV_HAVE_STB
for target; do
    ${CC:-clang} -std=c11 -ffp-contract=off -D_GNU_SOURCE $stb -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION -Icsrc -g -O1 -fwrapv \
        -Wall -Wextra -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
        -o "$out/fuzz_$target" "fuzz/fuzz_$target.c" $sources -lm -pthread
done
