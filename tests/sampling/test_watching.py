"""The bar that shows how far sampling, inpainting and training are."""

import re

from diffunet.sampling.watching import Bar
from diffunet.training.loop import TrainProgress


def drawn(capsys):
    """Return the last state of each bar that was drawn, as (title, done, total)."""
    bars = [each.split("\r")[-1] for each in capsys.readouterr().err.split("\n") if each]
    return [re.match(r"(\w*)(?:: )?.*?(\d+)/(\d+) ", each).groups() for each in bars]


def test_it_counts_to_the_end_and_begins_anew_for_what_comes_next(pipe, capsys):
    bar = Bar("digits")
    pipe.sample(2, steps=3, on_step=bar)
    pipe.sample(3, steps=2, batch_size=1, on_step=bar)
    assert drawn(capsys) == [("digits", "3", "3"), ("digits", "6", "6")]


def test_after_a_walk_that_was_cancelled_it_begins_anew(capsys):
    bar = Bar()
    for step, steps in ((1, 10), (5, 10), (1, 4), (4, 4)):
        bar(TrainProgress(step, steps, loss=0.5, seconds=1.0))
    assert [found[1:] for found in drawn(capsys)] == [("5", "10"), ("4", "4")]


def test_it_goes_with_training_that_is_resumed_and_whose_end_is_open(capsys):
    bar = Bar()
    for step, steps in ((5001, 9000), (5002, 8000), (5003, 5003)):
        bar(TrainProgress(step, steps, loss=step / 1e4, seconds=1.0))
    written = capsys.readouterr().err
    assert "5003/5003" in written.split("\r")[-1]
    assert "loss=0.5003" in written.split("\r")[-1]
