#!/usr/bin/env bash
# Compiles the core for the systems that it is written for, by one compiler from a package (ziglang), and runs its ops and whole
# models where an emulator can: Linux on aarch64 (glibc, musl) and x86-64 (musl), Windows on x86-64 under wine, at the level of
# this CPU and at each below; s390x, which is big-endian, must refuse with a sentence. macOS and Windows on aarch64 are compiled
# and linked. The Python half is compiled for each Linux and macOS against this Python's headers. PYTHON is one that has qavit
# and ziglang. scripts/everywhere.sh quick leaves out whole models under emulators, and other levels.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
quick=${1:-}
folder=build/everywhere
flags=(-std=c11 -O2 -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes
    -Werror -D_GNU_SOURCE -D__USE_MINGW_ANSI_STDIO=1 -Icsrc -Itests/core)
sources=(csrc/{base,ops,image,models}/*.c)
sources=("${sources[@]/#csrc\/base\/blas.c/tests/core/plain_blas.c}" tests/core/check.c)
mkdir -p "$folder"
zig=("$python" -m ziglang cc)
export WINEDEBUG=-all WINEPREFIX="$PWD/$folder/wine"

say() { printf '%-28s %s\n' "$1" "$2"; }

# build TARGET SUFFIX LIBRARY...: both programs, by way of objects of their own
build() {
    local target=$1 suffix=$2 program
    local here=$folder/$target
    shift 2
    mkdir -p "$here"
    printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} bash -c '
        here=$1 file=$2
        shift 2
        object="$here/$(echo "${file%.c}" | tr / _).o"
        [ "$object" -nt "$file" ] && [ -z "$(find csrc tests/core -name "*.h" -newer "$object" | head -n 1)" ] || "$@" -c "$file" -o "$object"
    ' _ "$here" {} "${zig[@]}" -target "$target" "${flags[@]}"
    for program in ops_check models_check; do
        "${zig[@]}" -target "$target" "${flags[@]}" "tests/core/$program.c" "$here"/*.o -o "$here/$program$suffix" "$@"
    done
    say "$target" "core compiled and linked"
}

# build_python TARGET: compile the Python half, which links against nothing
build_python() {
    local include
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    mkdir -p "$folder/endian"
    [ -e "$folder/endian/endian.h" ] || printf '#include <machine/endian.h>\n' >"$folder/endian/endian.h"
    local extra=()
    case $1 in *macos*) extra=(-isystem "$folder/endian") ;; esac
    printf '%s\n' csrc/python/*.c | xargs -P "$(nproc)" -I{} "${zig[@]}" -target "$1" "${flags[@]}" "${extra[@]}" \
        -isystem "$include" -fsyntax-only {}
    say "$1" "Python half compiled"
}

# check TARGET SUFFIX LEVEL RUNNER...: run what there is to run at a level of CPU ("": the CPU's own)
check() {
    local target=$1 suffix=$2 level=$3 program log said
    shift 3
    for program in ops_check models_check; do
        [ "$quick" != quick ] || [ $program = ops_check ] || continue
        log=$folder/$target/$program${level:+_$level}.log
        local words=()
        [ $program = ops_check ] || words=("$folder/cases.bin")
        if ! QAVIT_CPU=$level "$@" "$folder/$target/$program$suffix" "${words[@]}" >"$log" 2>&1; then
            tail -n 20 "$log"
            say "$target" "$program${level:+ at $level}: failed"
            return 1
        fi
        said=$(tr -d '\r' <"$log")
        say "$target" "$program: $(grep -m1 ^kernels <<<"$said"); $(tail -n 1 <<<"$said")"
    done
}

# refuse TARGET RUNNER...: the program must end with the sentence about big-endian CPUs
refuse() {
    local target=$1 log
    shift
    log=$folder/$target/refusal.log
    if "$@" "$folder/$target/ops_check" >"$log" 2>&1 || ! grep -q "big-endian" "$log"; then
        cat "$log"
        say "$target" "was not refused"
        return 1
    fi
    say "$target" "refused: $(head -n 1 "$log")"
}

has() { command -v "$1" >/dev/null || { say "$2" "not run: $1 is not here (scripts/system_packages.sh cross)"; return 1; }; }

"$python" -m ziglang version >/dev/null 2>&1 || { echo "ziglang is not here: pip install --group everywhere"; exit 2; }
PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" "$python" tests/core/write_cases.py "$folder/cases.bin"

lesser=()
[ "$quick" = quick ] || [ "$(uname -m)" != x86_64 ] || read -r -a lesser < <(PYTHONPATH="$PWD" "$python" tests/cpu_levels.py)

build aarch64-linux-musl "" -static
build aarch64-linux-gnu ""
for target in aarch64-linux-musl aarch64-linux-gnu; do
    build_python $target
done
if has qemu-aarch64-static aarch64-linux-musl; then
    check aarch64-linux-musl "" "" qemu-aarch64-static -cpu max
    if [ -d /usr/aarch64-linux-gnu ]; then
        check aarch64-linux-gnu "" "" qemu-aarch64-static -cpu cortex-a57 -L /usr/aarch64-linux-gnu
    fi
fi

build x86_64-linux-musl "" -static
build_python x86_64-linux-musl
if [ "$(uname -m)" = x86_64 ]; then
    for level in "" "${lesser[@]}"; do
        check x86_64-linux-musl "" "$level" env
    done
fi

build x86_64-windows-gnu .exe
build aarch64-windows-gnu .exe
if [ "$(uname -m)" = x86_64 ] && has wine x86_64-windows-gnu; then
    for level in "" "${lesser[@]}"; do
        check x86_64-windows-gnu .exe "$level" wine
    done
fi

for target in x86_64-macos aarch64-macos; do
    build $target ""
    build_python $target
done

build s390x-linux-musl "" -static
if has qemu-s390x-static s390x-linux-musl; then
    refuse s390x-linux-musl qemu-s390x-static
fi
