#!/usr/bin/env bash
# Runs the kernels thread by thread on the host, which shows barriers that are missing (tests/core/emulated_gpu.cpp). Then builds
# with CUDA into build/cuda, warnings as errors, imports it, and runs the tests of the backend there: on the host, and on the GPU
# where there is one. Without a toolkit, one is installed into build/cuda-toolkit from packages; where those are not to
# be had, it says so and ends well. With a GPU, or as "scripts/cuda.sh suites", the core's suites run too, with the device put
# under every model (DEVICE=cuda where there is a GPU, else cuda-host).
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
folder=$root/build/cuda
release_wanted=13.0

# core FOLDER: the package with its core built into FOLDER/lib, which tests then import
core() {
    mkdir -p "$1"
    rm -f "$1"/lib/qavit/_core*.so
    QAVIT_WERROR=1 "$python" setup.py -q build_ext --build-temp "$1/temp" --build-lib "$1/lib" >"$1.log" 2>&1 || { cat "$1.log"; exit 1; }
    find qavit -type f ! -name '*.so' ! -path '*/.libs/*' ! -name '*.pyc' -exec cp --parents {} "$1/lib" \;
    export PYTEST_ADDOPTS="-p no:cacheprovider -o \"pythonpath='$1/lib'\""
}

if command -v "${CXX:-g++}" >/dev/null; then
    echo "building with a GPU's threads on the host"
    emulated=$root/build/emulated
    mkdir -p "$emulated"
    "${CXX:-g++}" -std=c++17 -O2 -ffp-contract=off -Wall -Wextra -Werror -Wno-unknown-pragmas -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti \
        -Icsrc -c tests/core/emulated_gpu.cpp -o "$emulated/gpu.o"
    (
        # A relative path: flags are split at spaces, which $root may have.
        export CFLAGS="${CFLAGS:-} -DQV_CUDA_EMULATED" LDFLAGS="${LDFLAGS:-} build/emulated/gpu.o"
        core "$emulated"
        "$python" -m pytest tests/test_cuda.py tests/test_cuda_attention.py tests/test_cuda_pictures.py \
            -k "cuda-host and not benchmark and not maps_of_pictures and not texts_of_blip"
    )
fi

packaged=$root/build/cuda-toolkit
found=""
find_toolkit() {
    for toolkit in "${CUDA_HOME:-}" /usr/local/cuda "$packaged/nvidia/cu13"; do
        [ -n "$toolkit" ] && [ -x "$toolkit/bin/nvcc" ] && found=$toolkit && return
    done
    return 1
}
find_toolkit || {
    echo "installing nvcc $release_wanted"
    "$python" -m pip install -q --disable-pip-version-check --target "$packaged" \
        nvidia-cuda-{nvcc,crt,cccl,runtime}=="$release_wanted.*" nvidia-nvvm=="$release_wanted.*" && find_toolkit
} || { echo "no CUDA toolkit with nvcc is here, nor to be had: the CUDA build is skipped"; exit 0; }
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

echo "building with CUDA $release"
QAVIT_CUDA=1 core "$folder"
(cd "$folder" && PYTHONPATH=$folder/lib "$python" -c 'import qavit; assert qavit.build_info()["cuda"]')
"$python" -m pytest -rs tests/test_cuda.py tests/test_cuda_attention.py tests/test_cuda_pictures.py tests/test_cuda_streams.py
gpu=""
(cd "$folder" && PYTHONPATH=$folder/lib "$python" -c 'from qavit import _core; _core.check_device("cuda")' 2>/dev/null) && gpu=cuda
if [ -n "$gpu" ] || [ "${1:-}" = suites ]; then
    PYTHONPATH=$root/tests:$folder/lib QAVIT_TEST_DEVICE=${DEVICE:-${gpu:-cuda-host}} "$python" -m pytest -p on_device \
        tests/test_vit.py tests/test_vit_dense.py tests/test_text_encoders.py tests/test_blip.py tests/test_matchers.py \
        tests/test_blip_vqa.py tests/test_qavit_answer.py tests/test_decoder.py tests/test_captioner.py \
        -k "not memory and not fork and not ctrl_c"
fi
