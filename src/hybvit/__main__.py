"""`hybvit` and `python -m hybvit`: the command line."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line -> the exit code.

    Ctrl-C while the first modules are imported, or while Python ends, shows no traceback: there is nothing to close yet, or any
    more.
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
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
