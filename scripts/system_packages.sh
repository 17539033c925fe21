#!/usr/bin/env bash
# Installs the system packages that are missing: system_packages.sh build | test | cross.
# With neither root nor passwordless sudo it only says what is missing; without a compiler that is an error.
set -u
wanted=${1:-build}

missing=()
need() { # need PACKAGE TEST...: remember PACKAGE if TEST fails
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
python=${PYTHON:-python3}
need gcc command -v gcc
need libc6-dev test -e /usr/include/stdlib.h
need python3 command -v "$python"
need python3-venv "$python" -c 'import venv, ensurepip'
need python3-dev "$python" -c 'import sysconfig, os; assert os.path.exists(sysconfig.get_paths()["include"] + "/Python.h")'
need libstb-dev test -e /usr/include/stb/stb_image.h
if [ "$wanted" = test ]; then
    need make command -v make
    need ccache command -v ccache
    need clang command -v clang
    need libclang-rt-dev sh -c 'ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer*'
    need valgrind command -v valgrind
    need chromium sh -c 'command -v chromium || command -v google-chrome'
    need fonts-noto-cjk sh -c 'ls /usr/share/fonts/opentype/noto/*CJK*'
fi
if [ "$wanted" = cross ]; then
    need gcc-aarch64-linux-gnu command -v aarch64-linux-gnu-gcc
    need libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdlib.h
    need qemu-user-static command -v qemu-aarch64-static
    need wine64 command -v wine
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ]; then as_root=(); else as_root=(sudo -n); fi
if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    echo "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq >/dev/null || true
    for package in "${missing[@]}"; do
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" \
            >/dev/null || echo "could not install $package"
    done
else
    echo "missing: ${missing[*]}; install them (as root: apt-get install ${missing[*]})"
fi
command -v gcc >/dev/null && command -v "$python" >/dev/null
