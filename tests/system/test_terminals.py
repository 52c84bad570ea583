"""The commands where there is no good terminal: closed pipes, closed streams, other encodings, signals, no home."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.commands.cli import COMMANDS

ROOT = Path(__file__).parents[2]
TINY = [
    "--image-size", "8", "--steps", "3", "--batch-size", "4", "--model.channels", "8", "--model.multipliers", "1",
    "--train.previews", "2", "--train.checkpoint-every", "1", "--train.log-every", "1",
]  # fmt: skip

posix = pytest.mark.skipif(os.name == "nt", reason="pipes, terminals and signals of POSIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a device or folder that only Linux has")


HASTY = (
    "import sys, diffunet.commands.progress as p; from diffunet.commands.cli import main; "
    "p.EVERY = 0; main(sys.argv[1:])"
)


def words_of(*words, hasty=False):
    """A command line; `hasty` says how far it is at every step, where others wait 15 seconds."""
    return [sys.executable, *(["-c", HASTY] if hasty else ["-m", "diffunet"]), *map(str, words)]


def environment(**changes):
    """This process's own, with `changes`; None takes a variable out."""
    changes = {"PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in {**os.environ, **changes}.items() if value is not None}


def outcome(*words, code=0, **changes):
    """Run a command to its end; its output and messages, in which there is no traceback."""
    done = subprocess.run(words_of(*words), env=environment(**changes), capture_output=True, timeout=300)
    out, err = (text.decode("utf-8", "backslashreplace") for text in (done.stdout, done.stderr))
    assert done.returncode == code, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return out, err


@pytest.fixture
def broken():
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def pictures(folder, *names):
    """Pictures to fill in, whose hole is transparent."""
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        pixels[2:5, 2:5, 3] = 0
        Image.fromarray(pixels).save(folder / name)
    return [folder / name for name in names]


# Nobody reads.


@posix
@pytest.mark.parametrize("unbuffered", [None, "1"])
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train", "--help"],
        ["demo", "--help"],
        ["check", "FOLDER"],
        pytest.param(["info", "RUN"], marks=pytest.mark.slow),
    ],
)
def test_a_reader_who_has_enough_is_no_error(folder, run, broken, words, unbuffered):
    words = [{"FOLDER": str(folder), "RUN": str(run)}.get(word, word) for word in words]
    done = subprocess.run(
        words_of(*words), env=environment(PYTHONUNBUFFERED=unbuffered), stdout=broken, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@posix
@pytest.mark.parametrize("unbuffered", [None, "1"])
def test_work_goes_on_when_nobody_reads(folder, run, broken, tmp_path, unbuffered):
    """Training, sampling and filling in, with both streams a closed pipe."""

    def into_the_void(*words):
        env = environment(PYTHONUNBUFFERED=unbuffered)
        return subprocess.run(words_of(*words), env=env, stdout=broken, stderr=broken).returncode

    assert into_the_void("train", folder, "--out", tmp_path / "run", *TINY) == 0
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 3)
    assert into_the_void("sample", run, "--out", tmp_path / "some", "--num", 3, "--steps", 2) == 0
    assert len(list((tmp_path / "some").glob("*.png"))) == 3
    given = pictures(tmp_path, "a.png", "b.png")
    assert into_the_void("inpaint", run, *given, "--out", tmp_path / "filled", "--steps", 2) == 0
    assert sorted(path.name for path in (tmp_path / "filled").glob("*.png")) == ["a.png", "b.png"]
    assert into_the_void("train", folder, "--out", tmp_path / "run", *TINY) == 2  # it exists, which nobody hears


@pytest.mark.slow
@posix
def test_progress_lines_that_nobody_reads_do_not_end_the_work(folder, broken, tmp_path):
    words = words_of("train", folder, "--out", tmp_path / "run", *TINY, hasty=True)
    assert subprocess.run(words, env=environment(), stderr=broken, stdout=subprocess.PIPE).returncode == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"


@linux
@pytest.mark.parametrize("words", [[], ["train", "--help"], ["demo", "--help"], ["check", "FOLDER"]])
@pytest.mark.parametrize("unbuffered", [None, "1"])
def test_results_on_a_full_disk_are_an_error_of_one_line(folder, words, unbuffered):
    words = [str(folder) if word == "FOLDER" else word for word in words]
    env = environment(PYTHONUNBUFFERED=unbuffered)
    with open("/dev/full", "w") as full:
        done = subprocess.run(words_of(*words), env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 6
    assert done.stderr == "diffunet: standard output cannot be written: No space left on device\n"


@pytest.mark.slow
@posix
def test_streams_that_are_closed_from_the_start(folder, run, tmp_path):
    def without(*words):
        line = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *words_of(*words)]
        return subprocess.run(line, env=environment()).returncode

    assert without("train", "--help") == 0
    assert without("check", folder) == 0
    assert without("train", folder, "--out", tmp_path / "run", *TINY) == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
    assert without("sample", run, "--out", tmp_path / "one.png", "--num", 1, "--steps", 2) == 0
    Image.open(tmp_path / "one.png").load()
    assert without("sample", run, "--out", tmp_path / "one.png", "--num", 1) == 2


