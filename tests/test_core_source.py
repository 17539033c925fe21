"""What every file of csrc/ keeps to, checked on its text: layers, no process-wide state, errors by status, sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
MAX_LINES, MAX_FUNCTION, MAX_COLUMNS = 600, 80, 130

# What still breaks a rule, and goes.
LEFT = {"models/blip_itm.c: N lines", "models/vit.c: N lines"}
# Which folders' headers a folder may include: one way only.
BELOW = {
    "base": {"base"},
    "image": {"image", "base"},
    "ops": {"ops", "image", "base"},
    "models": {"models", "ops", "base"},
    "cuda": {"cuda", "ops", "image", "base"},
    "python": {"python", "models", "image", "cuda", "ops", "base"},
    "testing": {"testing", "python", "cuda", "ops", "base"},
}
# State that has to be one for the whole process, and why.
PROCESS_STATE = {
    "base/threads.c": {"pool"},  # the one thread pool
    "base/cpu.c": {"known"},  # the CPU's features, which are always found to be the same
    "image/decode.c": {"budget"},  # a thread's own: what stb_image's allocator, which has no context, may ask for
    "base/memory.c": {"allocations_until_failure"},  # the failing allocator of debug builds
}
# What CPython and NumPy take as tables that are not const.
PYTHON_TABLES = {
    "PyMethodDef", "PyGetSetDef", "PyMemberDef", "PyType_Slot", "PyType_Spec", "PyModuleDef_Slot", "struct PyModuleDef",
    "char *",
}  # fmt: skip
FORBIDDEN = re.compile(r"\b(exit|_exit|_Exit|abort|printf|fprintf|vprintf|puts|putchar|perror|system|setenv)\s*\(")
# What only the two files that know an operating system may name.
OF_SYSTEMS = re.compile(r"(pthread|sched|unistd|windows|process)\.h|sys/.*")
OF_SYSTEMS_CALLED = re.compile(r"\b(clock_gettime|pthread_\w+|sched_\w+|sysconf|getpid|madvise|mmap|posix_memalign)\s*\(")
DOORS = {"base/os_posix.c", "base/os_windows.c"}
KEYWORDS = re.compile(r"^(typedef|extern|_Static_assert)\b")


def bare(source: str) -> str:
    """The code alone: comments, literals and preprocessor lines blanked, line breaks kept."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    source = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, source, flags=re.DOTALL)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, source, flags=re.MULTILINE)


def statements(code: str) -> list[tuple[int, str, bool]]:
    """Line, text up to its ; or {, and whether it stands at file scope, of each statement that declares something."""
    found, depth, parens, start = [], 0, 0, 0
    for i, character in enumerate(code):
        if character in "()":
            parens += 1 if character == "(" else -1
        elif character in "{};" and parens == 0:
            text = code[start:i].strip()
            if text and character != "}" and (depth == 0 or text.startswith("static ")):
                found.append((code.count("\n", 0, i - len(code[start:i].lstrip())) + 1, text, depth == 0))
            depth += {"{": 1, "}": -1}.get(character, 0)
            start = i + 1
    return found


def mutable_variable(text: str) -> tuple[str, str] | None:
    """Type and name where the statement defines a variable that can be written to."""
    declaration = re.sub(r"__attribute__\s*\(\(.*?\)\)", " ", text).split("=")[0]
    declaration = re.sub(r"\[[^\]]*\]", "", declaration).strip()
    if KEYWORDS.match(declaration) or re.search(r"^[^(]*\((?!\*)", declaration):
        return None
    if re.fullmatch(r"(struct|union|enum)(\s+\w+)?", declaration):
        return None
    pointer = re.search(r"\(\*\s*(const\s+)?(\w+)", declaration)
    if pointer:
        return None if pointer.group(1) else ("function pointer", pointer.group(2))
    match = re.search(r"(\w+)\W*$", declaration)
    kind = re.sub(r"^static\s+", "", declaration[: match.start()].strip()) if match else ""
    if match is None or not kind or "const" in kind.split("*")[-1].split():
        return None
    return kind, match.group(1)


def anonymous_struct_name(code: str, line: int) -> str | None:
    """The variable behind `static struct {...} name`, which opens at the line."""
    rest = "\n".join(code.split("\n")[line - 1 :])
    match = re.match(r"\s*static\s+(?:_Thread_local\s+)?struct\s*\{[^{}]*\}\s*(\w+)", rest)
    return match.group(1) if match else None


