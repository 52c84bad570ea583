"""`diffunet completion` prints the script by which a shell completes what is typed after `diffunet`.

The scripts hold all that there is to complete, so that nothing is started when Tab is pressed.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from diffunet.commands import signature
from diffunet.commands.progress import tell

SHORT = 70
"""The most characters of what is said of an option."""

FILES = ("PATH", "PICTURE")
"""The words for a value that is a file or a folder."""


@dataclass(frozen=True)
class Option:
    """An option: how it is typed, what it does, whether it takes a value, and the values to choose from."""

    name: str
    words: str
    takes: Literal["nothing", "value", "file"]
    choices: tuple[str, ...] = ()


def completion(
    shell: Annotated[
        Positional[Literal["bash", "zsh", "fish"]],
        arg(metavar="SHELL", help="Shell to complete in: bash, zsh or fish."),
    ],
    /,
) -> None:
    """Print the script by which a shell completes commands, options and choices.

    The guide the-terminal says where each shell looks for it: diffunet guide the-terminal

    Example: diffunet completion bash > completion.bash; source completion.bash
    """
    tell({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](options()).rstrip("\n"))


def options() -> dict[str, list[Option]]:
    """Return the options of each command."""
    from diffunet.commands.cli import COMMANDS

    known = dict[str, list[Option]]()
    for name, (place, _) in COMMANDS.items():
        module = importlib.import_module(f"diffunet.{place}")
        target = module.Train if name == "train" else getattr(module, name)
        known[name] = [_option(each) for each in signature.options(target).values() if not each.is_argument]
    return known


def _option(option: signature.Option) -> Option:
    """Return what is completed of an option; of a switch that is on, the name that turns it off."""
    words = option.help.partition(". ")[0].rstrip(".")
    words = words if len(words) <= SHORT else f"{words[:SHORT].rpartition(' ')[0]} ..."
    if option.kind is bool and option.default is True:
        return Option(option.off, f"not: {words}", "nothing")
    choices = tuple(signature.choices(option.kind))
    takes: Literal["nothing", "value", "file"] = "value" if option.metavar else "nothing"
    return Option(option.name, words, "file" if option.metavar in FILES else takes, choices)


def _bash(known: dict[str, list[Option]]) -> str:
    chosen = [
        f'      "{command} {option.name}") words="{" ".join(option.choices)}" ;;\n'
        for command, there in known.items() for option in there if option.choices
    ]  # fmt: skip
    named = [f'        {name}) words="{" ".join(each.name for each in there)}" ;;\n' for name, there in known.items()]
    return f"""# bash completion of diffunet, made by: diffunet completion bash
_diffunet() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words=
  COMPREPLY=()
  if [[ $current == "=" ]]; then current=; fi
  if [[ $before == "=" ]]; then before=${{COMP_WORDS[COMP_CWORD - 2]}}; fi
  if ((COMP_CWORD == 1)); then
    words="{" ".join(known)}"
  else
    case "${{COMP_WORDS[1]}} $before" in
{"".join(chosen)}      *)
        if [[ $current != -* ]]; then return; fi # a file, which bash completes itself
        case ${{COMP_WORDS[1]}} in
{"".join("  " + line for line in named)}        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _diffunet diffunet
"""


def _zsh(known: dict[str, list[Option]]) -> str:
    from diffunet.commands.cli import COMMANDS

    def spec(option: Option) -> str:
        words = re.sub(r"([\\\[\]:])", r"\\\1", option.words)
        values = f"({' '.join(option.choices)})" if option.choices else "_files" if option.takes == "file" else " "
        return _quoted(f"{option.name}[{words}]" + ("" if option.takes == "nothing" else f":value:{values}"))

    commands = "\n".join(f"      {_quoted(f'{name}:{COMMANDS[name][1]}')}" for name in known)
    cases = "\n".join(
        f"    {name})\n      _arguments -S {' '.join(map(spec, there))} '*:file:_files' ;;"
        for name, there in known.items()
    )
    return f"""#compdef diffunet
# zsh completion of diffunet, made by: diffunet completion zsh
_diffunet() {{
  if (( CURRENT == 2 )); then
    local -a commands=(
{commands}
    )
    _describe command commands
    return
  fi
  shift words
  (( CURRENT-- ))
  case $words[1] in
{cases}
  esac
}}
if [[ $funcstack[1] == _diffunet ]]; then
  _diffunet "$@"
else
  compdef _diffunet diffunet
fi
"""


def _fish(known: dict[str, list[Option]]) -> str:
    from diffunet.commands.cli import COMMANDS

    def line(command: str, option: Option) -> str:
        takes = {"nothing": "", "value": " -x", "file": " -r -F"}[option.takes]
        values = f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else takes
        where = f"-n '__fish_seen_subcommand_from {command}'"
        return f"complete -c diffunet {where} -l {option.name[2:]}{values} -d {_quoted(option.words, fish=True)}"

    commands = [
        f"complete -c diffunet -n __fish_use_subcommand -f -a {name} -d {_quoted(COMMANDS[name][1], fish=True)}"
        for name in known
    ]
    lines = [line(name, option) for name, there in known.items() for option in there]
    return "\n".join(["# fish completion of diffunet, made by: diffunet completion fish", *commands, *lines])


def _quoted(text: str, fish: bool = False) -> str:
    """Return a text as one word of a shell, in single quotes."""
    return "'" + (text.replace("\\", "\\\\").replace("'", "\\'") if fish else text.replace("'", "'\\''")) + "'"
