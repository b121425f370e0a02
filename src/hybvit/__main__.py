"""`hybvit` and `python -m hybvit`: the command line."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line -> the exit code.

    Ctrl-C while the first modules are imported ends it without a traceback, since there is nothing to close yet.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as in the background of a script
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:  # before or after the command itself
        return 130


if __name__ == "__main__":
    sys.exit(main())