# Terminals.


def in_terminal(*words, hang_up_after=None, columns=None, hasty=False, **changes):
    """Run a command with standard error a terminal; (exit code, what it showed). `hang_up_after` closes the terminal
    once that was shown."""
    import pty

    ours, theirs = pty.openpty()
    if columns is not None:
        import termios

        termios.tcsetwinsize(theirs, (24, columns))
    with subprocess.Popen(
        words_of(*words, hasty=hasty), env=environment(**changes), stdout=subprocess.PIPE, stderr=theirs
    ) as child:
        os.close(theirs)
        shown = b""
        while hang_up_after is None or hang_up_after not in shown:
            try:
                some = os.read(ours, 4096)
            except OSError:  # Linux says so that the other end was closed
                break
            if not some:
                break
            shown += some
        if hang_up_after is not None:
            assert hang_up_after in shown, shown
        os.close(ours)
        child.communicate(timeout=300)
        return child.returncode, shown.decode("utf-8", "replace")


@posix
@pytest.mark.parametrize("columns", [1, *(pytest.param(columns, marks=pytest.mark.slow) for columns in (7, 80))])
@pytest.mark.long
def test_a_bar_in_a_terminal_of_any_width(run, tmp_path, columns):
    [name] = pictures(tmp_path, "[red] {0}.png")  # nothing of this is markup
    code, shown = in_terminal(
        "inpaint", run, name, "--out", tmp_path / "out.png", "--steps", 3, columns=columns, TERM="xterm", COLUMNS=None
    )
    assert code == 0, shown
    assert "\x1b[?25l" in shown  # the cursor is hidden ...
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # ... and comes back
    if columns == 80:
        assert "filling [red] {0}.png" in shown


@posix
@pytest.mark.parametrize(
    "term", ["dumb", *(pytest.param(term, marks=pytest.mark.slow) for term in (None, "unheard-of"))]
)
@pytest.mark.long
def test_a_terminal_that_can_do_nothing(run, tmp_path, term):
    words = ["sample", run, "--out", tmp_path / "x.png", "--num", 1, "--steps", 2]
    code, shown = in_terminal(*words, hasty=True, TERM=term)
    assert code == 0, shown
    assert (tmp_path / "x.png").exists()
    if term == "dumb":
        assert "\x1b" not in shown
        assert "sampling: 1 of 2" in shown


@pytest.mark.slow
@posix
def test_a_terminal_that_goes_away_ends_nothing(folder, run, tmp_path):
    words = ["train", folder, "--out", tmp_path / "run", *TINY, "--steps", 30]
    code, shown = in_terminal(*words, hang_up_after=b"training", TERM="xterm")
    assert code == 0, shown
    assert json.loads((tmp_path / "run/status.json").read_text())["step"] == 30
    words = ["sample", run, "--out", tmp_path / "x.png", "--num", 1, "--steps", 300]
    code, shown = in_terminal(*words, hang_up_after=b"sampling", TERM="xterm")
    assert code == 0, shown
    Image.open(tmp_path / "x.png").load()


@posix
def test_mistakes_read_the_same_in_a_terminal(folder):
    """tyro colours its complaints where standard output is a terminal."""
    import pty

    ours, theirs = pty.openpty()
    words = words_of("train", folder, "--out", "x", "--train.steps", "abc")
    done = subprocess.run(words, env=environment(TERM="xterm"), stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(ours)
    os.close(theirs)
    assert done.stderr.startswith("diffunet: --train.steps takes a whole number, not 'abc'"), done.stderr


# Surroundings.


NARROW = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
]


HELP = """
from diffunet.commands.cli import COMMANDS, main
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
"""
"""The help of all commands in one process, which starts ten times as fast as ten."""


