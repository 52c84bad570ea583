"""The help of the commands: every option is in it, in whole sentences, and a page of it fits a terminal."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
import tyro

from diffunet import names
from diffunet.commands import manual, signature
from diffunet.commands.cli import COMMANDS, GROUPS, USAGE, main
from diffunet.commands.train import Train
from diffunet.config import Config

UGLY = ("None", ", --no-", "STR", "FLOAT", "INT", "(default: )", "(default: False)", "╭", "…", "  --help-all-")


def target(command):
    """The function or dataclass that has the options of a command."""
    return (
        Train if command == "train" else getattr(importlib.import_module(f"diffunet.{COMMANDS[command][0]}"), command)
    )


@pytest.fixture
def page(monkeypatch, capsys):
    """What a command prints in a terminal of so many columns, and ends well."""

    def shown(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as stop:
            main([*words])
        out, err = capsys.readouterr()
        assert (stop.value.code, err) == (0, "")
        return out

    return shown


def listed(text):
    """The options of a page, each as it is typed without [no-], and its arguments."""
    found = re.findall(r"^  (--[\w.\[\]-]+|[A-Z][A-Z_]*)(?: |$)", text.partition("More options:")[0], re.MULTILINE)
    return [name.replace("[no-]", "") for name in found]


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("command", COMMANDS)
def test_all_of_the_help_lists_what_tyro_takes(command, page):
    actions = tyro.extras.get_parser(target(command))._actions
    taken = [action.option_strings[0] if action.option_strings else action.metavar for action in actions]
    assert sorted(listed(page(command, "--help-all"))) == sorted(set(taken) - {"-h"})


def test_all_of_the_help_of_training_lists_every_option_of_the_config(page):
    found = listed(page("train", "--help-all"))
    for section, field in Config.model_fields.items():
        options = [f"--{section}.{name}".replace("_", "-") for name in field.annotation.model_fields]
        assert listed(page("train", "--help", section)) == options
        assert set(options) <= set(found)


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_page_is_wider_than_the_terminal_or_ugly(command, columns, page):
    for words in (["--help"], ["--help-all"], *(["--help", part] for part in signature.sections(target(command)))):
        text = page(command, *words, columns=columns)
        assert [line for line in text.splitlines() if len(line) > columns] == []
        assert [mark for mark in UGLY if re.search(rf"(?<!\w){re.escape(mark)}", text)] == []
        assert [line for line in text.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_sentences_that_can_be_understood_alone(command):
    options = signature.options(target(command)).values()
    for option in options:
        assert re.match(r"[A-Z].* .*\.$", option.help), (option.name, option.help)
        assert not re.match(r"(Of|That|Those|Likewise|For that|It) ", option.help), (option.name, option.help)
    assert len({option.help for option in options}) == len(options)


def test_the_main_options_fit_a_screen_and_say_where_the_others_are(page):
    text = page("train", "--help")
    assert len(text.splitlines()) <= 45
    wanted = "DATA --out --minutes --steps --image-size --classes --task --resume --init --preset --config --batch-size"
    assert set(wanted.split()) <= set(listed(text))
    for command in COMMANDS:
        text = page(command, "--help")
        parts = {option.section or "all" for option in signature.options(target(command)).values() if option.rare}
        assert set(re.findall(r"^  --help[ -](\w+)", text, re.MULTILINE)) == (parts | {"all"} if parts else set())


def test_a_page_in_80_columns(page):
    """All of a short one, as it is to look."""
    assert page("demo", "--help") == (
        "usage: diffunet demo [OPTIONS]\n\n"
        "Do all of it on built-in data, in minutes, on a CPU: train on handwritten\n"
        "digits, sample, inpaint, judge.\n\n"
        "Example: diffunet demo --out demo\n\n"
        "  --out PATH              Folder for the data, the run and the pictures.\n"
        "                          (default: demo)\n"
        "  --seconds X             Seconds of training. (default: 60)\n"
        "  --overwrite             Replace what exists at the output.\n"
    )


def test_examples_stay_commands_when_they_are_copied(page):
    [example] = re.findall(r"Example: (.*?)\n\n", page("inpaint", "--help"), re.DOTALL)
    assert "\n" in example
    line = "diffunet inpaint runs/photos holiday.png --mask holiday-mask.png --out mended.png"
    assert shlex.split(example.replace("\\\n", "")) == line.split()  # as a shell does


def test_a_part_that_there_is_not(capsys):
    for words, line in (
        (["train", "--help", "dta"], "diffunet: --help has no part 'dta'; there is data\n"),
        (["sample", "--help=xyz"], "diffunet: --help has no part 'xyz'; there is sampling or computing or all\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert capsys.readouterr().err == line


def test_all_ways_to_ask(page):
    assert page("train", "-h") == page("train", "--help") == page("train", "photos", "--help", "--out", "x")
    assert page("help", "train") == page("train", "--help")
    assert page("help", "train", "data") == page("train", "--help", "data")
    assert page("train", "--help", "all") == page("train", "--help-all")
    assert page("train", "--preset", "ddpm", "--help", "train").count("(default: 128)") == 1  # its batch size


def test_what_is_wrong_names_the_nearest_option_and_the_page_that_has_it(capsys):
    for typed, said in (
        ("--image-sise 64", "--image-sise; did you mean --image-size? (see diffunet train --help)"),
        ("--lerning-rate 1", "--lerning-rate; did you mean --train.learning-rate? (see diffunet train --help train)"),
        ("--data.clases", "--data.clases; did you mean --data.classes? (see diffunet train --help data)"),
        ("--accept-data", "--accept-data; did you mean --accept-new-data? (see diffunet train --help-all)"),
        ("--helpp", "--helpp; did you mean --help? (see diffunet train --help)"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", "photos", "--out", "x", *typed.split()])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"diffunet: there is no option {said}\n"


def test_all_that_is_asked_for_imports_no_torch():
    code = (
        "import sys; from diffunet.commands.cli import main\n"
        "try: main(['train', '--help-all'])\nfinally: print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.endswith("False False\n")


def test_the_commands_are_told_in_groups_that_fit_a_terminal():
    assert [*COMMANDS] == re.findall(r"^  (\w+) ", USAGE, re.MULTILINE)
    assert re.findall(r"^(\w+):$", USAGE, re.MULTILINE) == [title.capitalize() for title in GROUPS]
    assert [line for line in USAGE.splitlines() if len(line) > 80] == []


def test_metavars_say_what_is_taken():
    assert signature.metavar(bool) == ""
    assert signature.metavar(bool | None) == "True|False"
    assert signature.metavar(tuple[float, float] | None) == "X X"
    assert signature.metavar(tuple[int | float, ...]) == "X ..."
    assert signature.metavar(names.SamplerName) == "NAME"
    assert signature.metavar(names.TaskName | None) == "generate|inpaint"


def test_the_words_after_help_that_are_no_part():
    parts = ("model", "data")
    assert manual.asked(["photos", "--out", "x"], parts) is None
    assert manual.asked(["--help", "--out", "x"], parts) == manual.asked(["--help", "runs/photos"], parts) == ""
    assert manual.asked(["--out", "x", "-h", "data"], parts) == manual.asked(["--help=data"], parts) == "data"
    assert manual.asked(["--help", "dta"], parts) == "dta"  # for which there is a line that names the nearest
