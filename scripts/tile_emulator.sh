#!/usr/bin/env bash
# Builds the emulator of AMX's instructions as a library, and prints its path for LD_PRELOAD; nothing but on Linux, x86-64:
# LD_PRELOAD=$(scripts/tile_emulator.sh) QAVIT_CPU=amx pytest tests/test_ops.py
set -eu
cd "$(dirname "$0")/.."
[ "$(uname -sm)" = "Linux x86_64" ] || exit 0
library=$PWD/build/tile_emulator.so
mkdir -p build
if [ ! -e "$library" ] || [ -n "$(find tests/core/tile_emulator.[ch] scripts/tile_emulator.sh -newer "$library")" ]; then
    # -ffp-contract: a sum rounds as the instruction's; -O3: it is slow enough
    "${CC:-gcc}" -shared -fPIC -O3 -std=c11 -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=off -D_GNU_SOURCE -Itests/core \
        tests/core/tile_emulator.c -o "$library.$$" -ldl
    mv "$library.$$" "$library"
fi
echo "$library"
