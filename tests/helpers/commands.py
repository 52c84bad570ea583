"""Commands run in this process, as people type them."""

import pytest

from diffunet.commands.cli import main
from diffunet.pictures import images


def diffunet(*words, code=0):
    """Run a command that must end with `code`."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == code


def refused(capsys, *words, code=2):
    """Run a command that must end with `code`; gives its complaint, one line, the last."""
    capsys.readouterr()
    diffunet(*words, code=code)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    line = said.strip().splitlines()[-1]
    assert line.startswith("diffunet: ")
    return line


def dies_at(monkeypatch, n):
    """Let the next command be interrupted when it is about to write picture n, counted from 0; undone by the result."""
    plain, left = images.save, [n]

    def save(picture, path):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        plain(picture, path)

    monkeypatch.setattr(images, "save", save)
    return lambda: monkeypatch.setattr(images, "save", plain)
