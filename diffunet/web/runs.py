"""The runs that the page shows: how they are, and their reports.

What a browser sends is an id, which names one of the run folders that are found here, and never a path.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from diffunet.data.folder import printable
from diffunet.errors import UsageError
from diffunet.evaluation import run_page, run_reading
from diffunet.web.store import Gone

LISTED = 200
"""The most runs that are listed, the newest ones."""

POLICY = f"{run_page.policy()}; sandbox allow-scripts"
"""What a browser lets a report do. It has no part in the page around it, as if it came from another site."""


class Runs:
    """The runs of a page, with what is answered to questions about them.

    Args:
        places: run folders, and folders of run folders. What is not there, or no run, is passed over.
    """

    def __init__(self, *places: Path) -> None:
        self.places = places
        self.building = anyio.CapacityLimiter(1)  # a report takes some memory

    def paths(self) -> dict[str, Path]:
        """Return the run folders that are there now by their ids, the newest first."""
        found = dict[Path, float]()
        for place in self.places:
            for path in (place, *_within(place)):
                if (changed := _changed(path)) is not None:
                    found[path.resolve()] = changed
        newest = sorted(found, key=found.__getitem__, reverse=True)[:LISTED]
        return {hashlib.sha256(bytes(path)).hexdigest()[:16]: path for path in newest}

    async def listed(self, request: Request) -> Response:
        """Say which runs there are, how each is, and of how many a report can be."""
        return JSONResponse({"runs": await run_sync(self._told), "most": run_page.MOST})

    async def report(self, request: Request) -> Response:
        """Show the report of one run, or of several, `?ids=ID,ID`, as they are now."""
        ids = request.query_params.get("ids", "").split(",")
        page = await run_sync(self._page, ids, limiter=self.building)
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    def _told(self) -> Any:
        runs = {}
        for id, path in self.paths().items():
            with contextlib.suppress(UsageError):  # deleted meanwhile
                runs[id] = run_reading.brief(path)
        return [
            {
                "id": id,
                "name": printable(run.name),
                "about": f"{printable(run.state[:80])}, step {run.step:,}{_of(run)}",
            }
            for id, run in runs.items()
        ]

    def _page(self, ids: Sequence[str]) -> str:
        if len(ids) > run_page.MOST or len({*ids}) < len(ids):
            raise UsageError(f"a report is of {run_page.MOST} runs at most")
        paths = self.paths()
        if not {*ids} <= {*paths}:
            raise Gone("there is no such run, or it is gone")
        try:
            return run_page.page([run_reading.read(paths[id]) for id in ids])
        except UsageError:  # deleted meanwhile
            raise Gone("there is no such run, or it is gone") from None


NONE = Runs()
"""No runs at all."""


def _of(run: run_reading.Reading) -> str:
    return f" of {run.steps:,}" if run.steps else ""


def _within(place: Path) -> Sequence[Path]:
    try:
        return [*place.iterdir()]
    except OSError:
        return []


def _changed(path: Path) -> float | None:
    """Return when a run folder has changed, None of what is none."""
    try:
        return path.stat().st_mtime if run_reading.is_run(path) else None
    except OSError:
        return None
