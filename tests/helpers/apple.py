"""A stand-in for Apple's GPUs: torch on the CPU, which refuses what torch's table of kernels does not have for them."""

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
    """The operations of torch that Apple's GPUs can do, as aten names with their overload: "add.Tensor"."""
    entries = {entry["func"].split("(")[0]: entry for entry in yaml.safe_load(TABLE.read_text())}

    def can(name):
        entry = entries[name]
        if "structured_delegate" in entry:
            return can(entry["structured_delegate"])
        keys = ", ".join(entry.get("dispatch", {"CompositeImplicitAutograd": None}))
        return "MPS" in keys.replace("SparseMPS", "") or "Composite" in keys

    return {name for name in entries if can(name)}


class Apple(TorchDispatchMode):
    """Within it, an operation without a kernel, or one that gives images or features in float64, is an error.

    Numbers and tables of one dimension are kept in float64 on the CPU by design.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        full = f"{name}.{func._overloadname}" if func._overloadname != "default" else name
        own = "_for_cpu" in name  # attention as the CPU does it; Apple's GPUs do it their way
        if func.namespace == "aten" and full not in kernels() and not own:
            raise NotImplementedError(f"{full} has no kernel for MPS")
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.dtype is torch.float64 and each.ndim > 1:
                raise TypeError(f"{full}: MPS has no float64")
        return out
