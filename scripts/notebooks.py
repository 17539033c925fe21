"""Run notebooks and write them back with their outputs, pictures made small: `python scripts/notebooks.py [NAME ...]`."""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
WIDEST = 1200


def small(png: str) -> str:
    """A PNG as JPEG, both base64, no wider than a notebook shows it."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs with pieces of one stream put together: where it was cut is chance."""
    whole: list[Any] = []
    for output in outputs:
        last = whole[-1] if whole else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            whole.append(output)
    return whole


def main(names: list[str]) -> None:
    """Execute the named notebooks, or all, with the package of this checkout."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
        ).execute()
        raw = len(nbformat.writes(notebook)) // 1024
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = joined(cell.outputs)
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    output.data["image/jpeg"] = small(output.data.pop("image/png"))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size // 1024} KB, {raw} KB as it ran", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
