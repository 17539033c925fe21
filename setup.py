"""Builds qavit._core from csrc/ and, in place, qavit._core_testing, which no wheel holds.

Switches, all by environment variable:

QAVIT_OPENBLAS   "bundled" (default): the library of the scipy-openblas32 build requirement, copied into the package;
                 "system": the system's OpenBLAS (cblas.h and -lopenblas); a folder: its include/ and lib/. Importing qavit
                 sets OpenBLAS to one thread: the bundled one is qavit's alone, another is so for NumPy and SciPy, too,
                 where they are built on it.
QAVIT_SANITIZE   "1": AddressSanitizer and UndefinedBehaviorSanitizer; "thread": ThreadSanitizer.
QAVIT_DEBUG      "1": -O1, assertions, the failing test allocator.
QAVIT_COVERAGE   "1": gcov counters.
QAVIT_WERROR     "1": compiler warnings are errors.
QAVIT_TESTING    "1": the ops by themselves (csrc/testing) also in a build that is not in place; a wheel stays without them.
QAVIT_CUDA       "1": the GPU half of csrc/cuda too, with nvcc (from CUDA_HOME, PATH or /usr/local/cuda) and the headers of
                 cuBLAS (the toolkit's, or those of the package nvidia-cublas).
QAVIT_CUDA_ARCHS compute capabilities to compile for, "75 80 90" by default; newer GPUs compile the last one's PTX.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

ROOT = Path(__file__).resolve().parent
CORE = "qavit._core"
TESTING = "qavit._core_testing"
#: What each module is made of, below csrc/. The second one has a thread pool and a state of its own.
SOURCES = {
    CORE: ("base/*.c", "ops/*.c", "image/*.c", "models/*.c", "cuda/*.c", "python/*.c"),
    TESTING: ("base/*.c", "ops/*.c", "image/*.c", "cuda/*.c", "python/convert.c", "python/start.c", "testing/*.c"),
}
# Files that need CUDA's headers; the rest of csrc/cuda also runs its kernels on the host and is in every build.
GPU_FILES = {"csrc/cuda/gpu_check.c", "csrc/cuda/gpu_driver.c", "csrc/cuda/gpu_products.c"}
WARNINGS = [
    "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wpointer-arith",
    "-Wformat=2", "-Wvla",
]  # fmt: skip
# What products and sums are rounded to is said in the source: clang would fuse them wherever the CPU can.
LANGUAGE = ["-std=c11", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
MACROS = {
    "NPY_NO_DEPRECATED_API": "NPY_1_23_API_VERSION",
    "NPY_TARGET_VERSION": "NPY_1_23_API_VERSION",  # the oldest NumPy that pyproject.toml promises
    "_GNU_SOURCE": "1",
}


@dataclass(frozen=True)
class Platform:
    """What a system's tools are told beside that, and how it calls and finds a library."""

    hardening: tuple[str, ...]
    link: tuple[str, ...]
    library_suffix: str
    beside_module: str | None  # the run path that means the module's own folder
    macros: tuple[tuple[str, str], ...] = ()


