#!/usr/bin/env bash
# Compiles csrc/ with gcc and, where it is there, clang: warnings are errors.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
includes=$("$python" - <<'PY'
import sysconfig, numpy, scipy_openblas32
print(f"-I{numpy.get_include()} -I{sysconfig.get_paths()['include']} -I{scipy_openblas32.get_include_dir()}")
PY
)
warnings="-Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wformat=2 -Wvla"
stb=""
[ -e /usr/include/stb/stb_image.h ] && stb=-DQV_HAVE_STB=1
for compiler in gcc clang; do
    command -v $compiler >/dev/null || { echo "$compiler is not here: skipped"; continue; }
    for file in csrc/{base,ops,image,models,cuda,python}/*.c; do
        # shellcheck disable=SC2086
        $compiler -std=c11 -O1 -fsyntax-only -Werror $warnings -D_GNU_SOURCE -DQV_BLAS_SCIPY_PREFIX $stb \
            -DNPY_NO_DEPRECATED_API=NPY_1_23_API_VERSION -Icsrc $includes "$file"
    done
    echo "$compiler: no warnings"
done
