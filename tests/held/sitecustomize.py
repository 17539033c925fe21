"""On a Python path, it lets a run of a data set write a few parts and then wait, so that what stops it never comes late."""

import os
import time
from pathlib import Path

from qavit.data import _worker

count, gate = os.environ["HELD_PARTS"], Path(os.environ["HELD_GATE"])
write_part = _worker.write_part


def write_and_wait(path, *arguments):
    write_part(path, *arguments)
    while len(list(Path(path).parent.glob("*.parquet"))) >= int(count) and not gate.exists():
        time.sleep(0.005)


_worker.write_part = write_and_wait
