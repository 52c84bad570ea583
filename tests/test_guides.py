"""The README and the guides say what is so: their commands, options, links, names and tables."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys

import pytest
from helpers.documents import DOCUMENTS, ROOT, anchors, commands, inline, lines, links, text

from diffunet import guides
from diffunet.commands import arguments, cli, signature
from diffunet.commands.train import Train

MOST_LINES_OF_THE_README = 170

ELSEWHERE = {
    "--all", "--fast", "--help", "--help-all", "--images", "--index-url", "--machine-rank", "--masks", "--multi-gpu",
    "--num-processes", "--section.name",
}  # fmt: skip
"""Options of scripts and launchers, and of every command."""


def function_of(name):
    """Return the function of a command."""
    return getattr(importlib.import_module(f"diffunet.{cli.COMMANDS[name][0]}"), name)


@pytest.fixture
def understand(monkeypatch):
    """Have a command read its words, and do nothing of what they ask for."""
    monkeypatch.setattr("diffunet.training.loop.train", lambda *positional, **named: "model")

    def read(words):
        name, *rest = words
        if name == "train":
            function_of(name)(rest)
            return
        function = function_of(name)
        asked = functools.wraps(function)(lambda *positional, **named: None)
        arguments.call(asked, rest, name)

    return read


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_is_understood(name, understand):
    """Those of blocks that are not run here, too: for GPUs, launchers and the network."""
    for language in ("bash", "", "sbatch"):
        for words in commands(name, language):
            understand([word for word in words if word != "&"])


def test_wrong_commands_would_not_be_understood(understand):
    for words in (
        ["train", "photos", "--out", "x", "--no-such"],
        ["sample"],
        ["inpaint", "x", "y", "--num", "two"],
    ):
        with pytest.raises(arguments.UsageError):
            understand(words)


def test_scripts_that_are_called_exist():
    called = [word for name in DOCUMENTS for kind in ("bash", "") for words in lines(name, kind) for word in words]
    scripts = {word for word in called if word.startswith("scripts/")}
    assert scripts
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_options_that_are_spoken_of_exist():
    known = {*signature.options(Train), *ELSEWHERE}
    for name in cli.COMMANDS:
        known |= set() if name == "train" else set(signature.options(function_of(name)))
    off = {re.sub(r"^(--(?:\w+\.)?)no-", r"\1", option) for option in known}
    assert off == known  # none begins with no-, so that the following means that the option can be turned off
    unknown = []
    for name in DOCUMENTS:
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", " ".join(inline(name))):
            plain = re.sub(r"^(--(?:\w+\.)?)no-", r"\1", option.replace("_", "-")).rstrip(".")
            if plain not in known and not any(each.startswith(f"{plain}.") for each in known):
                unknown.append((name, option))
    assert unknown == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for link in links(name):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = DOCUMENTS[name].parent / path if path else DOCUMENTS[name]
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for path in re.findall(r"(?<=`)(?!runs/)\w+/[\w/]+\.(?:py|toml)(?=`)", text(name)):
        assert any((folder / path).exists() for folder in (ROOT, ROOT / "diffunet")), path


def test_the_readme_is_short_and_leads_to_every_guide():
    readme = text("README")
    assert len(readme.splitlines()) <= MOST_LINES_OF_THE_README
    for topic in guides.TOPICS:
        row = f"| [{guides.title(topic)}](diffunet/guides/{topic}.md) | {guides.about(topic)} |"
        assert row in readme, row


def test_every_file_is_a_guide_and_begins_with_its_title_and_a_sentence():
    assert {path.stem for path in guides.HERE.glob("*.md")} == set(guides.TOPICS)
    for topic in guides.TOPICS:
        assert guides.text(topic).startswith(f"# {guides.title(topic)}\n\n{guides.about(topic)}\n\n")
        assert len(guides.about(topic)) <= 78, "it is a line of the list in a terminal"
        assert guides.about(topic).endswith(".")
    with pytest.raises(KeyError):
        guides.text("../../README")


def test_the_guide_of_all_options_is_as_the_config_is():
    """`python scripts/options.py` writes it anew."""
    place = importlib.util.spec_from_file_location("options", ROOT / "scripts" / "options.py")
    script = importlib.util.module_from_spec(place)
    place.loader.exec_module(script)
    assert script.guide() == guides.text("options")


def test_functions_that_the_mathematics_names_exist():
    named = [code for code in inline("mathematics") if re.match(r"(diffusion|training)\.\w+", code)]
    assert len(named) > 40
    for code in named:
        assert pkgutil.resolve_name(f"diffunet.{code.partition('(')[0]}")


def test_arguments_that_the_guide_to_python_lists_are_those_of_the_functions():
    from diffunet.inpainting.part import ReadingOptions
    from diffunet.sampling.conditions import SamplingOptions
    from diffunet.sampling.pipeline import Pipeline

    for function, options in ((Pipeline.sample, SamplingOptions), (Pipeline.inpaint, ReadingOptions)):
        parameters = inspect.signature(function).parameters.values()
        has = {each.name for each in parameters if each.kind != each.VAR_KEYWORD} | set(options.__annotations__)
        [told] = re.findall(rf"^`pipe\.{function.__name__}[`(].*?\n\n", text("python"), re.M | re.S)
        names = re.findall(r"`(?:pipe\.\w+\(image, )?(\w+)(?:=[^`]*)?`", told)
        assert sorted(names) == sorted(has - {"self", "image"})


def test_messages_that_are_explained_are_those_of_the_code():
    """What stands between the names and numbers of each, in the text of the package with its strings joined."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "diffunet").rglob("*.py"))
    code = re.sub(r"""(?<=[^"'])["']\s*f?["'](?=[^"'])""", "", code)
    table = text("trouble").partition("| message |")[2].partition("\n\n")[0]
    messages = re.findall(r"^\| `([^`]+)`", table, re.M)
    assert len(messages) >= 10
    for message in messages:
        for part in re.split(r"\.\.\.|runs/photos|\b50\b|'cuda'|in photos|starlette", message):
            assert part.strip() in code, (message, part)


