"""A stand-in for Apple's GPUs: torch on the CPU, refusing every operation that torch's own table has no kernel for."""

from functools import cache
from pathlib import Path

import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"


@cache
def kernels():
    """Return the operations for which Apple's GPUs have a kernel, as aten's names with the overload: "add.Tensor"."""
    entries = {entry["func"].split("(")[0]: entry for entry in yaml.safe_load(TABLE.read_text())}

    def can(name):
        entry = entries[name]
        if "structured_delegate" in entry:
            return can(entry["structured_delegate"])
        keys = ", ".join(entry.get("dispatch", {"CompositeImplicitAutograd": None}))
        return "MPS" in keys.replace("SparseMPS", "") or "Composite" in keys

    return {name for name in entries if can(name)}


class Apple(TorchDispatchMode):
    """A context in which an operation that Apple's GPUs cannot do raises an error.

    These are operations without a kernel, and those that return images or features in float64. Single numbers and
    tables of one dimension may be float64: diffunet keeps them on the CPU by design.

    Raises:
        NotImplementedError: an operation without a kernel.
        TypeError: a result of two or more dimensions in float64.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        full = f"{name}.{func._overloadname}" if func._overloadname != "default" else name
        of_cpu = "_for_cpu" in name  # how the CPU does attention, for which Apple's GPUs have an operation of theirs
        if func.namespace == "aten" and full not in kernels() and not of_cpu:
            raise NotImplementedError(f"{full} has no kernel for MPS")
        out = func(*args, **(kwargs or {}))
        for result in tree_leaves(out):
            if isinstance(result, torch.Tensor) and result.dtype is torch.float64 and result.ndim > 1:
                raise TypeError(f"{full}: MPS has no float64")
        return out
