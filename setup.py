"""Builds qavit._core from csrc/.

Switches, all by environment variable:

QAVIT_OPENBLAS   "bundled" (default): the library of the scipy-openblas32 build requirement, copied into the package;
                 "system": the system's OpenBLAS (cblas.h and -lopenblas); a folder: its include/ and lib/.
QAVIT_SANITIZE   "1": AddressSanitizer and UndefinedBehaviorSanitizer; "thread": ThreadSanitizer.
QAVIT_DEBUG      "1": -O1, assertions, the failing test allocator.
QAVIT_COVERAGE   "1": gcov counters.
QAVIT_WERROR     "1": compiler warnings are errors.
QAVIT_CUDA       "1": csrc/cuda, with nvcc and cuBLAS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CORE_FOLDERS = ("base", "ops", "image", "models", "python")
WARNINGS = [
    "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wpointer-arith",
    "-Wformat=2", "-Wvla",
]  # fmt: skip
HARDENING = ["-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]


def switch(name: str) -> str:
    """The value of an environment switch, lower case; empty when unset or off."""
    value = os.environ.get(name, "").strip()
    return "" if value.lower() in {"", "0", "no", "off", "false"} else value


def relative(pattern: str) -> list[str]:
    """Files under csrc/ as setuptools wants them: relative, with forward slashes, in a stable order."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob(pattern))


class BuildCore(build_ext):
    """Adds what only the build machine can tell: where OpenBLAS lies and whether stb_image.h is there."""

    library: Path | None = None

    def build_extension(self, ext: Extension) -> None:
        """Configure, compile, and put OpenBLAS beside the module."""
        library = self.use_openblas(ext)
        if self.has_header("stb/stb_image.h"):
            ext.define_macros.append(("QV_HAVE_STB", "1"))
        else:
            self.warn("stb/stb_image.h was not found (Debian: libstb-dev); images will be decoded by Pillow")
        super().build_extension(ext)
        self.library = library
        self.place_library(Path(self.get_ext_fullpath(ext.name)).parent)

    def copy_extensions_to_source(self) -> None:
        """For a build in place, the library goes where the module goes."""
        super().copy_extensions_to_source()
        self.place_library(ROOT / "qavit")

    def place_library(self, package: Path) -> None:
        """Copy the shipped OpenBLAS into package/.libs."""
        if self.library is not None:
            folder = package / ".libs"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.library, folder / self.library.name)

    def use_openblas(self, ext: Extension) -> Path | None:
        """Point the compiler at OpenBLAS; return the library file to ship, if one is shipped."""
        choice = switch("QAVIT_OPENBLAS") or "bundled"
        if choice == "system":
            ext.libraries.append("openblas")
            return None
        if choice != "bundled":
            ext.include_dirs.append(str(Path(choice, "include")))
            ext.library_dirs.append(str(Path(choice, "lib")))
            ext.runtime_library_dirs.append(str(Path(choice, "lib").resolve()))
            ext.libraries.append("openblas")
            return None
        import scipy_openblas32

        name = scipy_openblas32.get_library()
        ext.include_dirs.append(scipy_openblas32.get_include_dir())
        ext.library_dirs.append(scipy_openblas32.get_lib_dir())
        ext.libraries.append(name)
        ext.define_macros.append(("QV_BLAS_SCIPY_PREFIX", "1"))
        origin = "@loader_path/.libs" if sys.platform == "darwin" else "$ORIGIN/.libs"
        ext.extra_link_args.append(f"-Wl,-rpath,{origin}")
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        return Path(scipy_openblas32.get_lib_dir(), f"lib{name}{suffix}")

    def has_header(self, header: str) -> bool:
        """Whether the compiler finds a system header."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(f"#include <stdio.h>\n#include <{header}>\nint main(void) {{ return 0; }}\n")
            compiler = getattr(self.compiler, "compiler", ["cc"])
            return subprocess.run([*compiler, "-fsyntax-only", str(source)], capture_output=True).returncode == 0


def core_extension() -> Extension:
    """The one extension module."""
    compile_args = ["-std=c11", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", *WARNINGS]
    link_args = ["-pthread"] if sys.platform == "darwin" else ["-pthread", "-Wl,-z,relro,-z,now"]
    macros: list[tuple[str, str | None]] = [("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION"), ("_GNU_SOURCE", "1")]
    sanitize = switch("QAVIT_SANITIZE")
    if switch("QAVIT_DEBUG"):
        macros.append(("QV_DEBUG", "1"))
        compile_args += ["-O1", "-g", "-UNDEBUG"]
    elif sanitize:
        compile_args += ["-O1", "-g", "-fno-omit-frame-pointer"]
    else:
        compile_args += ["-O3", "-g1", *HARDENING]
    if sanitize:
        kind = "thread" if sanitize.lower() == "thread" else "address,undefined"
        compile_args += [f"-fsanitize={kind}", "-fno-sanitize-recover=undefined"]
        link_args += [f"-fsanitize={kind}"]
    if switch("QAVIT_COVERAGE"):
        compile_args += ["--coverage", "-O0"]
        link_args += ["--coverage"]
    if switch("QAVIT_WERROR"):
        compile_args.append("-Werror")
    return Extension(
        "qavit._core",
        sources=[path for folder in CORE_FOLDERS for path in relative(f"{folder}/*.c")],
        depends=relative("**/*.h"),
        include_dirs=["csrc", numpy.get_include()],
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


setup(ext_modules=[core_extension()], cmdclass={"build_ext": BuildCore})
