"""`--open` shows what a command has made: a page in the browser, pictures in what the system shows them with."""

import os
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path

from diffunet.commands.progress import say

OPENERS = {"darwin": "open", "linux": "xdg-open"}
"""The program by which a desktop opens a file or a folder as it would where it is clicked."""

PAGES = (".html", ".htm")


def show(what: Path | str) -> None:
    """Open a web address or an HTML file in the browser, any other file or folder in the system's viewer.

    Where there is neither, that is said: the work is done all the same.
    """
    address = what if isinstance(what, str) else what.absolute().as_uri()
    in_browser = isinstance(what, str) or what.suffix.lower() in PAGES
    try:
        opened = webbrowser.open(address) if in_browser else _view(Path(what))
    except (OSError, webbrowser.Error):
        opened = False
    if not opened:
        say(f"there is nothing here to open it with: {what}")


def _view(path: Path) -> bool:
    """Let the system open a file or a folder, and return whether it has something to do that with."""
    if sys.platform == "win32":
        os.startfile(path)
        return True
    opener = shutil.which(OPENERS.get(sys.platform, "xdg-open"))
    if opener is None or (sys.platform != "darwin" and not _has_desktop()):
        return False
    nowhere = subprocess.DEVNULL
    subprocess.Popen([opener, path], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
    return True


def _has_desktop() -> bool:
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
