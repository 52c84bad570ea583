"""What a complaint about a command line or a config must hold: the facts, in whichever words a library puts them."""

import re

FINITE = re.compile(r"\bfinite\b")
WHOLE = re.compile(r"\b(whole number|integer)\b")


def at_least(bound):
    return _bound(r"greater than or equal to|at least|>=", bound)


def at_most(bound):
    return _bound(r"less than or equal to|at most|<=", bound)


def more_than(bound):
    return _bound(r"greater than|more than|above|>", bound)


def less_than(bound):
    return _bound(r"less than|below|<", bound)


def _bound(words, bound):
    return re.compile(rf"({words}) ?{re.escape(str(bound))}(?![\w.])")


def check(line, pieces):
    """Assert that a line holds every piece: a pattern, or words that do not go on to the left or right."""
    for piece in pieces:
        pattern = re.compile(rf"(?<![\w-]){re.escape(piece)}(?![\w-])") if isinstance(piece, str) else piece
        assert pattern.search(line), f"{piece!r} is not in {line!r}"
