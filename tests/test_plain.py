"""Plain values of what programs pass in."""

import math
import pathlib

import numpy as np
import pytest
import torch

from diffunet import plain
from diffunet.errors import UsageError

THREE = [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0)]
NO_INTEGER = [
    None, True, np.True_, torch.tensor(True), 1.5, math.nan, math.inf, "3", b"3", [3], (3,), {}, np.array([3]),
    torch.tensor([3]), torch.tensor(3, device="meta"), object(), int, 3j,
]  # fmt: skip


@pytest.mark.parametrize("value", THREE, ids=lambda value: f"{type(value).__name__}")
def test_any_whole_number_is_pythons(value):
    found = plain.integer("n", value)
    assert found == 3
    assert type(found) is int
    assert type(plain.number("n", value)) is float


@pytest.mark.parametrize("value", NO_INTEGER, ids=lambda value: f"{type(value).__name__}")
def test_what_is_no_whole_number_is_refused_by_its_name(value):
    with pytest.raises(UsageError, match=r"^steps is a whole number, not .{1,120}$"):
        plain.integer("steps", value)


@pytest.mark.parametrize(("value", "words"), [(0, "at least 1, not 0"), (10**40, r"below 2\*\*63, not a number")])
def test_whole_numbers_out_of_bounds(value, words):
    with pytest.raises(UsageError, match=words):
        plain.integer("num", value)


def test_numbers_flags_pairs_paths():
    assert plain.number("x", np.float64(0.25)) == 0.25
    for value in (None, True, "1", math.nan, math.inf, [1.0], torch.ones(2), 1j):
        with pytest.raises(UsageError, match="x is a number"):
            plain.number("x", value)
    assert [plain.flag("f", value) for value in (True, np.False_, torch.tensor(True), 1, 0)] == [1, 0, 1, 1, 0]
    for value in (None, "no", "", 2, [], torch.ones(2)):
        with pytest.raises(UsageError, match="f is True or False"):
            plain.flag("f", value)
    assert plain.pair("p", np.array([1, 2])) == (1.0, 2.0)
    for value in (None, 3, "12", [1], [1, 2, 3], [1, "x"], {1: 2, 3: 4}):
        with pytest.raises(UsageError, match=r"^p is "):
            plain.pair("p", value)
    assert plain.path("d", "a/b") == plain.path("d", pathlib.PurePosixPath("a/b")) == pathlib.Path("a/b")
    for value in (None, b"a", 3, ["a"], "", "a\0b", object()):
        with pytest.raises(UsageError, match=r"^d is "):
            plain.path("d", value)


@pytest.mark.parametrize("answer", [False, 0, np.False_, np.int64(0), torch.tensor(False), torch.tensor(0), "", []])
def test_any_false_value_cancels(answer):
    assert not plain.goes_on(answer)


def test_none_and_what_is_true_goes_on_and_several_values_are_no_answer():
    assert all(map(plain.goes_on, (None, True, 1, np.True_, torch.tensor(True))))
    with pytest.raises(UsageError, match="on_step returns None or True"):
        plain.goes_on(np.array([True, False]))
