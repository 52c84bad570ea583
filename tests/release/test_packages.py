"""The wheel and the source distribution, checked, and the wheel at work far from the checkout, without a network."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import diffunet

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

OFFLINE = """
import socket

def no(*args, **keywords):
    raise OSError("no network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = no
"""
"""The sitecustomize.py of an environment that reaches nobody."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the two packages; the wheel is built from the source distribution, as `build` does."""
    pytest.importorskip("build", reason="build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, cwd=folder)
    return folder


def test_there_are_two_of_this_version_and_their_metadata_are_sound(built):
    pytest.importorskip("twine", reason="twine is not installed")
    name = f"diffunet-{diffunet.__version__}"
    assert {path.name for path in built.iterdir()} == {f"{name}.tar.gz", f"{name}-py3-none-any.whl"}
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()], check=True)


def test_they_hold_the_package_and_nothing_else(built):
    [wheel], [source] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as content:
        installed = {name for name in content.namelist() if ".dist-info/" not in name}
    with tarfile.open(source) as content:
        sent = {name.partition("/")[2] for name in content.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "diffunet"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    assert installed == set(tracked.split())
    assert sent - installed == {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}


def test_the_wheel_samples_far_from_the_checkout_and_without_a_network(built, tmp_path):
    """In an environment of its own, which borrows all but diffunet from that of the tests: torch alone is gigabytes."""
    away, environment = tmp_path / "away", tmp_path / "venv"
    away.mkdir()
    venv.create(environment, with_pip=True)
    folder = environment / ("Scripts" if os.name == "nt" else "bin")
    [wheel] = built.glob("*.whl")
    free = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [folder / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, cwd=away, env=free)
    asked = [folder / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True, env=free).stdout.strip())
    borrowed = {str(Path(each.__file__).parents[1]) for each in (torch, numpy)}  # site-packages, of whichever kind
    # A .pth of a folder named in a .pth is not read: so an editable install of the checkout is not among what is lent.
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
    (packages / "sitecustomize.py").write_text(OFFLINE)

    where = subprocess.run(
        [folder / "python", "-c", "import diffunet; print(diffunet.__file__)"],
        check=True, capture_output=True, text=True, cwd=away, env=free,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(environment)
    command = [folder / "diffunet", "sample", "emoji", "--num", "1", "--out", "e.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=away, env=free | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert Image.open(away / "e.png").size == (64, 64)
    reach = [folder / "python", "-c", "import urllib.request as u; u.urlopen('http://localhost')"]
    assert "no network" in subprocess.run(reach, capture_output=True, text=True, env=free).stderr
