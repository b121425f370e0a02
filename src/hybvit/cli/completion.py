"""`hybvit completion bash|zsh|fish`: a script that lets the shell complete commands, options, presets and models."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args, get_origin

from ..catalog import CATALOG
from ..config import TRACKERS, field_options
from ..hub import bundled
from ..presets import PRESETS
from .arguments import ArgumentParser

HELP_LENGTH = 70  # characters of an option's help that are shown beside it


class Option(NamedTuple):
    """An option, or a field of the configuration: its names, its help, and what may follow it."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    words: tuple[str, ...]  # the values that are known; without any, shells offer file names


class Command(NamedTuple):
    """A command with its options, and the words that it takes besides: file names, where none is known."""

    name: str
    summary: str
    options: list[Option]
    words: tuple[str, ...]


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit completion",
        description="Print a script that lets a shell complete hybvit's commands, options, presets and models. It is static: "
        "print it again after an update.",
        epilog="bash:  hybvit completion bash > ~/.local/share/bash-completion/completions/hybvit\n"
        "zsh:   hybvit completion zsh > FOLDER/_hybvit, for a folder that is in $fpath\n"
        "fish:  hybvit completion fish > ~/.config/fish/completions/hybvit.fish",
    )
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell that is to read it")
    return parser


def main(arguments: list[str]) -> None:
    from . import COMMANDS  # which imports this module

    shell = build_parser().parse_args(arguments).shell
    print(SHELLS[shell]([command_of(name, summary) for name, summary in COMMANDS.items()]), end="")


def command_of(name: str, summary: str) -> Command:
    """Read a command's parser."""
    parser = importlib.import_module(f".{name.replace('-', '_')}", __package__).build_parser()
    actions = parser._actions  # argparse has no public list
    options = [option_of(action) for action in actions if action.option_strings]
    options += [Option((f"--{word}",), words, False, ()) for word, words in EVERYWHERE.items()]
    if "--any." in (parser.usage or ""):
        options += [
            Option((option,), "", True, NAMES.get(option) or values_of(kind)) for option, kind in field_options().items()
        ]
    positional = [known_words(action) for action in actions if not action.option_strings]
    return Command(name, plain(summary), options, positional[0] if positional else ())


NAMES = {"--train.track": TRACKERS, "--data.name": tuple(CATALOG)}  # fields of any text, whose names can be listed
EVERYWHERE = {"quiet": "results, warnings and errors only", "debug": "show tracebacks"}


def option_of(action: argparse.Action) -> Option:
    return Option(tuple(action.option_strings), plain(action.help or ""), action.nargs != 0, known_words(action))


def known_words(action: argparse.Action) -> tuple[str, ...]:
    """The values of an argument: its choices, or what its metavar or its name stands for."""
    known: dict[str, Iterable[str] | Callable[[], Iterable[str]]] = {
        "PRESET": PRESETS, "MODEL": bundled(), "DATASET": CATALOG,
        "SUITES": suites, "ROWS": rows, "CORRUPTION": corruptions, "NAME": tables,
    }  # fmt: skip
    if action.choices is not None:
        return tuple(map(str, action.choices))
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    words = known.get(metavar, ())
    return tuple(words() if callable(words) else words)


def suites() -> Iterable[str]:
    from ..evaluation.suites import SUITES

    return SUITES


def rows() -> Iterable[str]:
    from ..training.bench.rows import ROWS

    return ROWS


def corruptions() -> Iterable[str]:
    from ..data.corruptions import CORRUPTIONS

    return CORRUPTIONS


def tables() -> Iterable[str]:
    from ..reproduce.studies import STUDIES
    from ..reproduce.tables import NAMES

    return [*NAMES, "all", *STUDIES]


def values_of(kind: Any) -> tuple[str, ...]:
    """The values of a field of this type, if they can be listed."""
    if kind is bool:
        return ("true", "false")
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    return tuple(value for part in get_args(kind) for value in values_of(part))


