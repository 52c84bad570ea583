"""What can go wrong, and the exit code that the command line gives it.

Everything raised for bad input is a `diffunet.Error`; a message says what, where and how to mend it, in one line.
"""

from __future__ import annotations

LONGEST = 800
"""Characters of a message."""


class Error(Exception):
    """Base of all errors that a person can mend. `exit_code` is what the command line exits with.

    The message is made one line that can be printed: names and values in it may come from any file.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.split())
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        if len(line) > LONGEST:  # its end often says where
            line = f"{line[: 2 * LONGEST // 3]} ... {line[-LONGEST // 3 :]}"
        super().__init__(line)


class UsageError(Error):
    """An option or argument that cannot be meant."""

    exit_code = 2


class DataError(Error):
    """Images, masks or folders that cannot be used."""

    exit_code = 3


class CheckpointError(Error):
    """A model, checkpoint or run folder that cannot be read, or is in use."""

    exit_code = 4


class DivergedError(Error):
    """Training produced non-finite losses or gradients for too long."""

    exit_code = 5


class ResourceError(Error):
    """Out of memory, disk or another resource."""

    exit_code = 6


class Stopped(Error):
    """Training ended on request, with everything saved."""

    exit_code = 75


class Cancelled(Error):
    """An `on_step` callback asked a call to end."""

    exit_code = 75