def problems(name: str, source: str) -> list[str]:
    """Everything that is wrong with the file csrc/name, a line each."""
    folder, code, found = name.split("/")[0], bare(source), []
    lines = source.split("\n")
    if len(lines) > MAX_LINES:
        found.append(f"{name}: {len(lines)} lines")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            found.append(f"{name}:{number}: {len(line)} columns")
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            found.append(f"{name}:{number}: unfinished")
        include = re.match(r'\s*#\s*include\s*[<"]([^>"]+)', line)
        if include:
            header = include.group(1)
            if folder not in ("python", "testing") and (header == "Python.h" or header.startswith("numpy/")):
                found.append(f"{name}:{number}: {header} outside csrc/python")
            if OF_SYSTEMS.fullmatch(header) and name not in DOORS:
                found.append(f"{name}:{number}: {header} outside base/os_*.c")
            if header.split("/")[0] in BELOW and header.split("/")[0] not in BELOW[folder]:
                found.append(f"{name}:{number}: {folder} includes {header}")
    for match in FORBIDDEN.finditer(code):
        found.append(f"{name}:{code.count(chr(10), 0, match.start()) + 1}: calls {match.group(1)}")
    for match in OF_SYSTEMS_CALLED.finditer(code) if name not in DOORS else ():
        found.append(f"{name}:{code.count(chr(10), 0, match.start()) + 1}: calls {match.group(1)} outside base/os_*.c")
    for line, text, _ in statements(code):
        variable = mutable_variable(text)
        if re.fullmatch(r"static\s+(_Thread_local\s+)?struct", text):
            variable = ("struct", anonymous_struct_name(code, line) or "?")
        if variable is None or variable[1] in PROCESS_STATE.get(name, ()):
            continue
        if folder not in ("python", "testing") or variable[0] not in PYTHON_TABLES:
            found.append(f"{name}:{line}: {variable[1]} is state of the whole process")
    start = None
    for number, line in enumerate(code.split("\n"), 1):
        if start is None and re.match(r"[A-Za-z_].*\(", line) and not line.rstrip().endswith(";"):
            start = number
        elif line.startswith("}") or (start and line.rstrip().endswith(";") and not line.startswith((" ", "\t"))):
            if start is not None and number - start + 1 > MAX_FUNCTION:
                found.append(f"{name}:{start}: a function of {number - start + 1} lines")
            start = None
    return found


def core_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".c", ".h"})


@pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not beside the tests")
def test_the_core_keeps_to_its_rules() -> None:
    assert len(core_files()) > 30
    every = [p for path in core_files() for p in problems(path.relative_to(CSRC).as_posix(), path.read_text())]
    assert {re.sub(r"\d+", "N", problem) for problem in every} <= LEFT, "\n".join(every)


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("models/a.c", "#include <Python.h>\n", "models/a.c:1: Python.h outside csrc/python"),
        ("ops/a.c", '#include "models/vit.h"\n', "ops/a.c:1: ops includes models/vit.h"),
        ("base/a.c", "void f(void) {\n    exit(1);\n}\n", "base/a.c:2: calls exit"),
        ("base/a.c", 'void f(void) {\n    fprintf(stderr, "a");\n}\n', "base/a.c:2: calls fprintf"),
        ("ops/a.c", "#include <pthread.h>\n", "ops/a.c:1: pthread.h outside base/os_*.c"),
        ("cuda/a.h", "#include <sys/types.h>\n", "cuda/a.h:1: sys/types.h outside base/os_*.c"),
        ("ops/a.c", "void f(void) {\n    clock_gettime(a, b);\n}\n", "ops/a.c:2: calls clock_gettime outside base/os_*.c"),
        ("ops/a.c", "static float scratch[64];\n", "ops/a.c:1: scratch is state of the whole process"),
        ("ops/a.c", "int counter = 0;\n", "ops/a.c:1: counter is state of the whole process"),
        ("ops/a.c", "static int (*hook)(int);\n", "ops/a.c:1: hook is state of the whole process"),
        ("ops/a.c", "static const char *name = 0;\n", "ops/a.c:1: name is state of the whole process"),
        ("ops/a.c", "void f(void) {\n    static int seen;\n}\n", "ops/a.c:2: seen is state of the whole process"),
        ("ops/a.c", "static struct {\n    int a;\n} all;\n", "ops/a.c:1: all is state of the whole process"),
        ("python/a.c", "static PyObject *cache;\n", "python/a.c:1: cache is state of the whole process"),
        ("ops/a.c", "void f(void) {\n" + "    g();\n" * 79 + "}\n", "ops/a.c:1: a function of 81 lines"),
        ("ops/a.c", "\n" * 600, "ops/a.c: 601 lines"),
        ("ops/a.c", "/* " + "a" * 130 + " */\n", "ops/a.c:1: 136 columns"),
        ("ops/a.c", "/* TODO */\n", "ops/a.c:1: unfinished"),
    ],
)
def test_the_rules_see_what_breaks_them(name: str, source: str, problem: str) -> None:
    assert problem in problems(name, source)


@pytest.mark.parametrize(
    "source",
    [
        '/* exit(1) */\nstatic const char *const names[] = {"printf("};\n',
        "typedef struct {\n    int a;\n} thing;\nextern const thing known_things;\nstruct list {\n    int b;\n};\n",
        "static inline int f(int a) {\n    return a;\n}\nstatic int g(void);\nconst int table[2] = {1, 2};\n",
        "static int f(int (*add)(int), int a) {\n    return add(a);\n}\nstatic int (*const hook)(int) = 0;\n",
        "#define LOOP(a) \\\n    static int a;\nenum { A, B };\n",
        '__attribute__((target("avx2"))) static void f(float *x) {\n    for (int i = 0; i < 3; i++) {\n    }\n}\n',
        "void f(void) {\n" + "    g();\n" * 78 + "}\n",
        "#if A\nvoid f(int a,\n       int b) {\n"
        + "    g();\n" * 60
        + "}\n#endif\nvoid h(void) {\n"
        + "    g();\n" * 60
        + "}\n",
    ],
)
def test_the_rules_let_good_code_pass(source: str) -> None:
    assert problems("ops/a.c", source) == []
