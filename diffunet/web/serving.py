"""Starting the page's server, from the command line and from Python."""

from __future__ import annotations

import atexit
import contextlib
import html
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from diffunet.commands.naming import RUNS
from diffunet.errors import ResourceError, UsageError
from diffunet.web.limits import Limits

if TYPE_CHECKING:
    from diffunet.sampling.pipeline import Pipeline

PORT, PORTS = 8765, 20
"""The port that is taken if none is asked for, and how many after it are tried where it is in use."""

GRACE = 3
"""Seconds that open connections have at the end."""

try:
    import uvicorn

    from diffunet.web.app import Site
    from diffunet.web.guard import Guard, is_loopback
    from diffunet.web.runs import NONE, Runs
    from diffunet.web.store import Store
    from diffunet.web.work import Workshop
except ModuleNotFoundError as error:
    if error.name not in ("uvicorn", "starlette", "anyio", "markdown_it"):
        raise
    raise UsageError(f'the page needs {error.name}: pip install "diffunet[web]"') from None


class Server(uvicorn.Server):
    """The server of a site, which ends its streams and jobs as soon as it is told to end."""

    def __init__(self, config: uvicorn.Config, site: Site, started: Callable[[], None]) -> None:
        super().__init__(config)
        self.site, self.on_start = site, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self.on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, at a signal."""
        super().handle_exit(sig, frame)  # first: a second Ctrl-C, by which it is told to end at once, is one after this
        self.end()

    def end(self) -> None:
        """Have it end: streams at once, a job within a step."""
        self.site.pages.end()
        self.site.jobs.stop()
        self.should_exit = True


class Page:
    """A page that is served: its address is `url`, and a notebook at the address `frame` shows it in a frame. `close`
    ends it.

    `local` is its address on this machine, where it listens on all of the machine's.
    """

    def __init__(
        self, pipe: Pipeline, source: Path | None = None, *, model: str = "MODEL", out: Path | None = None,
        host: str = "127.0.0.1", port: int | None = None, token: bool = True, frame: str | None = None,
        limits: Limits | None = None, computing: tuple[str, ...] = (), started: Callable[[Page], None] | None = None,
        runs: Path | None = None,
    ) -> None:  # fmt: skip
        if not token and not is_loopback(host):
            raise UsageError(f"--no-token would let in everybody who reaches {host}: it goes with 127.0.0.1 alone")
        if source is not None and not source.exists():
            raise UsageError(f"{source}: no such file or folder")
        limits = limits or Limits()
        folder, image = (source, None) if source is not None and source.is_dir() else (None, source)
        if runs is not None and not runs.is_dir():
            raise UsageError(f"--runs {runs}: there is no such folder")
        # Reports tell where files are and what they are called: others than this person see those that are named.
        shown = Runs(runs or RUNS, Path(model)) if runs is not None or is_loopback(host) else NONE
        workshop = Workshop(pipe, model, Store(limits), limits, computing, out, folder)
        with contextlib.ExitStack() as undo:
            undo.callback(workshop.store.close)
            listening = undo.enter_context(_listening(host, port))
            self.site = Site(workshop, image, shown)
            undo.pop_all()
        self.port: int = listening.getsockname()[1]
        self.token = secrets.token_urlsafe(24) if token else None
        name = host if host not in ("0.0.0.0", "::") else socket.gethostname()
        name = f"[{name}]" if ":" in name else name
        self.url, self.local = (
            f"http://{each}:{self.port}/" + (f"?token={self.token}" if token else "") for each in (name, "localhost")
        )
        self.frame = frame
        guard = Guard(self.site.app(), self.token, self.port, host, frame)
        config = uvicorn.Config(
            guard, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, limit_concurrency=200,
            server_header=False, proxy_headers=False,
        )  # fmt: skip
        self.server = Server(config, self.site, lambda: started(self) if started else None)
        self._sockets, self._thread = [listening], threading.Thread(target=self.run, name="diffunet-web", daemon=True)

    def run(self) -> None:
        """Serve until it is told to end."""
        hangup = getattr(signal, "SIGHUP", None)  # of a terminal that is closed; Windows has none
        here = threading.current_thread() is threading.main_thread()
        if here and hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(hangup, self.server.handle_exit)
        try:
            self.server.run(self._sockets)
        finally:
            self.site.close()

    def start(self) -> Page:
        """Serve in a thread of its own, and return once it answers."""
        began = threading.Event()
        self.server.on_start = began.set
        self._thread.start()
        atexit.register(self.close)
        if not began.wait(60):
            raise ResourceError("the page's server has not started within a minute")
        return self

    def close(self) -> None:
        """End the server; its jobs end within a step, and its temporary files are deleted."""
        if self._thread.is_alive():
            self.server.end()
            self._thread.join(60)
        atexit.unregister(self.close)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the page in a frame, where it may be shown there, and else its address."""
        address = html.escape(self.url, quote=True)
        link = f'<p><a href="{address}" target="_blank" rel="noopener">In a window of its own</a></p>'
        if self.frame is None:  # the notebook is of another port, and so a stranger
            return link + '<p>To show it here, name the notebook\'s own address: frame="http://localhost:8888".</p>'
        return f'<iframe src="{address}" width="100%" height="800" style="border:1px solid #8888"></iframe>{link}'


def serve(
    pipe: Pipeline, source: str | Path | None = None, *, model: str = "MODEL", out: str | Path | None = None,
    host: str = "localhost", port: int | None = None, token: bool = True, frame: str | None = None,
    limits: Limits | None = None, runs: str | Path | None = None,
) -> Page:  # fmt: skip
    """Serve the page of a model in a thread of its own, as in a notebook, and return it; it shows itself there.

    Args:
        pipe: what `diffunet.load` has returned.
        source: a picture to begin with, or a folder of pictures.
        model: the word that stands for the model in the command lines that the page shows.
        out: a folder where results may be saved.
        host: the address to listen on; by default only this machine reaches it.
        port: by default the first free one from 8765 on; 0 is any.
        token: whether only who has the address, with the token in it, is let in.
        frame: the origin of a page that may show this one in a frame beside pages of its own, such as
            http://localhost:8888 of a notebook.
        limits: what may be asked for; see `limits.Limits`.
        runs: a folder of runs, whose reports are shown; by default `runs`, where only this machine reaches the page.

    Raises:
        UsageError: a port that is in use, a source that does not exist, or no token where others reach it.
    """
    places = (None if each is None else Path(each) for each in (source, out, runs))
    page = Page(
        pipe, next(places), model=model, out=next(places), runs=next(places), host=host, port=port, token=token,
        frame=frame, limits=limits,
    )  # fmt: skip
    return page.start()


def _listening(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on a port, or on the first free one if none is asked for."""
    wanted = range(PORT, PORT + PORTS) if port is None else [port]
    for each in wanted:
        try:
            found = socket.getaddrinfo(host, each, type=socket.SOCK_STREAM)
            family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # IPv6 may be off
            return socket.create_server(address[:2], family=family)
        except socket.gaierror as error:
            raise UsageError(f"--host {host} is no address of this machine: {error.strerror}") from None
        except OSError as error:
            reason = error.strerror
    which = f"port {port}" if port is not None else f"any port from {PORT} to {PORT + PORTS - 1}"
    raise UsageError(f"{which} of {host} cannot be listened on: {reason}; --port takes another")
