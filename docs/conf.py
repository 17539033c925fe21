"""The documentation site: `make docs` builds it into build/docs/html, warnings as errors, without network."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

import qavit
from qavit.cli._main import make_parser

ROOT = Path(__file__).resolve().parent.parent

project = "qavit"
author = "The qavit authors"
release = version = qavit.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "index"
default_role = "code"

nb_execution_mode = "off"  # notebooks are shown as they are committed; tests run them
myst_heading_anchors = 3

autodoc_typehints = "none"  # docstrings say types, shapes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True  # an attribute that is also a property is described once
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"qavit {version}"
html_show_sphinx = False
html_show_sourcelink = False


def readme(name: str = "README.md", up: str = "") -> str:
    """A README, its links as they are from this folder or, by `up`, from one below."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("](README.md", f"]({up}readme.md").replace("](README.zh.md", f"]({up}zh/index.md")
    text = text.replace("](docs/zh/", "](" if up else "](zh/").replace("](docs/", f"]({up}")
    text = text.replace("](notebooks/", f"]({up}notebooks/")
    return re.sub(r"\]\((CONTRIBUTING|SECURITY|CHANGELOG)\.md", lambda link: f"]({up}{link[1].lower()}.md", text)


def help_of(command: str) -> str:
    """What `qavit COMMAND --help` prints."""
    os.environ["COLUMNS"] = "92"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        make_parser().parse_args([*command.split(), "--help"])
    return f"```text\n{said.getvalue().strip()}\n```"


def commands() -> str:
    """A section for each command of the parser, whichever there are."""
    names = next(action.choices for action in make_parser()._actions if action.dest == "command")
    assert names is not None
    return "\n\n".join(f"## qavit {name}\n\n{help_of(name)}" for name in names)


def other_pages() -> str:
    """The pages that index.md does not name."""
    named = re.findall(r"[\w/]+", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    return "\n".join(sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem not in ["index", *named]))


def fill_in(app: Any, page: str, source: list[str]) -> None:
    """Put in what is written elsewhere: the README, and the command line's help."""
    parts = {
        "readme": readme, "readme zh": lambda: readme("README.zh.md", "../"), "other pages": other_pages,
        "help": lambda: help_of(""), "commands": commands,
    }  # fmt: skip
    source[0] = re.sub(rf"^<!-- ({'|'.join(parts)}) -->$", lambda mark: parts[mark[1]](), source[0], flags=re.M)


def bring_notebooks() -> None:
    """Put the notebooks where pages lie; one that has not changed is left alone."""
    folder = ROOT / "docs" / "notebooks"
    folder.mkdir(exist_ok=True)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        copy = folder / path.name
        if not copy.is_file() or copy.read_bytes() != path.read_bytes():
            copy.write_bytes(path.read_bytes())


def setup(app: Any) -> None:
    """Called by Sphinx."""
    bring_notebooks()
    app.connect("source-read", fill_in)
