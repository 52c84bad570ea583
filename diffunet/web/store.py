"""The files behind the page: pictures, masks and results, in a temporary folder, each by an id that is made here.

What comes from a browser is never a path or a name. Where too much is kept, what was not used for longest goes; what a
job needs stays until the job has ended.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffunet.errors import Error, ResourceError
from diffunet.web.limits import Limits


class Gone(Error):
    """There is nothing by that id: it was never there, or had to make room."""


@dataclass
class Item:
    """A file by its id.

    `name` is a file name for people, None for an upload, whose name only the page knows. `about` is what is known of
    it, such as its size in pixels. A file that is not ours (`owned`) is the person's own, and is never deleted.
    """

    id: str
    kind: str
    path: Path
    name: str | None = None
    owned: bool = True
    about: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    views: dict[str, Path] = field(default_factory=dict)
    used_by: int = 0


class Store:
    """Keeps items within the limits; `close` deletes all files. It may be called from any thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="diffunet-web-"))  # which no other user of the machine can read
        self._items: dict[str, Item] = {}  # in the order in which they were last used
        self._lock = threading.RLock()

    def close(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_path(self, suffix: str = "") -> Path:
        """Return the path of a file to be, in the folder."""
        return self.folder / f"{secrets.token_hex(12)}{suffix}"

    def add(
        self, kind: str, path: Path, name: str | None = None, *, owned: bool = True, id: str | None = None, **about: Any
    ) -> Item:  # fmt: skip
        """Take a file in, and return it; of one whose `id` is there already, the one that is there.

        Raises:
            ResourceError: it does not fit beside what jobs are using; it is deleted then.
        """
        size = path.stat().st_size if owned else 0
        with self._lock:
            if id in self._items:
                if owned:
                    path.unlink(missing_ok=True)
                return self.get(kind, id)
            item = Item(id or secrets.token_urlsafe(12), kind, path, name, owned, about, size)
            self._items[item.id] = item
            if not self._make_room(item):
                self._remove(item)
                raise ResourceError("there is no room for it until the jobs that are queued have ended")
            return item

    def get(self, kind: str, id: object) -> Item:
        """Return the item of a kind by its id, which counts as a use of it. Raises Gone."""
        with self._lock:
            item = self._items.get(id) if isinstance(id, str) else None
            if item is None or item.kind != kind:
                raise Gone(f"there is no such {kind}, or it had to make room for newer ones")
            self._items[item.id] = self._items.pop(item.id)
            return item

    def view(self, item: Item, key: str, make: Callable[[], bytes]) -> Path:
        """Return the file of what `make` makes of an item, which is called once for each `key`."""
        with self.using(item):
            if key not in item.views:
                path = self.new_path()
                path.write_bytes(make())
                with self._lock:
                    item.views[key] = path
                    item.size += path.stat().st_size
                    self._make_room(item)
            return item.views[key]

    @contextlib.contextmanager
    def using(self, *items: Item | None) -> Iterator[None]:
        """Keep items for the time of a `with`."""
        self.hold(*items)
        try:
            yield
        finally:
            self.release(*items)

    def hold(self, *items: Item | None) -> None:
        """Keep items until they are released as often as they were held."""
        with self._lock:
            for item in filter(None, items):
                item.used_by += 1

    def release(self, *items: Item | None) -> None:
        """End what `hold` began."""
        with self._lock:
            for item in filter(None, items):
                item.used_by -= 1

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(item.size for item in self._items.values())

    def _make_room(self, newest: Item) -> bool:
        """Remove what was not used for longest until the limits are kept; return whether that was possible."""
        while True:
            images = sum(each.kind == "image" for each in self._items.values()) > self.limits.max_images
            if not images and self.size <= self.limits.max_files * 10**6:
                return True
            free = (each for each in self._items.values() if each is not newest and not each.used_by)
            oldest = next((each for each in free if each.kind == "image" or not images), None)
            if oldest is None:
                return False
            self._remove(oldest)

    def _remove(self, item: Item) -> None:
        del self._items[item.id]
        for path in [*item.views.values(), *([item.path] if item.owned else [])]:
            path.unlink(missing_ok=True)
