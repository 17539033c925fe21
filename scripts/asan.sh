#!/usr/bin/env bash
# Builds the core with AddressSanitizer, UndefinedBehaviorSanitizer and the failing allocator into build/asan, and runs
# the tests of the core on it. Arguments go to pytest: scripts/asan.sh tests/test_images.py -k jpeg
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
folder=$root/build/asan

mkdir -p "$folder"
echo "building with sanitizers"
# Without warnings as errors: what the compiler knows of values is less where it checks them.
QAVIT_WERROR=0 QAVIT_SANITIZE=1 QAVIT_DEBUG=1 QAVIT_TESTING=1 "$python" setup.py -q build_ext --build-temp "$folder/temp" --build-lib "$folder/lib" \
    >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
# The package around the instrumented module, which pytest's pythonpath puts in front of the checkout's.
find qavit -type f ! -name '*.so' ! -path '*/.libs/*' ! -name '*.pyc' -exec cp --parents {} "$folder/lib" \;

if [ $# -eq 0 ]; then
    # The tests that go through the core; memory growth means nothing to an allocator that keeps what is freed.
    for name in core_runtime core_safety ops backward text_encoders decoder generation vit vit_gradients vit_dense towers blip \
        blip_vqa qavit_answer matchers images models cuda cuda_pictures; do
        [ -e "tests/test_$name.py" ] && set -- "$@" "tests/test_$name.py"
    done
    # Two workers, for the core that is left over when what runs beside this has ended.
    set -- "$@" -k "not memory_stays_flat and not memory_is_flat" -n 2 --dist worksteal
fi

runtime=$(gcc -print-file-name=libasan.so)
# detect_leaks: Python's own interned objects would be all it shows. The C++ runtime is preloaded so that exceptions thrown
# by libraries that are loaded later are seen by the sanitizer's interceptor.
export LD_PRELOAD="$runtime $(gcc -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:halt_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# For the processes that tests start, too.
export PYTEST_ADDOPTS="-p no:cacheprovider -o \"pythonpath='$folder/lib'\""
export PYTHONMALLOC=malloc QAVIT_NUM_THREADS=${QAVIT_NUM_THREADS:-4}
(cd "$folder" && PYTHONPATH=$folder/lib "$python" -c 'from qavit import _core; assert _core.build_info()["debug"]')
exec "$python" -m pytest "$@"