@pytest.mark.parametrize("changes", [*NARROW, {"COLUMNS": "1"}, {"TERM": None, "HOME": None}], ids=str)
def test_help_anywhere(changes):
    done = subprocess.run([sys.executable, "-c", HELP], env=environment(**changes), capture_output=True, timeout=300)
    text = done.stdout.decode("utf-8", "backslashreplace")
    assert (done.returncode, done.stderr) == (0, b"")
    assert [command for command in COMMANDS if f"diffunet {command}" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("changes", NARROW[:2], ids=str)
def test_names_in_other_scripts(tmp_path, changes):
    """They come out escaped where there are no letters for them."""
    cats = tmp_path / "猫"
    for name in ("黒", "béžová"):
        (cats / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(cats / name / f"{i}.png")
    (cats / "黒/壊.png").write_bytes(b"\x89PNG")
    out, _ = outcome("check", cats, **changes)
    assert "can be used" in out
    _, err = outcome("check", tmp_path / "犬", code=3, **changes)
    assert "no such folder" in err
    assert "--minutes takes a number" in outcome("train", cats, "--minutes", "犬", code=2, **changes)[1]
    assert "there is no option" in outcome("train", cats, "--犬", "1", code=2, **changes)[1]

    run = tmp_path / "走"
    outcome("train", cats, "--out", run, *TINY, "--classes", PYTHONUTF8="1")
    out, err = outcome("sample", run, "--out", tmp_path / "出", "--num", 2, "--steps", 2, **changes)
    assert "2 images in" in out
    assert len(list((tmp_path / "出").glob("*.png"))) == 2
    [given] = pictures(tmp_path, "写真.png")
    outcome("inpaint", run, given, "--out", tmp_path / "済.png", "--steps", 2, **changes)
    assert (tmp_path / "済.png").exists()
    assert (
        "there is no class"
        in outcome("sample", run, "--out", tmp_path / "x.png", "--num", 1, "--label", "犬", code=2, **changes)[1]
    )


HOMES = [
    {"HOME": None, "XDG_CACHE_HOME": None, "TERM": None},
    pytest.param({"HOME": "/proc/nothing", "XDG_CACHE_HOME": None}, marks=linux),  # not even root can write there
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", HOMES, ids=["no home", "a home that cannot be written"])
def test_without_a_home(folder, run, tmp_path, changes):
    changes = {**changes, "DIFFUNET_CACHE": None}
    if changes["HOME"] is None:  # else the user's own cache would be written
        changes["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    outcome("train", folder, "--out", tmp_path / "run", *TINY, **changes)
    outcome("sample", tmp_path / "run", "--out", tmp_path / "x.png", "--num", 1, "--steps", 2, **changes)
    outcome("inpaint", run, *pictures(tmp_path, "a.png"), "--out", tmp_path / "o.png", "--steps", 2, **changes)
    outcome("check", folder, **changes)
    outcome("info", run, **changes)
    outcome("prepare", "digits", tmp_path / "digits", "--limit", 20, **changes)
    outcome("evaluate", run, folder, "--num", 6, "--steps", 2, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_any_number_of_threads(folder, run, tmp_path, threads):
    outcome("train", folder, "--out", tmp_path / "run", *TINY, OMP_NUM_THREADS=threads)
    outcome("sample", run, "--out", tmp_path / "x.png", "--num", 1, "--steps", 2, OMP_NUM_THREADS=threads)


# Signals.


@contextlib.contextmanager
def at_work(*words, until):
    """A command that has said `until`."""
    with subprocess.Popen(words_of(*words), env=environment(), stderr=subprocess.PIPE, text=True) as child:
        try:
            said = ""
            while until not in said:
                line = child.stderr.readline()
                said += line
                assert line, said
            yield child
        finally:
            child.kill()


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@posix
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
    ],
)
@pytest.mark.long
def test_a_signal_ends_sampling_without_half_a_picture(run, tmp_path, number, code, word):
    (tmp_path / "x.png").write_bytes(b"what was there")
    words = ["sample", run, "--out", tmp_path / "x.png", "--overwrite", "--num", 1, "--steps", 100000]
    with at_work(*words, until="1 image of") as child:
        child.send_signal(number)
        err = child.communicate(timeout=60)[1]
    # A line of Python's may be before, where a finaliser has swallowed the signal.
    assert (child.returncode, err.splitlines()[-1]) == (code, f"diffunet: {word}")
    assert files_of(tmp_path) == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"what was there"


LOST = """
import os, signal, sys
from diffunet.sampling import conditions
from diffunet.commands import cli
usual = conditions.class_numbers
class Careless:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
def class_numbers(*args):
    conditions.class_numbers = usual
    Careless()  # Python drops what a finaliser raises
    return usual(*args)
conditions.class_numbers = class_numbers
cli.main(sys.argv[2:])
"""


@posix
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
@pytest.mark.long
def test_a_signal_that_a_library_swallowed_ends_sampling_at_the_next_step(run, tmp_path, number):
    words = ["sample", run, "--out", tmp_path / "x.png", "--num", "1", "--steps", "100000"]
    line = [sys.executable, "-c", LOST, str(int(number)), *map(str, words)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120)
    assert "Exception ignored" in done.stderr  # it was lost
    assert (done.returncode, done.stderr.splitlines()[-1][:10]) == (128 + number, "diffunet: ")
    assert files_of(tmp_path) == []


STUCK = """
import sys, time
from diffunet.commands import check, cli
def stuck():
    "Help."
    try:
        print("at work", file=sys.stderr, flush=True)
        time.sleep(600)
    finally:
        print("putting things away", file=sys.stderr, flush=True)
        time.sleep(600)
check.check = stuck
cli.main(["check"])
"""


@posix
def test_a_second_interrupt_ends_at_once(folder):
    with subprocess.Popen([sys.executable, "-c", STUCK], env=environment(), stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr.readline() == "at work\n"
        child.send_signal(signal.SIGINT)
        assert child.stderr.readline() == "putting things away\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT
    assert err == ""


@posix
@pytest.mark.long
def test_an_ignored_interrupt_stays_ignored(run, tmp_path):
    """`nohup`, or `&` in a script: Ctrl-C is for somebody else."""
    line = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', *words_of("info", run)]
    with subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert b"sampling" in out
