"""What holds for every test."""

from __future__ import annotations

import signal

# A suite that was started in the background may ignore Ctrl-C, and so would the processes that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
