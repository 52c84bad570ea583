"""`diffunet completion` prints the script by which a shell completes what is typed after `diffunet`.

The scripts hold all that there is to complete, so that nothing is started when Tab is pressed.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from diffunet import guides, pretrained
from diffunet.commands import signature
from diffunet.commands.progress import tell

SHORT = 70
"""The most characters of what is said of an option."""

FILES = ("PATH", "PICTURE", "MODEL")
"""The words for a value that is a file or a folder, or may be."""


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


def named(metavar: str) -> tuple[str, ...]:
    """Return the names that there are for a value that the help calls so; none where there are files alone."""
    from diffunet.config import preset_names
    from diffunet.data import builtin

    models, presets = pretrained.names(), preset_names()
    words = {"MODEL": models, "SOURCE": models, "MODEL_OR_PRESET": [*models, *presets], "PRESET": presets}
    return tuple((words | {"TOPIC": [*guides.TOPICS], "DATASET": [*builtin.DATASETS]}).get(metavar, ()))


def arguments() -> dict[str, tuple[str, ...]]:
    """Return of each command the names that its arguments may be; files are others."""
    found = dict[str, tuple[str, ...]]()
    for name, target in _targets().items():
        known = [each for each in signature.options(target).values() if each.is_argument]
        found[name] = tuple(word for each in known for word in (*signature.choices(each.kind), *named(each.metavar)))
    return found


def options() -> dict[str, list[Option]]:
    """Return the options of each command."""
    return {
        name: [_option(each) for each in signature.options(target).values() if not each.is_argument]
        for name, target in _targets().items()
    }


def _targets() -> dict[str, Any]:
    """Return what takes the options of each command."""
    from diffunet.commands.cli import COMMANDS

    modules = {name: importlib.import_module(f"diffunet.{place}") for name, (place, _) in COMMANDS.items()}
    return {name: getattr(module, "Train" if name == "train" else name) for name, module in modules.items()}


def _option(option: signature.Option) -> Option:
    """Return what is completed of an option; of a switch that is on, the name that turns it off."""
    words = option.help.partition(". ")[0].rstrip(".")
    words = words if len(words) <= SHORT else f"{words[:SHORT].rpartition(' ')[0]} ..."
    if option.kind is bool and option.default is True:
        return Option(option.off, f"not: {words}", "nothing")
    choices = tuple(signature.choices(option.kind)) or named(option.metavar)
    takes: Literal["nothing", "value", "file"] = "value" if option.metavar else "nothing"
    return Option(option.name, words, "file" if option.metavar in FILES else takes, choices)


def _bash(known: dict[str, list[Option]]) -> str:
    also = {"file": " files=yes", "value": "", "nothing": ""}
    chosen = [
        f'      "{command} {option.name}") words="{" ".join(option.choices)}"{also[option.takes]} ;;\n'
        for command, there in known.items() for option in there if option.choices
    ]  # fmt: skip
    named = [f'          {name}) words="{" ".join(each.name for each in there)}" ;;\n' for name, there in known.items()]
    first = [f'          {name}) words="{" ".join(words)}" ;;\n' for name, words in arguments().items() if words]
    return f"""# bash completion of diffunet, made by: diffunet completion bash
_diffunet() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words= files= file
  COMPREPLY=()
  if [[ $current == "=" ]]; then current=; fi
  if [[ $before == "=" ]]; then before=${{COMP_WORDS[COMP_CWORD - 2]}}; fi
  if ((COMP_CWORD == 1)); then
    words="{" ".join(known)}"
  else
    case "${{COMP_WORDS[1]}} $before" in
{"".join(chosen)}      *)
        if [[ $current == -* ]]; then
          case ${{COMP_WORDS[1]}} in
{"".join("  " + line for line in named)}          esac
        elif [[ $before != -* ]]; then # an argument: a name, or a file
          files=yes
          case ${{COMP_WORDS[1]}} in
{"".join("  " + line for line in first)}          esac
        fi ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ $files ]] && ((${{#COMPREPLY[@]}})); then # where no name fits, bash completes files itself
    while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$current")
    compopt -o filenames 2>/dev/null
  fi
}}
complete -o bashdefault -o default -F _diffunet diffunet
"""


def _zsh(known: dict[str, list[Option]]) -> str:
    from diffunet.commands.cli import COMMANDS

    def spec(option: Option) -> str:
        words = re.sub(r"([\\\[\]:])", r"\\\1", option.words)
        values = _zsh_values(option.choices, files=option.takes == "file") or " "
        return _quoted(f"{option.name}[{words}]" + ("" if option.takes == "nothing" else f":value:{values}"))

    rest = {name: f"'*:file:{_zsh_values(words, files=True)}'" for name, words in arguments().items()}
    commands = "\n".join(f"      {_quoted(f'{name}:{COMMANDS[name][1]}')}" for name in known)
    cases = "\n".join(
        f"    {name})\n      _arguments -S {' '.join(map(spec, there))} {rest[name]} ;;"
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


def _zsh_values(words: tuple[str, ...], *, files: bool) -> str:
    """Return how zsh completes a value: one of some words, a file, or either."""
    if not files:
        return f"({' '.join(words)})" if words else ""
    return f"{{compadd -- {' '.join(words)}; _files}}" if words else "_files"


def _fish(known: dict[str, list[Option]]) -> str:
    from diffunet.commands.cli import COMMANDS

    def line(command: str, option: Option) -> str:
        takes = {"nothing": "", "value": " -x", "file": " -r -F"}[option.takes]
        values = takes + (f" -a {_quoted(' '.join(option.choices))}" if option.choices else "")
        where = f"-n '__fish_seen_subcommand_from {command}'"
        return f"complete -c diffunet {where} -l {option.name[2:]}{values} -d {_quoted(option.words, fish=True)}"

    commands = [
        f"complete -c diffunet -n __fish_use_subcommand -f -a {name} -d {_quoted(COMMANDS[name][1], fish=True)}"
        for name in known
    ]
    lines = [line(name, option) for name, there in known.items() for option in there]
    lines += [
        f"complete -c diffunet -n '__fish_seen_subcommand_from {name}' -a {_quoted(' '.join(words))}"
        for name, words in arguments().items() if words
    ]  # fmt: skip
    return "\n".join(["# fish completion of diffunet, made by: diffunet completion fish", *commands, *lines])


def _quoted(text: str, fish: bool = False) -> str:
    """Return a text as one word of a shell, in single quotes."""
    return "'" + (text.replace("\\", "\\\\").replace("'", "\\'") if fish else text.replace("'", "'\\''")) + "'"
