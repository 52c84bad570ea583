"""The defaults of torch, the type and the device of new tensors, which a program may have set to something else."""

import contextlib
import threading
from collections.abc import Iterator

import torch


class _FloatType:
    """torch's default type of floats, which is global: the first user makes it float32, the last one puts it back."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, torch.float32

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self.lock:
            self.users += 1
            if self.users == 1 and (before := torch.get_default_dtype()) is not torch.float32:
                self.before = before
                torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users and self.before is not torch.float32:
                    torch.set_default_dtype(self.before)
                    self.before = torch.float32


_float_type = _FloatType()


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """Let new tensors be float32 and on the CPU within this context, whatever type and device the caller has set."""
    elsewhere = torch.get_default_device().type != "cpu"
    with _float_type.held(), torch.device("cpu") if elsewhere else contextlib.nullcontext():
        yield
