"""What requests bring: bodies as files or JSON, within bounds; and the answers to what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from diffunet.errors import Error, ResourceError
from diffunet.web.jobs import Full
from diffunet.web.limits import Limits
from diffunet.web.store import Gone, Store

MOST_JSON = 64_000
"""The most bytes of a request in JSON."""

PATIENCE = 20.0
"""Seconds that a request may wait for more of its body."""

LONGEST = 600.0
"""Seconds that the whole body of a request may take."""

STATUS: dict[type[Exception], int] = {Gone: 404, Full: 429, ResourceError: 429}
"""The status of each error; that of all others of ours is 422."""


async def file(request: Request, store: Store, limits: Limits) -> Path:
    """Write the body of a request to a file, piece by piece, and return its path.

    Raises:
        HTTPException: it is empty, too large, too slow, or broke off.
    """
    most = limits.max_body * 10**6
    too_large = HTTPException(413, f"larger than {limits.max_body} MB, the most that is taken (--max-body)")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise too_large
    path, size = store.new_path(), 0
    try:
        async with asyncio.timeout(LONGEST):
            with path.open("wb") as file:
                stream = request.stream()
                while True:
                    piece = await asyncio.wait_for(anext(stream, None), PATIENCE)
                    if piece is None:
                        break
                    size += len(piece)
                    if size > most:
                        raise too_large
                    file.write(piece)
        if not size:
            raise HTTPException(400, "nothing came: the body is the file")
        return path
    except TimeoutError:
        path.unlink(missing_ok=True)
        raise HTTPException(408, "the file came too slowly") from None
    except ClientDisconnect:
        path.unlink(missing_ok=True)
        raise HTTPException(400, "the file broke off") from None
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ResourceError(f"the file cannot be kept: {error.strerror}") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def json_of(request: Request) -> dict[str, Any]:
    """Return the object of a request's body; none of an empty one. Raises HTTPException."""
    content = b""
    try:
        async for piece in request.stream():
            content += piece
            if len(content) > MOST_JSON:
                raise HTTPException(413, "too much JSON")
        found = json.loads(content) if content else {}
    except (ValueError, RecursionError, ClientDisconnect):
        raise HTTPException(400, "the body is no JSON") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "the body is no JSON object")
    return found


def number(request: Request, name: str, usual: int) -> int:
    """Return a number of the query, or the usual one. Raises HTTPException for what is none."""
    text = request.query_params.get(name, str(usual))
    if not text.isdecimal() or len(text) > 9:
        raise HTTPException(400, f"{name} is a whole number")
    return int(text)


async def failed(request: Request, error: Error) -> Response:
    """Answer with the line of an error of ours."""
    return JSONResponse({"error": str(error)}, STATUS.get(type(error), 422))


async def refused(request: Request, error: HTTPException) -> Response:
    """Answer with the line of a refusal."""
    return JSONResponse({"error": error.detail}, error.status_code)
