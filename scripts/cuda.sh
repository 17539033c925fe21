#!/usr/bin/env bash
# Builds with CUDA into build/cuda, warnings as errors, imports it, and runs the tests of the backend there: on the GPU where
# there is one, else on the host. Without nvcc it says so and ends well. "scripts/cuda.sh suites" also runs the core's suites
# with the device put under every model (DEVICE=cuda-host, or cuda).
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
folder=$root/build/cuda

found=""
for toolkit in "${CUDA_HOME:-}" /usr/local/cuda; do
    [ -n "$toolkit" ] && [ -x "$toolkit/bin/nvcc" ] && found=$toolkit && break
done
[ -n "$found" ] || { echo "no CUDA toolkit with nvcc is here: the CUDA build is skipped"; exit 0; }
export CUDA_HOME=$found
release=$("$found/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p')
if [ ! -e "$found/include/cublasLt.h" ] && ! "$python" -c 'import importlib.util as u, pathlib, sys
spec = u.find_spec("nvidia")
sys.exit(not any(list(pathlib.Path(r).glob("cu*/include/cublasLt.h")) for r in (spec.submodule_search_locations if spec else ())))'
then
    echo "installing cuBLAS $release"
    "$python" -m pip install -q --disable-pip-version-check --no-deps "nvidia-cublas==$release.*" || {
        echo "cuBLAS $release is not to be had: the CUDA build is skipped"
        exit 0
    }
fi

mkdir -p "$folder"
echo "building with CUDA $release"
QAVIT_CUDA=1 QAVIT_WERROR=1 "$python" setup.py -q build_ext --build-temp "$folder/temp" --build-lib "$folder/lib" \
    >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
find qavit -type f ! -name '*.so' ! -path '*/.libs/*' ! -name '*.pyc' -exec cp --parents {} "$folder/lib" \;
export PYTEST_ADDOPTS="-p no:cacheprovider -o \"pythonpath='$folder/lib'\""
(cd "$folder" && PYTHONPATH=$folder/lib "$python" -c 'import qavit; assert qavit.build_info()["cuda"]')
"$python" -m pytest -rs tests/test_cuda.py tests/test_cuda_pictures.py
if [ "${1:-}" = suites ]; then
    PYTHONPATH=$root/tests:$folder/lib QAVIT_TEST_DEVICE=${DEVICE:-cuda-host} "$python" -m pytest -p on_device \
        tests/test_vit.py tests/test_text_encoders.py tests/test_blip.py -m "not slow and not full_size" -k "not memory"
fi
