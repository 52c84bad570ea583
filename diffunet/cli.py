"""The command line: find the command, call it, and turn what a person did wrong into one line and an exit code."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from diffunet import arguments, commands
from diffunet.errors import Error, UsageError

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "train": (commands.train, "train a model on a folder of images"),
    "sample": (commands.sample, "generate images"),
    "inpaint": (commands.inpaint, "fill in the masked part of images"),
    "evaluate": (commands.evaluate, "compare generated images with real ones"),
    "check": (commands.check, "what is in a folder of images, and what cannot be used"),
    "prepare": (commands.prepare, "a known data set as a folder of images"),
    "info": (commands.info, "shapes, parameters, MACs, memory and time of a net"),
    "demo": (commands.demo, "all of it on built-in data, in minutes, on a CPU"),
}


class _ToStandardError(logging.Handler):
    """Looks up sys.stderr for each line: a progress bar puts its own there, to print above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


def _usage() -> str:
    rows = "\n".join(f"  {name:<9} {words}" for name, (_, words) in COMMANDS.items())
    return (
        "usage: diffunet COMMAND ...\n\nTrain a diffusion model on a folder of images, sample from it, fill in masked "
        f"images.\n\n{rows}\n\nOptions and an example of each: diffunet COMMAND --help\n"
        "Start with: diffunet train photos --out runs/photos"
    )


def main(args: Sequence[str] | None = None) -> None:
    """The `diffunet` command; always exits."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        _run(args)
        sys.stdout.flush()
    except Error as error:
        print(f"diffunet: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("diffunet: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `diffunet ... | head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    if args[0] in ("-V", "--version"):
        from diffunet import __version__

        print(f"diffunet {__version__}")
        return
    name, *rest = args
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}{hint}")
    logger = logging.getLogger("diffunet")
    logger.handlers = [_ToStandardError()]
    logger.setLevel(logging.INFO if commands.main_process() else logging.ERROR)
    function = COMMANDS[name][0]
    if function is commands.train:
        function(rest)
    else:
        arguments.call(function, rest, name)
