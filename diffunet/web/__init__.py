"""The page: filling in and generating in a browser, `diffunet web MODEL` or `diffunet.web.serve(pipe)`.

The original file is uploaded once and stays as it is. The page sends a mask and options, never pixels of the picture,
so that a result is byte for byte what the command line makes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffunet.web.serving import serve as serve

__all__ = ["serve"]


def __getattr__(name: str) -> Any:
    if name != "serve":
        raise AttributeError(f"module 'diffunet.web' has no attribute {name!r}")
    from diffunet.web.serving import serve

    return serve
