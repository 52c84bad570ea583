"""The pages that are open: each gets the news of its jobs in one stream of events, and is missed once it has gone."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from diffunet.web.jobs import Job

ALIVE = 15.0
"""Seconds between signs of life in a stream where nothing happens."""

MISSED = 60.0
"""Seconds after which the jobs of a page that has gone are ended."""

FORGOTTEN = 86_400.0
"""Seconds after which the id of a page that has gone is not known any more."""


@dataclass(eq=False)
class Page:
    """A page: the streams that it holds open, and when the last one of them ended."""

    id: str
    streams: list[Stream] = field(default_factory=list)
    gone_since: float = field(default_factory=time.monotonic)


class Stream:
    """The jobs that have changed since a page was told of them; several changes of one job are told as one."""

    def __init__(self) -> None:
        self.changed: dict[str, Job] = {}
        self.awake = asyncio.Event()

    def mark(self, job: Job) -> None:
        """Have a job told of."""
        self.changed[job.id] = job
        self.awake.set()


class Pages:
    """All pages, by their ids; but for `notify` it is used in the event loop's thread alone.

    Args:
        told: what is told of a job, as JSON has it.
    """

    def __init__(self, told: Callable[[Job], dict[str, Any]]) -> None:
        self.told = told
        self.loop: asyncio.AbstractEventLoop | None = None
        self._pages: dict[str, Page] = {}
        self._ending = False

    def open(self, known: object = None) -> str:
        """Return the id of a page: the `known` one where there is such a page, else a new one."""
        if isinstance(known, str) and known in self._pages:
            return known
        page = Page(secrets.token_urlsafe(12))
        self._pages[page.id] = page
        return page.id

    def __contains__(self, id: object) -> bool:
        """Return whether there is a page of this id."""
        return id in self._pages

    def notify(self, job: Job) -> None:
        """Tell the pages whose job it is, from any thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._mark, job)

    def _mark(self, job: Job) -> None:
        for page in self._pages.values():
            if job.page in (page.id, None):
                for stream in page.streams:
                    stream.mark(job)

    async def stream(self, id: str, jobs: list[Job]) -> AsyncIterator[str]:
        """Yield the events of a page: all its `jobs` at first, and then each that changes."""
        page, stream = self._pages[id], Stream()
        page.streams.append(stream)
        try:
            yield ": hello\n\n"
            for job in jobs:
                stream.mark(job)
            while not self._ending:
                try:
                    await asyncio.wait_for(stream.awake.wait(), ALIVE)
                except TimeoutError:
                    yield ": alive\n\n"
                    continue
                stream.awake.clear()
                changed, stream.changed = stream.changed, {}
                for job in changed.values():
                    yield f"event: job\ndata: {json.dumps(self.told(job))}\n\n"
        finally:
            page.streams.remove(stream)
            page.gone_since = time.monotonic()

    def missed(self) -> list[str]:
        """Return the ids of pages that have been gone for long, and forget those that were for very long."""
        now = time.monotonic()
        gone = {page.id: now - page.gone_since for page in self._pages.values() if not page.streams}
        for id, seconds in gone.items():
            if seconds > FORGOTTEN:
                del self._pages[id]
        return [id for id, seconds in gone.items() if seconds > MISSED]

    def end(self) -> None:
        """End all streams."""
        self._ending = True
        for page in self._pages.values():
            for stream in page.streams:
                stream.awake.set()