def plain(text: str) -> str:
    """Help without what zsh reads as more than text, and not too long."""
    text = " ".join(re.sub(r"[][`\\]", "", text.replace("%%", "%")).split())
    return text if len(text) <= HELP_LENGTH else text[:HELP_LENGTH].rpartition(" ")[0] + " ..."


def bash(commands: list[Command]) -> str:
    after: dict[tuple[str, ...], list[str]] = {}  # the words that may follow -> patterns of COMMAND:OPTION
    fields: dict[str, tuple[str, ...]] = {}
    for command in commands:
        for option in command.options:
            for name in option.names if option.takes_value else ():
                if "." in name:
                    fields[name] = option.words
                else:
                    after.setdefault(option.words, []).append(f"{command.name}:{name}")
    for name, words in fields.items():  # they are the same with every command
        after.setdefault(words, []).append(f"*:{name}")
    values = "\n".join(f'    {"|".join(patterns)}) words="{" ".join(words)}" ;;' for words, patterns in after.items())
    options = "\n".join(
        f'    {command.name}:-*) words="{" ".join(name for option in command.options for name in option.names)}" ;;\n'
        f'    {command.name}:*) words="{" ".join(command.words)}" ;;'
        for command in commands
    )
    return f"""# Completion of hybvit for bash, written by `hybvit completion bash`.
_hybvit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words=
    if [[ $word == = ]]; then  # --option=VALUE is three words for bash
        word=
    elif [[ $before == = ]]; then
        before=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    if ((COMP_CWORD == 1)); then
        words="{" ".join(command.name for command in commands)}"
    else
    case ${{COMP_WORDS[1]}}:$before in
{values}
    *) case ${{COMP_WORDS[1]}}:$word in
{options}
    esac ;;
    esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _hybvit hybvit  # where no word fits: names of files
"""


def zsh(commands: list[Command]) -> str:
    described = "\n".join(f"    {shlex.quote(f'{command.name}:{command.summary}')}" for command in commands)
    cases = []
    for command in commands:
        lines = [zsh_option(name, option) for option in command.options for name in option.names]
        words = f"{{compadd {' '.join(command.words)}; _files}}" if command.words else "_files"
        cases.append(f"  {command.name})\n    _arguments {' '.join(lines)} '*:argument:{words}' ;;")
    listed = "\n".join(cases)
    return f"""#compdef hybvit
# Completion of hybvit for zsh, written by `hybvit completion zsh`.
_hybvit() {{
  local -a commands
  commands=(
{described}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  shift words
  (( CURRENT-- ))
  case $words[1] in
{listed}
  esac
}}
if [[ $funcstack[1] == _hybvit ]]; then
  _hybvit "$@"
else
  compdef _hybvit hybvit
fi
"""


def zsh_option(name: str, option: Option) -> str:
    words = f"({' '.join(option.words)})" if option.words else "_files"
    equals = "=" if name.startswith("--") else ""  # --option=VALUE too
    return shlex.quote(f"{name}{equals}[{option.help}]:value:{words}" if option.takes_value else f"{name}[{option.help}]")


def fish(commands: list[Command]) -> str:
    taken: dict[Option, list[str]] = {}  # by which commands
    for command in commands:
        for option in command.options:
            taken.setdefault(option, []).append(command.name)
    lines = ["# Completion of hybvit for fish, written by `hybvit completion fish`."]
    for command in commands:
        lines.append(f"complete -c hybvit -n __fish_use_subcommand -f -a {command.name} -d {quoted_for_fish(command.summary)}")
        if command.words:
            here = f"complete -c hybvit -n '__fish_seen_subcommand_from {command.name}'"
            lines.append(f"{here} -a '{' '.join(command.words)}'")
    for option, names in taken.items():
        spelled = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
        value = f" -x -a '{' '.join(option.words)}'" if option.words else " -r" if option.takes_value else ""
        said = f" -d {quoted_for_fish(option.help)}" if option.help else ""
        lines.append(f"complete -c hybvit -n '__fish_seen_subcommand_from {' '.join(names)}' {spelled}{value}{said}")
    return "\n".join(lines) + "\n"


def quoted_for_fish(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[list[Command]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
