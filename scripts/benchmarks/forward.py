"""The net alone with weights that do not change, images a second: the ways of `step`, without gradients.

Sampling computes as "diffunet" does here with `--kernels`, and without it as "diffunet, plain torch".
"""

from __future__ import annotations

from benchmarks import step
from benchmarks.measure import Measure, Options

NAME = "forward"


def measures(options: Options) -> list[Measure]:
    """Return a measure for each net."""
    return step.measures(options, learn=False)
