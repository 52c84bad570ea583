"""`diffunet demo` does the whole job on built-in data; demo_run.py does the work, since it needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from diffunet.commands import outputs


def demo(
    out: Path = Path("demo"),
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 150.0,
    overwrite: bool = False,
) -> None:
    """Do all of it on built-in data, in minutes, on a CPU: train on handwritten digits, sample, inpaint, judge.

    Example: diffunet demo --out demo

    Args:
        out: Folder for the data, the run and the pictures.
        seconds: Of training.
        overwrite: Replace what exists.
    """
    from diffunet.commands.demo_run import run

    outputs.claim(out, file=False, overwrite=overwrite)
    run(out, seconds)
