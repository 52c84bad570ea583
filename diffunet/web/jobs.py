"""The queue of the page: one job runs at a time, in a thread of its own, and can be cancelled within a step."""

from __future__ import annotations

import io
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffunet.errors import Cancelled, Error, ResourceError

if TYPE_CHECKING:
    from diffunet.sampling.watching import Progress

log = logging.getLogger(__name__)

PREVIEW_EVERY, PREVIEW_SIDE = 0.25, 512
"""The seconds between two previews of a job, and the most pixels that they are wide and high."""

KEPT = 64
"""So many jobs that have ended are still known."""


class Full(Error):
    """No more jobs can wait."""


@dataclass(eq=False)
class Job:
    """A job and how far it is. `run` does it, in the worker's thread; `ended` is called once it has ended in any way.

    `page` is the id of the page that asked for it; a job without one goes on without its page.
    """

    kind: str
    page: str | None
    run: Callable[[Job], None]
    command: list[str]
    about: dict[str, Any]
    ended: Callable[[], None] = lambda: None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: str = "queued"
    step: int = 0
    steps: int = 0
    began: float = 0.0
    seconds: float = 0.0
    box: tuple[int, int, int, int] | None = None
    previews: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    error: str | None = None
    files: dict[str, int] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    changed: Callable[[Job], None] = lambda job: None
    _previewed: float = 0.0

    def on_step(self, progress: Progress) -> bool:
        """Take note of a step, and return whether to go on; it is an `on_step` of `Pipeline`."""
        self.step, self.steps, self.box = progress.step, progress.steps, progress.box
        if (now := time.monotonic()) - self._previewed >= PREVIEW_EVERY:
            self._previewed = now
            for number, content in zip(progress.images, previews(progress), strict=False):
                self.previews[number] = progress.step, content
        self.changed(self)
        return not self.cancelled.is_set()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("queued", "running")


def previews(progress: Progress) -> list[bytes]:
    """Return what the pictures of a batch look like now, as PNG files."""
    from diffunet.pictures import images

    made = []
    for array in images.to_uint8(progress.denoised):
        picture, content = images.from_array(array), io.BytesIO()
        picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        picture.save(content, "PNG", compress_level=1)
        made.append(content.getvalue())
    return made


class Jobs:
    """The queue and its worker.

    Args:
        most: so many jobs wait at most, beside the one that runs.
        changed: called, from any thread, with a job that has changed.
    """

    def __init__(self, most: int, changed: Callable[[Job], None]) -> None:
        self.most, self.changed = most, changed
        self._known: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="diffunet-web-worker", daemon=True)
        self._worker.start()

    def submit(self, job: Job) -> Job:
        """Put a job into the queue.

        Raises:
            Full: there is no place in it.
        """
        with self._condition:
            if self._closed:
                raise Full("the server is ending")
            if len(self._waiting) >= self.most:
                raise Full(f"{self.most} jobs are waiting, and no more can: try again when one has ended")
            job.changed = self.changed
            self._known[job.id] = job
            for old in [each for each in self._known.values() if each.over][:-KEPT]:
                del self._known[old.id]
            self._waiting.append(job)
            self._condition.notify()
        self.changed(job)
        return job

    def get(self, id: str) -> Job | None:
        """Return a job by its id."""
        return self._known.get(id)

    def of(self, page: str) -> list[Job]:
        """Return the jobs of a page, and those that belong to none, the oldest first."""
        with self._condition:
            return [job for job in self._known.values() if job.page in (page, None)]

    def position(self, job: Job) -> int:
        """Return 0 for a job that does not wait, 1 for the next one, and so on."""
        with self._condition:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def cancel(self, job: Job) -> None:
        """End a job: at once if it waits, else within a step."""
        job.cancelled.set()
        with self._condition:
            waiting = list(self._waiting)
            if job in waiting:
                self._waiting.remove(job)
                job.state = "cancelled"
        if job in waiting:
            job.ended()
            for each in waiting[waiting.index(job) :]:  # those behind it have moved up
                self.changed(each)

    def stop(self) -> None:
        """Have all jobs end as soon as they can; it may be called in a handler of signals."""
        for job in list(self._known.values()):
            job.cancelled.set()

    def close(self, seconds: float = 60.0) -> None:
        """Cancel all jobs, and wait so long for the one that runs."""
        with self._condition:
            self._closed = True
            known = list(self._known.values())
            self._condition.notify()
        for job in known:
            if not job.over:
                self.cancel(job)
        self._worker.join(seconds)

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._waiting.popleft()
                job.state, job.began = "running", time.monotonic()
                moved = [job, *self._waiting]
            for each in moved:
                self.changed(each)
            state = self._outcome(job)
            job.seconds = time.monotonic() - job.began
            with suppress(Exception):
                job.ended()
            job.previews.clear()
            job.state = state
            self.changed(job)

    def _outcome(self, job: Job) -> str:
        """Run a job and return the state that it ends in; no error of a job ends the worker."""
        from diffunet.compute import is_out_of_memory

        try:
            job.run(job)
        except Cancelled:
            return "cancelled"
        except Error as error:
            job.error = str(error)
        except Exception as error:
            if is_out_of_memory(error):
                job.error = str(ResourceError("out of memory: a smaller picture, or fewer of them, take less"))
            else:
                log.exception("a job has failed by a fault of diffunet's own")
                job.error = f"a fault of diffunet's own ({type(error).__name__}): the server's terminal says more"
        else:
            return "done"
        return "failed"
