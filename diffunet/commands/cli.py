"""The command line finds the command, calls it, and turns what went wrong into one line and an exit code."""

import contextlib
import difflib
import errno
import importlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

from diffunet import __version__, variables
from diffunet.commands.progress import complain, interruptions, silence, tell, writing_results
from diffunet.errors import Error, ResourceError, UsageError

GROUPS = {
    "make": {
        "train": ("commands.train", "train a model on a folder of images"),
        "sample": ("commands.sample", "generate images"),
        "inpaint": ("commands.inpaint", "fill in the masked part of images"),
        "web": ("web.command", "fill in and generate on a page in the browser"),
    },
    "look": {
        "evaluate": ("commands.evaluate", "compare generated images with real ones"),
        "status": ("commands.status", "show, watch and stop runs: steps, time left, loss"),
        "report": ("commands.report", "write curves and previews of runs as one HTML file"),
        "info": ("commands.info", "show what there is to compute with, or facts of a model"),
    },
    "data": {
        "check": ("commands.check", "say what is in a folder of images, and what is no good"),
        "prepare": ("commands.folders", "write a data set from elsewhere as a folder of images"),
        "masks": ("commands.folders", "write random masks, to try inpainting with"),
        "cache": ("commands.cache", "show and clear the decoded images that are kept"),
    },
    "more": {
        "convert": ("commands.convert", "from and to diffusers, ONNX, the hub, guided-diffusion"),
        "guide": ("commands.guide", "read how to do what, in plain words"),
        "completion": ("commands.completion", "print a script by which a shell completes commands"),
        "demo": ("commands.demo", "do all of it on built-in data, in minutes, on a CPU"),
    },
}
"""The module of each command in the package, which has a function of its name, and what the command does, in groups. A
module is imported when its command is called: reading options takes packages that take half a second to import."""

COMMANDS = {name: row for group in GROUPS.values() for name, row in group.items()}
"""The rows of all groups."""

OF_A_NAME = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}
"""What a system says of a path that it does not let a program look at, which is no fault of the program."""

USAGE = "\n".join([
    "usage: diffunet COMMAND ...\n",
    "Train a diffusion model on a folder of images, generate new ones, and fill in\nmasked parts of existing ones.",
    *(
        "\n".join([f"\n{title.capitalize()}:", *(f"  {name:<11} {words}" for name, (_, words) in group.items())])
        for title, group in GROUPS.items()
    ),
    "\nOptions and an example of each: diffunet COMMAND --help\nGuides: diffunet guide",
    "Start with: diffunet train photos --out runs/photos",
])  # fmt: skip


class _LinesOnStandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def main(args: Sequence[str] | None = None) -> None:
    """Run the `diffunet` command and exit."""
    variables.wait_asleep()
    _streams()
    with _signals():
        try:
            code = _outcome(list(sys.argv[1:] if args is None else args))
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            complain(f"diffunet: {'interrupted' if number == signal.SIGINT else 'terminated'}")
            code = 128 + number
        sys.exit(code)


def _outcome(args: list[str]) -> int:
    """Run a command and return its exit code, after a line about what went wrong."""
    try:
        try:
            _run(args)
        finally:
            with writing_results():
                sys.stdout.flush()
    except Error as error:
        if not error.told:
            complain(f"diffunet: {' '.join(str(error).split())}")
        return error.exit_code
    except BrokenPipeError:  # nobody reads the results any more
        silence(sys.stdout)
        return 0
    except OSError as error:  # a place that nobody has tried before: a folder that may not be looked into, a long name
        if not isinstance(error.filename, str | bytes) or error.errno not in OF_A_NAME:
            raise
        complain(f"diffunet: {' '.join(os.fsdecode(error.filename).split())}: {error.strerror}")
        return UsageError.exit_code
    except (MemoryError, RuntimeError) as error:
        from diffunet.compute import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        complain("diffunet: out of memory")
        return ResourceError.exit_code
    return 0


def _run(args: list[str]) -> None:
    if args[:1] == ["help"] and len(args) > 1:  # diffunet help train
        args = [args[1], "--help", *args[2:]]
    if not args or args[0] in ("-h", "--help", "help"):
        tell(USAGE)
        return
    if args[0] in ("-V", "--version"):
        tell(f"diffunet {__version__}")
        return
    name, *rest = args
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}{hint}")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they do not name the file; our own errors do
    logger = logging.getLogger("diffunet")
    logger.handlers = [_LinesOnStandardError()]
    logger.setLevel(logging.INFO if variables.is_main() else logging.ERROR)
    function = getattr(importlib.import_module(f"diffunet.{COMMANDS[name][0]}"), name)
    if name == "train":
        function(rest)
    else:
        from diffunet.commands import arguments

        arguments.call(function, rest, name)


def _streams() -> None:
    """Open the null device for streams that are closed (`>&-`), and escape what the encoding has no characters for."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in this order each gets its own descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a command in good order, and a second one at once; an ignored one stays ignored."""

    def listen(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        interruptions.append(number)
        raise KeyboardInterrupt(number)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main_thread = threading.current_thread() is threading.main_thread()  # no other can handle signals
    before = {n: handler for n, handler in usual.items() if main_thread and signal.getsignal(n) is handler}
    for number in before:
        signal.signal(number, listen)
    try:
        yield
    finally:
        interruptions.clear()
        for number, handler in before.items():
            if signal.getsignal(number) is listen:  # else a signal came, and the process is about to end
                signal.signal(number, handler)
