"""Environment variables that libraries under torch read once, when they are loaded: so before torch is imported.

The commands set them; what is set already stands. In Python the program's own author has to, before `import torch`.
"""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Threads that wait for others sleep soon, rather than spin.

    Spinning, they keep a core from the very thread that they wait for where another program is at work. GNU's OpenMP,
    which torch has on Linux, spins for a count; LLVM's on Macs and Intel's on Windows for 200 milliseconds, here one.
    Measured on two cores with a busy program of the same priority, a pass of a small net that takes 30 to 35 ms alone:
    GNU's 91 ms, now 72; Intel's 129, now 72; LLVM's 113, now 84.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ.setdefault("KMP_BLOCKTIME", "1")


def deterministic() -> None:
    """cuBLAS sums in the same order every time: it reads this at its first product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
