"""A virtual environment with diffunet in it, for scripts that are started with a bare Python.

Needs nothing but Python's own library, on any system: no shell, no activation.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"


def python(extra: str = "") -> Path:
    """The Python of `.venv`, with this checkout and its `extra` installed; made or brought up to date first."""
    if not sys.version_info[:2] >= (3, 11):
        sys.exit(f"diffunet needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable})")
    windows = sys.platform == "win32"
    executable = ENVIRONMENT / ("Scripts/python.exe" if windows else "bin/python")
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    stamp = ENVIRONMENT / f".diffunet-{extra or 'plain'}"
    if executable.exists() and stamp.exists() and stamp.read_text() == wanted:
        return executable
    if not executable.exists():
        print(f"Making {ENVIRONMENT} ...", flush=True)
        venv.create(ENVIRONMENT, with_pip=True, clear=ENVIRONMENT.exists())
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    print("Installing diffunet and what it needs (torch is large: some minutes the first time) ...", flush=True)
    command = [str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", target]
    if subprocess.call(command) != 0:
        sys.exit("The install failed; pip's words are above. Mend that and run this again.")
    stamp.write_text(wanted)
    return executable
