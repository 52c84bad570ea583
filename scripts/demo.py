"""Set diffunet up and show the whole of it, on the CPU, in minutes: `python3 scripts/demo.py`.

Options are those of `diffunet demo`, such as `--out FOLDER`.
"""

from __future__ import annotations

import subprocess
import sys

import environment

if __name__ == "__main__":
    python = environment.python()
    sys.exit(subprocess.call([str(python), "-m", "diffunet", "demo", *sys.argv[1:]], cwd=environment.ROOT))
