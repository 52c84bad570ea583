"""What the sections of the config have in common: their base, and types of values with their bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from diffunet.errors import UsageError

Positive = Annotated[int, Field(ge=1, le=10**12)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Value = Annotated[float, Field(ge=-1e30, le=1e30)]
Byte = Annotated[int, Field(ge=0, le=255)]
Multiplier = Annotated[int, Field(ge=1, le=64)] | Annotated[float, Field(ge=0.25, le=64)]
Beta = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """The base of the sections: they are frozen, and refuse unknown names, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change: what is made from a config may be kept by it."""
        raise UsageError(f"a config does not change: config.changed(section, {name}=...) returns another one")
