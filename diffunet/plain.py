"""Python's plain values of what programs pass in: numbers of numpy and torch, paths of any kind, answers of callbacks.

Each function returns the plain value, or raises UsageError that names the argument, what it takes and what it was.
Nothing is guessed: text is no number, True is no count, and only a number that is whole is a whole number.
"""

from __future__ import annotations

import math
import operator
import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffunet.errors import UsageError


def shown(value: object) -> str:
    """Return a value in a few words for a message: its repr where that is short, and its type where repr hides it."""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{kind} {[*shape]}"
    if value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict | set | os.PathLike):
        return reprlib.repr(value)
    try:
        text = repr(value)
    except Exception:
        text = ""
    return text if 0 < len(text) <= 40 and not text.startswith("<") else f"a value of type {kind}"


def scalar(value: Any) -> Any:
    """Return the Python number in a scalar of numpy or torch, on any device, and anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        try:
            return value.item()
        except Exception:  # a tensor without content
            return value
    return value


def integer(name: str, value: Any, least: int = 1, below: int = 2**63) -> int:
    """Return a whole number from `least` on and below `below`: of Python, numpy or torch, also one like 2.0."""
    found, plain = None, scalar(value)
    if isinstance(plain, float):
        found = int(plain) if plain.is_integer() else None
    elif not isinstance(plain, bool) and getattr(plain, "ndim", 0) == 0:
        try:
            found = operator.index(plain)
        except Exception:
            found = None
    if found is None:
        raise UsageError(f"{name} is a whole number, not {shown(value)}")
    if not least <= found < below:
        limit = f" and below {'2**63' if below == 2**63 else below}" if found >= below else ""
        raise UsageError(f"{name} is at least {least}{limit}, not {_digits(found)}")
    return found


def _digits(number: int) -> str:
    return str(number) if abs(number) < 10**30 else "a number of more than 30 digits"


def count(name: str, value: Any, least: int = 1) -> int | None:
    """Return None for None, which stands for a default, and else what `integer` returns."""
    return None if value is None else integer(name, value, least)


def number(name: str, value: Any, words: str = "a number") -> float:
    """Return a finite number of Python, numpy or torch as a float; `words` say what it is to be."""
    plain = scalar(value)
    if not isinstance(plain, bool | str | bytes | bytearray):
        try:
            found = float(plain)
        except Exception:
            found = math.nan
        if math.isfinite(found):
            return found
    raise UsageError(f"{name} is {words}, not {shown(value)}")


def pair(name: str, value: Any) -> tuple[float, float]:
    """Return two finite numbers, given as a tuple, a list or an array."""
    try:
        first, second = value
        if isinstance(value, str | bytes | dict | set):
            raise TypeError
    except Exception:
        raise UsageError(f"{name} is two numbers, not {shown(value)}") from None
    return number(name, first), number(name, second)


def flag(name: str, value: Any) -> bool:
    """Return True or False, of Python, numpy or torch, or 1 or 0; a text such as "no", which counts as true, is not."""
    plain = scalar(value)
    if isinstance(plain, bool) or (isinstance(plain, int | float) and plain in (0, 1)):
        return bool(plain)
    raise UsageError(f"{name} is True or False, not {shown(value)}")


def text(name: str, value: Any) -> str:
    """Return a str; numpy's is one."""
    if isinstance(value, str):
        return str(value)
    raise UsageError(f"{name} is a name, not {shown(value)}")


def path(name: str, value: Any) -> Path:
    """Return the path that a str or a path object names."""
    try:
        found = os.fspath(value)
    except Exception:
        found = None
    if not isinstance(found, str):
        raise UsageError(f"{name} is a path, a str or pathlib.Path, not {shown(value)}")
    if not found or "\0" in found:
        raise UsageError(f"{name} is {'empty' if not found else 'no path: a null byte is in it'}")
    return Path(found)


def device(value: Any) -> str | None:
    """Return the name of a device, given as a str or a torch.device; None for None, the best there is."""
    if value is None or isinstance(value, str) or type(value).__name__ == "device":
        return None if value is None else str(value)
    raise UsageError(f"device is cpu, cuda, cuda:1, mps or a torch.device, not {shown(value)}")


def function(name: str, value: Any) -> Callable[..., Any]:
    """Return a function, or anything else that can be called."""
    if callable(value):
        return value  # type: ignore[no-any-return]
    raise UsageError(f"{name} is a function, not {shown(value)}")


def goes_on(answer: Any) -> bool:
    """Return whether a callback lets the work go on: by None, as a function without `return` answers, or what is true.

    Anything else that is false cancels: False, 0, and those of numpy and torch.
    """
    try:
        return answer is None or bool(answer)
    except Exception:  # an array of several values
        raise UsageError(f"on_step returns None or True to go on and False to cancel, not {shown(answer)}") from None
