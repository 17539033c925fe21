#!/usr/bin/env bash
# Compiles and links the core for every system that it is written for, by one compiler from a package (ziglang), and runs its ops
# and whole models where an emulator can: Linux on aarch64 under qemu, on CPUs with dot products of bfloat16, of bytes alone and of neither; Linux on x86-64
# with musl, here; Windows on x86-64 under wine; each at its CPU's level and at all below, which must be the level that its kernels
# say. s390x, which is big-endian, must refuse with a sentence. The Python half is compiled against this Python's headers.
# PYTHON is one that has qavit and ziglang. scripts/everywhere.sh TARGET... does those alone, and scripts/everywhere.sh quick only
# compiles what differs between systems, csrc/base, for Windows, macOS and a big-endian CPU.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=build/everywhere
flags=(-std=c11 -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes
    -Werror -D_GNU_SOURCE -D__USE_MINGW_ANSI_STDIO=1 -Icsrc -Itests/core)
sources=(csrc/{base,ops,image,models}/*.c)
sources=("${sources[@]/#csrc\/base\/blas.c/tests/core/plain_blas.c}" tests/core/check.c)
mkdir -p "$folder"
export WINEDEBUG=-all WINEPREFIX="$PWD/$folder/.wine" # a dot: it links to the root, and setuptools would look for packages there

say() { printf '%-20s %s\n' "$1" "$2"; }

"$python" -m ziglang version >/dev/null 2>&1 || { echo "ziglang is not here: pip install --group everywhere"; exit 2; }
zig=("$python" -m ziglang cc)

# compile FOLDER TARGET WORD...: objects of the files that are named on standard input, but of those that are newer than all they come from
compile() {
    local into=$1 target=$2
    shift 2
    mkdir -p "$into"
    xargs -P "$(nproc)" -I{} bash -c '
        into=$1 file=$2
        shift 2
        object="$into/$(echo "${file%.c}" | tr / _).o"
        [ "$object" -nt "$file" ] && [ -z "$(find csrc tests/core -name "*.h" -newer "$object" | head -n 1)" ] || "$@" -c "$file" -o "$object"
    ' _ "$into" {} "${zig[@]}" -target "$target" "${flags[@]}" "$@"
}

# build TARGET SUFFIX WORD...: both programs
build() {
    local target=$1 suffix=$2 program
    local here=$folder/$target link=()
    shift 2
    case $target in *musl) link=(-static) ;; esac
    printf '%s\n' "${sources[@]}" | compile "$here" "$target" "$@"
    for program in ops_check models_check; do
        "${zig[@]}" -target "$target" "${flags[@]}" "tests/core/$program.c" "$here"/*.o -o "$here/$program$suffix" "$@" "${link[@]}"
    done
    say "$target" "core compiled and linked"
}

unoptimised=(-O0 -fno-sanitize=undefined)

# build_python TARGET: compile the Python half, which links against nothing
build_python() {
    local include=$folder/include extra=()
    # A distribution's pyconfig.h leads to one a system, by a path that is found among this system's own headers alone.
    rm -rf "$include" # another Python's, maybe
    "$python" - "$include" <<'HEADERS'
import shutil, sys, sysconfig
from pathlib import Path

own = Path(sysconfig.get_paths()["include"])
led_to = own.parent / str(sysconfig.get_config_var("MULTIARCH")) / own.name / "pyconfig.h"
shutil.copytree(own, sys.argv[1])
if led_to.exists():
    shutil.copyfile(led_to, sys.argv[1] + "/pyconfig.h")
HEADERS
    mkdir -p "$folder/endian"
    [ -e "$folder/endian/endian.h" ] || printf '#include <machine/endian.h>\n' >"$folder/endian/endian.h"
    case $1 in *macos*) extra=(-isystem "$folder/endian") ;; esac
    printf '%s\n' csrc/python/*.c | compile "$folder/$1-python" "$1" "${unoptimised[@]}" "${extra[@]}" -isystem "$include" \
        -isystem "$("$python" -c 'import numpy; print(numpy.get_include())')"
    say "$1" "Python half compiled"
}

# check TARGET SUFFIX LEVEL KERNELS RUNNER...: run both programs at a level ("": the CPU's own); they must say that they run KERNELS
check() {
    local target=$1 suffix=$2 level=$3 kernels=$4 program log said
    shift 4
    for program in ops_check models_check; do
        log=$folder/$target/$program${level:+_$level}.log
        local words=()
        [ $program = ops_check ] || words=("$folder/cases.bin")
        if ! QAVIT_CPU=$level "$@" "$folder/$target/$program$suffix" "${words[@]}" >"$log" 2>&1; then
            tail -n 20 "$log"
            say "$target" "$program${level:+ at $level}: failed"
            return 1
        fi
        said=$(tr -d '\r' <"$log" | grep -m1 ^kernels)
        if [ "${said#"kernels $kernels,"}" = "$said" ]; then
            say "$target" "$program${level:+ at $level}: '$said', and not $kernels"
            return 1
        fi
        say "$target" "$program${level:+ at $level}: $kernels; $(tr -d '\r' <"$log" | tail -n 1)"
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

# read_as TARGET...: compile csrc/base
read_as() {
    local target
    for target in "$@"; do
        printf '%s\n' "${sources[@]}" | grep ^csrc/base/ | compile "$folder/$target-base" "$target" "${unoptimised[@]}"
        say "$target" "csrc/base compiles"
    done
}

has() { command -v "$1" >/dev/null || { say "$2" "not run: $1 is not here (scripts/system_packages.sh cross)"; return 1; }; }

# kernels LEVEL: "FLOAT32, bfloat16 BFLOAT16, int8 INT8", which this machine's own build runs at a level
kernels() {
    QAVIT_CPU=$1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$python" -c '
import qavit
names = qavit.build_info()["kernels"]
print(names["float32"] + ", bfloat16 " + names["bfloat16"] + ", int8 " + names["int8"])'
}

if [ "${1:-}" = quick ]; then
    read_as x86_64-windows-gnu aarch64-macos s390x-linux-musl
    exit
fi
[ $# -gt 0 ] || set -- {aarch64,x86_64}-linux-musl {x86_64,aarch64}-windows-gnu s390x-linux-musl {x86_64,aarch64}-linux-gnu {x86_64,aarch64}-macos
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$python" tests/core/write_cases.py "$folder/cases.bin"
levels=("")
[ "$(uname -m)" != x86_64 ] || levels+=($(PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$python" tests/cpu_levels.py))

for target in "$@"; do
    case $target in
    aarch64-linux-musl)
        build $target "" -O2
        has qemu-aarch64-static $target || continue
        check $target "" "" "neon, bfloat16 neon_bf16, int8 neon_dotprod" qemu-aarch64-static -cpu max
        check $target "" "" "neon, bfloat16 neon, int8 neon_dotprod" qemu-aarch64-static -cpu neoverse-n1
        check $target "" neon "neon, bfloat16 neon, int8 neon" qemu-aarch64-static -cpu cortex-a57
        check $target "" portable "openblas, bfloat16 openblas, int8 portable" qemu-aarch64-static -cpu cortex-a57
        ;;
    x86_64-linux-musl | x86_64-windows-gnu)
        suffix="" runner=env
        [ $target = x86_64-linux-musl ] || suffix=.exe runner=wine
        build $target "$suffix" -O2
        [ "$(uname -m)" = x86_64 ] && has $runner $target || continue
        for level in "${levels[@]}"; do
            check $target "$suffix" "$level" "$(kernels "$level")" $runner
        done
        ;;
    s390x-linux-musl)
        build $target "" "${unoptimised[@]}"
        has qemu-s390x-static $target || continue
        refuse $target qemu-s390x-static
        ;;
    *) # What runs nowhere here is compiled without optimisation, which takes most of the time.
        suffix=""
        case $target in *windows*) suffix=.exe ;; *) build_python $target ;; esac
        build $target "$suffix" "${unoptimised[@]}"
        ;;
    esac
done
