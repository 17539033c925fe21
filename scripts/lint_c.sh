#!/usr/bin/env bash
# Compiles csrc/, tests/core/ and fuzz/ with gcc and, where it is there, clang: warnings are errors.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
mapfile -t includes < <("$python" - <<'PY'
import sysconfig, numpy, scipy_openblas32
for folder in (numpy.get_include(), sysconfig.get_paths()["include"], scipy_openblas32.get_include_dir()):
    print(f"-I{folder}")
PY
)
warnings="-Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wformat=2 -Wvla"
stb=""
[ -e /usr/include/stb/stb_image.h ] && stb=-DQV_HAVE_STB=1
# The files that know CUDA are looked at where its headers and cuBLAS's are.
mapfile -t cuda < <("$python" - <<'PY'
import importlib.util, os, pathlib
spec = importlib.util.find_spec("nvidia")
roots = [path for root in (spec.submodule_search_locations if spec else ()) for path in pathlib.Path(root).glob("cu*/include")]
toolkit = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include")
cublas = [path for path in (*roots, toolkit) if (path / "cublasLt.h").exists()]
if cublas and (toolkit / "cuda_runtime_api.h").exists():
    print("-DQV_HAVE_CUDA", "-isystem", toolkit, "-isystem", cublas[0], sep="\n")
PY
)
[ ${#cuda[@]} -gt 0 ] || echo "CUDA's headers are not here: csrc/cuda/gpu_* skipped"
files=()
for file in csrc/{base,ops,image,models,cuda,python,testing}/*.c tests/core/*.c fuzz/*.c; do
    case $file in csrc/cuda/gpu_*) [ ${#cuda[@]} -gt 0 ] || continue ;; esac
    files+=("$file")
done
for compiler in gcc clang; do
    command -v $compiler >/dev/null || { echo "$compiler is not here: skipped"; continue; }
    # A few files at a time, on every CPU.
    # shellcheck disable=SC2086
    printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 4 $compiler -std=c11 -O1 -fsyntax-only -Werror $warnings -D_GNU_SOURCE \
        -DQV_BLAS_SCIPY_PREFIX $stb -DNPY_NO_DEPRECATED_API=NPY_1_23_API_VERSION -DNPY_TARGET_VERSION=NPY_1_23_API_VERSION -Icsrc -Itests/core "${includes[@]}" "${cuda[@]}"
    echo "$compiler: no warnings"
done