FORTIFIED = ("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")
PLATFORMS = {
    "linux": Platform(FORTIFIED, ("-pthread", "-Wl,-z,relro,-z,now"), ".so", "$ORIGIN"),
    "darwin": Platform(FORTIFIED, ("-pthread",), ".dylib", "@loader_path"),
    # MinGW's gcc or clang. The library is a DLL, which the package has to tell Windows of.
    "win32": Platform((), ("-static-libgcc",), ".dll", None, (("__USE_MINGW_ANSI_STDIO", "1"),)),
}
PLATFORM = PLATFORMS.get(sys.platform, PLATFORMS["linux"])


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

    def finalize_options(self) -> None:
        """Leave out the module for tests where the build is not for a checkout."""
        super().finalize_options()
        if not self.wants_testing():
            self.extensions = [ext for ext in self.extensions if ext.name != TESTING]

    def wants_testing(self) -> bool:
        """Whether this is a build in place, or one that was asked for, and not of a wheel."""
        return bool(self.inplace or switch("QAVIT_TESTING")) and "bdist_wheel" not in self.distribution.commands

    def run(self) -> None:
        """Build; a wheel takes whatever lies in the folder, so what another build left there goes."""
        if not self.wants_testing():
            for left in Path(self.build_lib, *TESTING.split(".")[:-1]).glob(f"{TESTING.split('.')[-1]}.*"):
                left.unlink()
        super().run()

    def build_extensions(self) -> None:
        """Configure, compile, and put OpenBLAS beside the modules."""
        if self.compiler.compiler_type == "msvc":
            raise SystemExit(
                "qavit: the core is GNU C11 (vector types, target attributes), which MSVC does not compile; "
                "build it with MinGW's gcc or clang: setup.py build_ext --compiler=mingw32"
            )
        if not self.has_header("stb/stb_image.h"):
            self.warn("stb/stb_image.h was not found (Debian: libstb-dev); images will be decoded by Pillow")
        self.compile_together()
        super().build_extensions()
        self.place_library(Path(self.get_ext_fullpath(CORE)).parent)

    def build_extension(self, ext: Extension) -> None:
        """Configure and compile one module."""
        self.library = self.use_openblas(ext)
        if self.has_header("stb/stb_image.h"):
            ext.define_macros.append(("QV_HAVE_STB", "1"))
        if switch("QAVIT_CUDA"):
            self.use_cuda(ext)
        super().build_extension(ext)

    def compile_together(self) -> None:
        """Let the compiler work on as many files at once as there are CPUs, and once on what both modules have."""
        compile_in_turn, made = self.compiler.compile, {}

        def compile_each(sources: list[str], output_dir: str, **options: Any) -> list[str]:
            missing = [source for source in sources if source not in made]
            for source in missing:
                Path(output_dir, source).parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                objects = pool.map(lambda source: compile_in_turn([source], output_dir=output_dir, **options), missing)
                made.update(zip(missing, objects))
            return [path for source in sources for path in made[source]]

        self.compiler.compile = compile_each

    def copy_extensions_to_source(self) -> None:
        """For a build in place, the library goes where the module goes."""
        super().copy_extensions_to_source()
        self.place_library(ROOT / "qavit")

    def place_library(self, package: Path) -> None:
        """Copy the shipped OpenBLAS into package/.libs; a process that has the one there mapped keeps that one."""
        if self.library is not None:
            folder = package / ".libs"
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{self.library.name}.part"
            shutil.copy2(self.library, part)
            part.replace(folder / self.library.name)

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

        name = scipy_openblas32.get_library().removeprefix("lib")  # which it leaves there on Windows
        ext.include_dirs.append(scipy_openblas32.get_include_dir())
        ext.library_dirs.append(scipy_openblas32.get_lib_dir())
        ext.libraries.append(name)
        ext.define_macros.append(("QV_BLAS_SCIPY_PREFIX", "1"))
        if PLATFORM.beside_module is not None:
            ext.extra_link_args.append(f"-Wl,-rpath,{PLATFORM.beside_module}/.libs")
        return Path(scipy_openblas32.get_lib_dir(), f"lib{name}{PLATFORM.library_suffix}")

    def use_cuda(self, ext: Extension) -> None:
        """Compile the kernels with nvcc and add the files that know CUDA; the runtime is linked statically."""
        nvcc = find_nvcc()
        toolkit = nvcc.resolve().parents[1]
        headers = [path for path in (*cublas_headers(), toolkit / "include") if (path / "cublasLt.h").exists()]
        if not headers:
            raise SystemExit("QAVIT_CUDA: cublasLt.h was not found; install cuBLAS, or the package nvidia-cublas")
        object_file = Path(self.build_temp, "csrc", "cuda", "kernels.o")
        object_file.parent.mkdir(parents=True, exist_ok=True)
        archs = (switch("QAVIT_CUDA_ARCHS") or "75 80 90").split()
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        host = "-fPIC,-ffp-contract=off,-fvisibility=hidden,-fno-exceptions,-fno-threadsafe-statics,-Wall,-Wextra"
        host += ",-Werror" if switch("QAVIT_WERROR") else ""
        strict = ["-Werror", "all-warnings"] if switch("QAVIT_WERROR") else []
        command = [str(nvcc), "-std=c++17", "-O3", "-lineinfo", *strict, *targets, "-Xcompiler", host, "-Icsrc"]
        sources = ["csrc/cuda/kernels.cu", *relative("cuda/*.h"), "csrc/ops/rows.h", "setup.py"]
        if self.force or newer_group(sources, str(object_file)):
            self.spawn([*command, "-c", sources[0], "-o", str(object_file)])
        ext.depends.append(str(object_file))
        ext.extra_objects.append(str(object_file))
        ext.sources.extend(sorted(GPU_FILES))
        ext.define_macros.append(("QV_HAVE_CUDA", "1"))
        for path in dict.fromkeys((toolkit / "include", headers[0])):
            ext.extra_compile_args += ["-isystem", str(path)]
        folders = [folder for folder in (toolkit / "lib64", toolkit / "lib") if (folder / "libcudart_static.a").exists()]
        ext.library_dirs += [str(folder) for folder in folders]
        ext.libraries += ["cudart_static", "dl", "rt"]
        # Where the package nvidia-cublas puts the library that is opened at run time, beside qavit in site-packages.
        ext.extra_link_args.append("-Wl,-rpath,$ORIGIN/../nvidia/cu13/lib")
        ext.extra_link_args += [f"-Wl,-rpath,{folder}" for folder in dict.fromkeys((headers[0].parent / "lib", *folders))]

    def has_header(self, header: str) -> bool:
        """Whether the compiler finds a system header."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(f"#include <stdio.h>\n#include <{header}>\nint main(void) {{ return 0; }}\n")
            compiler = getattr(self.compiler, "compiler", ["cc"])
            return subprocess.run([*compiler, "-fsyntax-only", str(source)], capture_output=True).returncode == 0


def bring_licence() -> None:
    """Put the licences of the OpenBLAS that is shipped (its own, LAPACK's, libgfortran's) beside qavit's, for the wheel."""
    place = ROOT / "LICENSE-OpenBLAS.txt"
    if (switch("QAVIT_OPENBLAS") or "bundled") != "bundled":
        place.unlink(missing_ok=True)
        return
    found = importlib.metadata.distribution("scipy-openblas32")
    texts = [Path(str(found.locate_file(path))) for path in found.files or () if path.name == "LICENSE.txt"]
    if not texts:
        raise SystemExit("scipy-openblas32 came without its LICENSE.txt, which a wheel has to hold")
    if not place.exists() or place.read_bytes() != texts[0].read_bytes():
        place.write_bytes(texts[0].read_bytes())


