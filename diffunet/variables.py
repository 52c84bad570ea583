"""Environment variables: those that the libraries under torch read once, when it is imported, and those of launchers.

The former have to be set before that. The commands do so, and leave a variable alone that is set already. A Python
program that uses diffunet has to set them itself. The latter are set by torchrun and accelerate launch.
"""

import os


def wait_asleep() -> None:
    """Let threads that wait for others soon sleep rather than spin.

    A spinning thread keeps a core from the very thread that it waits for where another program is at work. OpenMP from
    GNU, which torch has on Linux, spins for a count; LLVM's (macOS) and Intel's (Windows) spin for 200 ms, here for 1.
    A pass of a small net takes 30 to 35 ms on two idle cores. Beside a busy program of the same priority it takes 91 ms
    with GNU's, and 72 with this setting; 129 and 72 with Intel's; 113 and 84 with LLVM's.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ.setdefault("KMP_BLOCKTIME", "1")


def deterministic() -> None:
    """Let cuBLAS sum in the same order every time. It reads the variable at its first matrix product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def world_size() -> int:
    """Return how many processes a launcher has started together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Return whether this process is the one of them that writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0
