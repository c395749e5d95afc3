"""What every test can rely on, however the run was started."""

from __future__ import annotations

import signal

# A shell that starts the run in the background has it ignore SIGINT, and so every program that it starts;
# several tests interrupt theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)
