"""What arguments and options take, and within which bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from tyro.conf import Positional, arg

Model = Annotated[Positional[str], arg(metavar="MODEL")]
Number = Annotated[int, Field(ge=1, le=10**7)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(ge=4, le=4096)]
Threads = Annotated[int, Field(ge=1, le=4096)]
