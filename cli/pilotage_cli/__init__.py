"""The command line `pilotage`: the one place that knows both the operator and the runtime."""

import time

STARTED = time.monotonic()
"""When this process began, but for the interpreter's own start."""
