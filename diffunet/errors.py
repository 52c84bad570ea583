"""The errors that a person can mend, each with the exit code of the command line.

Everything raised for bad input is a `diffunet.Error`. Its message is one line: what is wrong, where, and what to do.
"""

LONGEST = 800  # the most characters that a message keeps


class Error(Exception):
    """The base of all errors that a person can mend. The command line exits with `exit_code`.

    The message is made one line that can be printed, since names and values in it may come from any file.
    """

    exit_code = 2
    told = False
    """Whether another process of several, which the error is of, tells it."""

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.split())
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        if len(line) > LONGEST:  # the end is kept as well, since it often says where
            line = f"{line[: 2 * LONGEST // 3]} ... {line[-LONGEST // 3 :]}"
        super().__init__(line)


class UsageError(Error):
    """An option or argument is not valid."""


class DataError(Error):
    """Images, masks or folders cannot be used."""

    exit_code = 3


class CheckpointError(Error):
    """A model, checkpoint or run folder cannot be read, or is in use."""

    exit_code = 4


class DivergedError(Error):
    """Training produced losses or gradients that are not finite for too long."""

    exit_code = 5


class ResourceError(Error):
    """Memory, the disk or another resource is exhausted."""

    exit_code = 6


class Stopped(Error):
    """Training ended on request, with everything saved."""

    exit_code = 75


class Cancelled(Error):
    """An `on_step` callback asked a call to end."""

    exit_code = 75
