"""A model of a disk: what it may hold after the power fails, worked out from the operations on it.

POSIX promises little: data is on the disk once its file was fsynced, and a name once its folder was. Anything else may
be lost, be kept, or be kept in part, in any order. (Most file systems keep more order than that.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from helpers.crashes.harness import Operation

Tree = dict[str, bytes | None]
"""The contents of files by their paths below the root; None is a folder."""


class File:
    """The bytes of a file: as programs see them, and those that are surely on the disk."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.synced = bytearray(data), bytes(data)

    def resize(self, size: int) -> None:
        """Cut the file, or lengthen it with zeros."""
        self.data = self.data[:size].ljust(size, b"\0")

    def write(self, offset: int, content: bytes) -> None:
        """Write at an offset, filling what lies between the end of the file and it with zeros."""
        self.resize(max(len(self.data), offset + len(content)))
        self.data[offset : offset + len(content)] = content

    @property
    def safe(self) -> bool:
        """Whether a power failure takes nothing from the file."""
        return self.data == self.synced


class Folder:
    """The names in a folder: as programs see them, those that are surely on the disk, and the changes in between."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}
        self.synced: dict[str, Node] = {}
        self.pending: list[dict[str, Node | None]] = []

    def change(self, changes: dict[str, Node | None]) -> None:
        """Change several names at once; None removes one."""
        _change(self.names, changes)
        self.pending.append(changes)

    def sync(self) -> None:
        """Bring everything so far to the disk."""
        self.synced, self.pending = dict(self.names), []


Node = File | Folder


def _change(names: dict[str, Node], changes: dict[str, Node | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """A folder, and all below it, as operations change it.

    Args:
        root: the path of the folder, as operations have it.
        content: a folder with what is on the disk at first; None is nothing.
    """

    def __init__(self, root: Path, content: Path | None) -> None:
        self.root, self.top = root, _read(content) if content else Folder()

    def apply(self, operation: Operation) -> None:
        """Do what an operation did, unless it failed."""
        if operation.result < 0:
            return
        parent, name = self._folder(operation.path.parent), operation.path.name
        match operation.kind:
            case "create":
                parent.change({name: File()})
            case "mkdir":
                parent.change({name: Folder()})
            case "unlink" | "rmdir":
                parent.change({name: None})
            case "rename":
                assert operation.other is not None
                target = self._folder(operation.other.parent)
                changes: dict[str, Node | None] = {operation.other.name: parent.names[name]}
                if target is parent:
                    parent.change({name: None, **changes})
                else:
                    target.change(changes)
                    parent.change({name: None})
            case "write":
                self._file(parent, name).write(operation.offset, operation.content)
            case "truncate":
                self._file(parent, name).resize(operation.length)
            case "allocate":
                file = self._file(parent, name)
                file.resize(max(len(file.data), operation.length))
            case "fsync":
                node = self.top if operation.path == self.root else parent.names[name]
                if isinstance(node, Folder):
                    node.sync()
                else:
                    node.synced = bytes(node.data)
            case kind:
                raise AssertionError(f"what {kind} does is not known here")

    def _folder(self, path: Path) -> Folder:
        if path == self.root.parent:  # above the root, whose own name is not watched
            return Folder()
        node: Node = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.names[part]
        assert isinstance(node, Folder)
        return node

    def _file(self, folder: Folder, name: str) -> File:
        node = folder.names[name]
        assert isinstance(node, File)
        return node

    def seen(self) -> Tree:
        """Return what programs see, which is what a killed process leaves."""
        return _tree(self.top, _everything, lambda file: bytes(file.data))

    def after_power_loss(self, chance: random.Random) -> Iterator[tuple[str, Tree]]:
        """Yield bad cases, described: all, none or some of the names and data that were not fsynced are kept."""
        for names, choose in (("names kept", _everything), ("names lost", _nothing)):
            for data, keep in (("data zeroed", _zeroed), ("data cut off", _cut), ("data garbled", _garbled)):
                yield f"{names}, {data}", _tree(self.top, choose, keep)
        yield "names lost, data kept", _tree(self.top, _nothing, lambda file: bytes(file.data))
        for number in range(2):
            some = _tree(self.top, lambda pending: [p for p in pending if chance.random() < 0.5], _any(chance))
            yield f"some names and data lost ({number})", some


def _everything(pending: list[dict[str, Node | None]]) -> list[dict[str, Node | None]]:
    return pending


def _nothing(pending: list[dict[str, Node | None]]) -> list[dict[str, Node | None]]:
    return []


def _zeroed(file: File) -> bytes:
    """Return the file when its new size came to the disk and its new data did not."""
    return bytes(file.data) if file.safe else bytes(len(file.data))


def _cut(file: File) -> bytes:
    return file.synced


def _garbled(file: File) -> bytes:
    """Return the file when its new blocks hold what somebody else's file had left in them."""
    return bytes(file.data) if file.safe else bytes([0xFF, 0xC0, 0x0A]) * (len(file.data) // 3)


def _any(chance: random.Random) -> Callable[[File], bytes]:
    return lambda file: chance.choice((_zeroed, _cut, _garbled, lambda file: bytes(file.data)))(file)


def _tree(
    folder: Folder, choose: Callable[..., Iterable[dict[str, Node | None]]], keep: Callable[[File], bytes]
) -> Tree:
    names, found = dict(folder.synced), Tree()
    for changes in choose(folder.pending):
        _change(names, changes)
    for name, node in sorted(names.items()):
        if isinstance(node, File):
            found[name] = keep(node)
        else:
            found[name] = None
            found |= {f"{name}/{path}": content for path, content in _tree(node, choose, keep).items()}
    return found


def _read(path: Path) -> Folder:
    folder = Folder()
    for child in path.iterdir():
        folder.names[child.name] = _read(child) if child.is_dir() else File(child.read_bytes())
    folder.sync()
    return folder


def read(path: Path) -> Tree:
    """Return the tree that really is below a folder."""
    return _tree(_read(path), _everything, lambda file: bytes(file.data))


def write(tree: Tree, path: Path) -> None:
    """Make a tree below the empty folder `path`."""
    for name, content in tree.items():
        if content is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content)
