"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from browser import Browser

try:
    from hypothesis import settings
except ImportError:  # in environments for a few of the tests
    pass
else:
    # The same examples in every run, so that a change that is not at fault does not fail; `make nightly` draws others.
    settings.register_profile("suite", derandomize=True, deadline=None)
    settings.load_profile("default" if "QAVIT_TEST_EXAMPLES" in os.environ else "suite")

# A suite that was started in the background may ignore Ctrl-C, and so would the processes that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch: several workers share the cores


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A page in a headless Chromium, for all tests of a file."""
    from browser import PROGRAM, Browser  # with NumPy and Pillow, which not every environment of a few tests has

    if PROGRAM is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    opened = Browser()
    yield opened
    opened.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: Any) -> None:
    """Say behind each test's name at which level of CPU features it ran, where that was chosen for a worker."""
    worker = getattr(report, "node", None)
    level = ((worker and worker.gateway.spec.env) or {}).get("QAVIT_CPU")
    if level:
        file, line, name = report.location
        report.nodeid, report.location = f"{report.nodeid} at {level}", (file, line, f"{name} at {level}")
