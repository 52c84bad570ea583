"""The scripts that complete what is typed, in the shells that are here: Tab is pressed in a terminal of theirs."""

import os
import select
import shutil
import subprocess
import sys
import time

import pytest
from helpers.commands import diffunet

from diffunet.commands import completion
from diffunet.commands.cli import COMMANDS

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {script}"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u -D; source {script}"),
}
"""How a shell is started without the user's settings, and how the script is read in it."""


@pytest.fixture(scope="module")
def known():
    return completion.options()


@pytest.fixture
def script(tmp_path, capsys):
    """`script(shell)` writes the script that the command prints, and returns its path."""

    def written(shell):
        diffunet("completion", shell)
        path = tmp_path / f"diffunet.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return written


def needs(shell):
    return pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no {shell}"))


def typed(shell, script, keys, folder):
    """Type keys, with Tabs among them, in a shell's terminal; gives the words that the command then got."""
    pty = pytest.importorskip("pty")
    words, read = START[shell]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm", "PS1": "ready> ", "HOME": str(folder)}
        os.execvp(words[0], words)
    said, deadline = "", time.monotonic() + 60

    def until(text):
        nonlocal said
        while text not in said:
            assert time.monotonic() < deadline, said
            if select.select([terminal], [], [], 0.1)[0]:
                said += os.read(terminal, 2**16).decode(errors="replace")
        said = said.partition(text)[2]

    try:
        os.write(terminal, f'{read.format(script=script)}; diffunet() {{ echo "GO""T $*."; }}; echo O""K\n'.encode())
        until("OK\r\n")
        for piece in keys.split("\t")[:-1]:
            os.write(terminal, f"{piece}\t".encode())
            time.sleep(0.5)
        os.write(terminal, f"{keys.split(chr(9))[-1]}\n".encode())
        until("GOT ")
        until_end = said
        while "." not in until_end:
            until_end += os.read(terminal, 2**16).decode(errors="replace")
        return until_end.partition(".")[0].split()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


@pytest.mark.seconds
@pytest.mark.parametrize("shell", [needs("bash"), needs("zsh")])
@pytest.mark.long
def test_tab_completes_a_command_its_options_their_values_and_files(shell, script, tmp_path):
    (tmp_path / "photos").mkdir()
    got = typed(shell, script(shell), "diffunet tr\t--mi\t5 --ta\tinp\tpho\t", tmp_path)
    assert got in (["train", "--minutes", "5", "--task", "inpaint", name] for name in ("photos/", "photos"))
    got = typed(shell, script(shell), "diffunet inp\t--ov\t--me\trepa\t", tmp_path)
    assert got == ["inpaint", "--overwrite", "--method", "repaint"]
    (tmp_path / "emily").mkdir()
    assert typed(shell, script(shell), "diffunet samp\temo\t--gr\t", tmp_path) == ["sample", "emoji", "--grid"]
    got = typed(shell, script(shell), "diffunet inp\temo\temi\t", tmp_path)
    assert got in (["inpaint", "emoji", name] for name in ("emily/", "emily"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tr", ["train"]), ("train --mi", ["--minutes"]), ("train --train.comp", ["--train.compile"]),
        ("train --task ", ["generate", "inpaint"]), ("train --task = in", ["inpaint"]),
        ("train --task =", ["generate", "inpaint"]), ("web --no", ["--no-token"]),
        ("sample --sampler dpm", ["dpm++2m", "dpm++2m-sde"]), ("train pho", []),
        ("sample --out pic", []), ("nothing --x", []), ("sample em", ["emoji"]), ("train --preset un", ["unet2015"]),
        ("train --init e", ["emoji"]), ("guide inp", ["inpainting"]), ("prepare dig", ["digits"]),
        ("sample --out em", []), ("completion fi", ["fish"]),
    ],
)  # fmt: skip
def test_bash_completes(words, found, script):
    code = (
        f'source {script("bash")}; COMP_WORDS=(diffunet {words}); [[ "{words}" == *" " ]] && COMP_WORDS+=("");'
        ' COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _diffunet; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (found, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tr", ["train"]), ("train --mi", ["--minutes"]), ("train --task ", ["generate", "inpaint"]),
        ("sample --sampler=dpm", ["--sampler=dpm++2m", "--sampler=dpm++2m-sde"]), ("sample pho", ["photos/"]),
        ("sample em", ["emoji"]), ("train --preset unet", ["unet2015"]), ("guide inp", ["inpainting"]),
        ("train --init e", ["emoji"]), ("train --init ph", ["photos/"]),
    ],
)  # fmt: skip
def test_fish_completes(words, found, script, tmp_path):
    (tmp_path / "photos").mkdir()
    code = f"source {script('fish')}; cd {tmp_path}; complete -C 'diffunet {words}'"
    home = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, timeout=60, env=home)
    assert sorted(line.partition("\t")[0] for line in done.stdout.splitlines()) == found
    assert done.stderr == ""


def test_every_command_is_known_with_its_options(known):
    assert [*known] == [*COMMANDS]
    by_name = {option.name: option for option in known["train"]}
    assert by_name["--task"].choices == ("generate", "inpaint")
    assert by_name["--out"].takes == "file"
    assert by_name["--resume"].takes == "nothing"
    assert "--no-resume" not in by_name
    assert all(option.words and "\n" not in option.words for there in known.values() for option in there)


def test_the_script_is_the_same_every_time_and_made_without_torch():
    code = (
        "import sys\nfrom diffunet.commands.cli import main\n"
        "try: main(['completion', 'zsh'])\nexcept SystemExit as end: assert end.code == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    made = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | seed)
        for seed in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert [each.stderr for each in made] == ["False\n"] * 2
    assert made[0].stdout == made[1].stdout