def find_nvcc() -> Path:
    """CUDA's compiler."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home, "bin", "nvcc")] if home else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for path in candidates:  # a script on the PATH that calls the compiler does not tell where its headers are
        if path.exists() and (path.resolve().parents[1] / "include" / "cuda_runtime_api.h").exists():
            return path
    raise SystemExit("QAVIT_CUDA: no CUDA toolkit with nvcc was found; set CUDA_HOME to its folder")


def cublas_headers() -> list[Path]:
    """Where the package nvidia-cublas keeps its headers, if it is installed; also from within pip's isolated builds."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec is not None else []
    roots.append(str(Path(sysconfig.get_path("purelib"), "nvidia")))
    return [path for root in dict.fromkeys(roots) for path in sorted(Path(root).glob("cu*/include"))]


def extension(name: str) -> Extension:
    """One of the two modules."""
    compile_args, link_args = [*LANGUAGE, *WARNINGS], [*PLATFORM.link]
    macros: list[tuple[str, str | None]] = [*MACROS.items(), *PLATFORM.macros]
    sanitize = switch("QAVIT_SANITIZE")
    # A sanitizer's reports name lines; to follow every variable, too, doubles the time that its kernels take to compile.
    known = "-g1" if sanitize else "-g"
    if switch("QAVIT_DEBUG"):
        macros.append(("QV_DEBUG", "1"))
        compile_args += ["-O1", known, "-UNDEBUG"]
    elif sanitize:
        compile_args += ["-O1", known, "-fno-omit-frame-pointer"]
    else:
        compile_args += ["-O3", "-g1", *PLATFORM.hardening]
    if sanitize:
        kind = "thread" if sanitize.lower() == "thread" else "address,undefined"
        compile_args += [f"-fsanitize={kind}", "-fno-sanitize-recover=undefined"]
        link_args += [f"-fsanitize={kind}"]
    if switch("QAVIT_COVERAGE"):
        compile_args += ["--coverage", "-Og"]  # counters that threads may spoil: whether a line ran is enough
        link_args += ["--coverage"]
    if switch("QAVIT_WERROR"):
        compile_args.append("-Werror")
    return Extension(
        name,
        sources=[path for pattern in SOURCES[name] for path in relative(pattern) if path not in GPU_FILES],
        depends=relative("**/*.h"),
        include_dirs=["csrc", numpy.get_include()],
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


bring_licence()  # before setup(), which lists the licence files
setup(ext_modules=[extension(name) for name in SOURCES], cmdclass={"build_ext": BuildCore})
