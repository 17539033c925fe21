"""Checks the Python code of README.md and docs/USAGE.md with mypy --strict, as a user would: against what is installed.

A name that qavit does not have must be an error there, or nothing that was found to be right means anything.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/USAGE.md")
#: What a document's code takes from its reader.
GIVEN = "from typing import Any\n\nimport numpy as np\n\nimages: Any\nquestions: list[str]\npnp_vqa_model: Any\n"


def check(folder: Path, name: str, code: str) -> subprocess.CompletedProcess[str]:
    """What mypy says of the code as a file of that name."""
    (folder / name).write_text(code)
    cache = ROOT / "build" / "mypy_types"
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={cache}", name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def main() -> int:
    """0 if all of it is right."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = check(Path(folder), "wrong.py", 'import qavit\n\nqavit.laod("demo")\n')
        if 'has no attribute "laod"' not in wrong.stdout:
            print(f"mypy does not see the types of the installed qavit:\n{wrong.stdout}{wrong.stderr}")
            return 1
        status = 0
        for document in DOCUMENTS:
            blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)
            done = check(Path(folder), Path(document).stem.lower() + ".py", "\n".join([GIVEN, *blocks]))
            print(done.stdout + done.stderr or f"types: the {len(blocks)} pieces of {document} are right\n", end="")
            status |= done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