# `diffunet guide`.


def run(*words):
    code = "import sys\nfrom diffunet.commands.cli import main\n"
    code += f"try: main({list(words)!r})\nfinally: print('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_guides_are_listed_and_shown_without_torch():
    listed = run("guide")
    assert [line.split()[0] for line in listed.stdout.splitlines()[: len(guides.TOPICS)]] == list(guides.TOPICS)
    shown = run("guide", "inpainting")
    assert shown.stdout == f"{guides.text('inpainting')}False\n"
    assert listed.stdout.endswith("False\n")


def test_a_guide_that_is_not_there_is_an_error_that_names_the_nearest():
    asked = run("guide", "impainting")
    assert asked.returncode == 2
    assert asked.stderr == "diffunet: there is no guide 'impainting'; did you mean inpainting?\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_in_a_terminal_a_guide_is_laid_out_and_given_to_the_pager():
    import pty

    ours, theirs = pty.openpty()
    changes = {"TERM": "xterm", "COLUMNS": "90", "MANPAGER": "sed 's/^/|/'"}
    command = [sys.executable, "-m", "diffunet", "guide", "inpainting"]
    shown = b""
    with subprocess.Popen(command, env=os.environ | changes, stdin=theirs, stdout=theirs) as child:
        os.close(theirs)
        with contextlib.suppress(OSError):  # Linux says so that the other end was closed
            while some := os.read(ours, 65536):
                shown += some
    os.close(ours)
    assert child.returncode == 0
    lines = [line.rstrip("\r") for line in shown.decode().split("\n")[:-1]]
    assert all(line.startswith("|") and len(line) <= 91 for line in lines)
    said = " ".join(" ".join(line[1:].split()) for line in lines)
    assert "White in the mask is filled, and black is kept." in said
    assert "The page (diffunet guide the-page) lets you draw the mask" in said
    assert "](" not in said
    assert "\x1b" not in said  # colours are for less alone
