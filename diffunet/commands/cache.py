"""`diffunet cache` shows and clears the decoded images that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from tyro.conf import Positional, arg

from diffunet.commands.progress import say, tell
from diffunet.errors import UsageError


def cache(
    folder: Annotated[Positional[Path | None], arg(metavar="DATA")] = None, /, *, clear: bool = False,
    older_than: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None, place: Path | None = None,
) -> None:  # fmt: skip
    """Show the decoded images that are kept, for which folder, how large they are and when they were last used.

    They are made again when they are needed. What another process is reading into or has locked stays.

    Example: diffunet cache

    Example: diffunet cache --clear --older-than 30

    Args:
        folder: Folder of images, to show or delete its decoded images alone. If not given, all are shown or deleted.
        clear: Delete what is shown.
        older_than: Days without use: what was used since then is left out.
        place: Folder where decoded images are kept, as --data.cache named it. If not given, it is in the user's cache
            folder.
    """
    import time

    from diffunet.data import kept
    from diffunet.data.cache import megabytes

    if place is not None and not place.is_dir():
        raise UsageError(f"--place {place}: no such folder")
    now = time.time()
    found = [
        each
        for each in kept.caches(place)
        if (folder is None or each.is_of(folder)) and now - each.used >= 86_400 * (older_than or 0)
    ]
    for each in found:
        days = (now - each.used) / 86_400
        when = "today" if days < 1 else f"{days:.0f} days ago"
        what = f"{megabytes(each.size)}, last used {when}: {each.source} (in {each.folder})"
        if not clear:
            tell(what)
        elif kept.clear(each):
            tell(f"deleted {what}")
        else:
            say(f"in use, and kept: {what}")
    if not found:
        tell("no decoded images are kept" + (" of these" if folder is not None or older_than else ""))
    elif not clear:
        tell(f"{megabytes(sum(each.size for each in found))} in all. diffunet cache --clear deletes them")
