"""`diffunet web` serves the page of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from tyro.conf import OmitArgPrefixes, Positional, arg

from diffunet.commands import options, outputs, viewer
from diffunet.commands.options import Computing, Model
from diffunet.commands.progress import say, tell
from diffunet.commands.signature import Rare
from diffunet.web.limits import Limits

if TYPE_CHECKING:
    from diffunet.web.serving import Page


def web(
    model: Model, source: Annotated[Positional[Path | None], arg(metavar="IMAGE_OR_FOLDER")] = None, /, *,
    out: Path | None = None, runs: Path | None = None, host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, Field(ge=0, le=65535)] | None = None, open: bool = False, token: bool = True,
    frame: Rare[str | None] = None, limits: OmitArgPrefixes[Rare[Limits]], computing: OmitArgPrefixes[Computing],
) -> None:  # fmt: skip
    """Fill in and generate pictures on a page in the browser: paint over what is to go, and choose among fillings.

    Example: diffunet web runs/photos holiday.png --open

    Args:
        source: Picture to begin with, or a folder of pictures.
        out: Folder where the page may save results. If not given, they are downloaded.
        runs: Folder of runs whose reports the page shows. If not given, it is the folder runs, where only this machine
            reaches the page.
        host: Address to listen on. By default only this machine reaches it; 0.0.0.0 is all addresses of this machine.
        port: Port to listen on; 0 is any. If not given, it is 8765, or the next that is free.
        open: Open the page in the browser.
        token: Let in only those who have the address that is printed. --no-token lets in
            every user and program of this machine, and does not go with --host.
        frame: Origin of another page that may show this one in a frame, such as http://localhost:8888.
    """
    from diffunet.web import serving

    if out is not None:
        outputs.claim(out, file=False, overwrite=True)
    pipe = options.load(model, computing)
    words = tuple(_words(computing))

    def started(page: Page) -> None:
        tell(page.url)
        if host in ("0.0.0.0", "::"):  # the address has this machine's name, which in a container nobody else knows
            say(f"On this machine, and through a port that a container publishes: {page.local}")
        say("Open this address in a browser. Ctrl-C ends the server.")
        if not token:
            say("It has no token: every user and every program of this machine is let in.")
        if open:
            viewer.show(page.url)

    page = serving.Page(
        pipe, source, model=model, out=out, runs=runs, host=host, port=port, token=token, frame=frame, limits=limits,
        computing=words, started=started,
    )  # fmt: skip
    page.run()


def _words(computing: Computing) -> list[str]:
    """Return the options that say how to compute, as they are typed, but those that have their default."""
    words = list[str]()
    for name, value in vars(computing).items():
        if value != getattr(Computing(), name):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words
