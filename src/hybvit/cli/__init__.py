"""The command line: `hybvit COMMAND ...`. A command is a module with ``main(arguments)``, imported on demand."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from .. import __version__, errors
from .output import guarded, plain_warnings

COMMANDS = {
    "train": "train a preset, or resume an interrupted run",
    "finetune": "train a model further on your images, with their classes",
    "sample": "generate images, as one grid or as single files",
    "classify": "classify image files, and say how much they are like the training images",
    "calibrate": "let a model know how sure it may be, from images that it was not trained on",
    "edit": "inpaint, vary, interpolate or change the class of image files, with the answers before and after",
    "export": "write a model as ONNX or torch.export graphs that run without hybvit",
    "serve": "open a page in the browser on which a model can be tried, with a JSON API",
    "evaluate": "evaluate a model and write results.json and report.html",
    "reproduce": "train, evaluate and render the paper's tables and figures",
    "push": "upload a model to the Hugging Face hub, with a card of its results",
    "presets": "list the presets",
    "datasets": "list the known data sets, whether they are present, and how to get the others",
    "show-data": "write pictures of a preset's images under augmentation, diffusion and corruptions",
    "show": "print a preset's full configuration",
    "doctor": "say what this machine and this installation offer, and what would mend each trouble",
    "completion": "print a script that lets bash, zsh or fish complete commands, options, presets and models",
    "bench": "time training and inference beside other systems, and as a share of the machine's peak",
}
WRITES_FILES = (
    "train",
    "finetune",
    "calibrate",
    "evaluate",
    "export",
    "reproduce",
)  # they go on when nobody reads what they say: their results are files
FILES_ONLY = (*WRITES_FILES, "sample", "edit", "show-data")  # what they print is not their result: --quiet leaves it out
EXIT_CODES = (
    (errors.ConfigError, 2),
    (errors.DataError, 3),
    (errors.DivergedError, 4),
    (errors.CheckpointError, 5),
    (errors.Interrupted, 75),
    (ValueError, 2),  # method/ raises it with the name of the wrong argument
)
EXIT_LEGEND = """exit codes: 0 done, 1 internal error, 2 usage or configuration, 3 data missing or corrupt,
            or output not written, 4 diverged, 5 checkpoint unusable, 75 interrupted with the state saved,
            130 interrupted with nothing to save, 141 the reader of the output left"""


def usage() -> str:
    commands = "\n".join(f"  {command:<12}{words}" for command, words in COMMANDS.items())
    return f"""usage: hybvit COMMAND ... [--quiet] [--debug]

One Vision Transformer that classifies images, generates them, and estimates their likelihood.

{commands}

`hybvit COMMAND --help` lists the options of a command; --quiet shows results, warnings and errors only, --debug
tracebacks; --version prints the version. Commands with --json print that alone to standard output.
{EXIT_LEGEND}"""


def raised_by_us(error: BaseException) -> bool:
    """Whether hybvit itself raised the error: a library's ValueError is not a message for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent.parent)


def main(arguments: list[str] | None = None) -> int:
    """Run one command -> the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug, quiet = "--debug" in arguments, "--quiet" in arguments
    arguments = [word for word in arguments if word not in ("--debug", "--quiet")]
    os.environ["MPLBACKEND"] = "agg"  # plots are files; an unknown backend would end the command
    command = arguments[0] if arguments and not {"-h", "--help"} & {*arguments} else ""
    goes_on = command in WRITES_FILES
    silent = quiet and command in FILES_ONLY and not {"--json", "--dry-run"} & {*arguments}
    with guarded(goes_on, quiet, silent) as out, plain_warnings(), stopped_by_signals():
        code, leaving = 0, None
        try:
            code = run(arguments, debug)
        except SystemExit as left:  # argparse, after --help
            leaving = left
        try:
            out.flush()
        except errors.DataError as error:
            return report(error, debug)
        if leaving is not None:
            raise leaving
        if out.lost is None or not goes_on:
            return code
        done = isinstance(out.lost, BrokenPipeError) and command in ("train", "finetune")
        print(f"hybvit: {out.message()}; the work went on without it", file=sys.stderr)
        return code if code or done else 3


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, with its files closed and a line that says so.

    Training has a handler of its own. A signal that is ignored stays so: nohup ignores SIGHUP.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in errors.STOPPING if number != signal.SIGINT}
    before = {number: handler for number, handler in before.items() if handler == signal.SIG_DFL}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(arguments: list[str], debug: bool) -> int:
    """Run one command -> the exit code, before it is known whether its output arrived."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            return 0 if arguments else 2
        if arguments[0] == "--version":
            print(f"hybvit {__version__}")
            return 0
        if arguments[0] not in COMMANDS:
            hint = errors.did_you_mean(arguments[0], COMMANDS) or f": it is one of {', '.join(COMMANDS)}"
            raise errors.ConfigError(f"unknown command {arguments[0]!r}{hint}")
        check_folder()
        importlib.import_module(f".{arguments[0].replace('-', '_')}", __name__).main(arguments[1:])
        return 0
    except KeyboardInterrupt:
        print("hybvit: interrupted", file=sys.stderr)
        return 130
    except SystemExit as left:
        place = traceback.extract_tb(left.__traceback__)[-1]
        if Path(place.filename).name == "argparse.py" or raised_by_us(left):  # after --help, and in processes beside the first
            raise
        return report(errors.ConfigError(f"{place.filename}, line {place.lineno}: ended the program before it was done"), debug)
    except Exception as error:
        return report(error, debug)


def check_folder() -> None:
    """Raises DataError where the current folder was deleted: nothing can be written to it, and torch's MKL ends the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise errors.DataError(f"the current folder: {error.strerror}: change to one that exists") from None


def report(error: Exception, debug: bool) -> int:
    """Say in one line what went wrong -> the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.strerror:  # what the system refuses: a name too long, a folder without permission
        error = errors.DataError(f"{error.filename or 'the system says'}: {error.strerror}")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(__name__.partition(".")[0]):
        missing = error.name.partition(".")[0]
        error = errors.ConfigError(f"needs {missing}, which is not installed; `hybvit doctor` lists what is missing")
    if isinstance(error, MemoryError) or errors.is_used_up(error):
        what = "threads" if "thread" in str(error) else "memory"
        error = errors.ConfigError(f"not enough {what} ({' '.join(str(error).split())[:120]}): free some, or ask for less")
    for kind, code in EXIT_CODES:
        if isinstance(error, kind) and (kind is not ValueError or raised_by_us(error)):
            print(f"hybvit: {' '.join(str(error).split())}", file=sys.stderr)
            return code
    message = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"hybvit: internal error: {message} (--debug shows where; please report it)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
