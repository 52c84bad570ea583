"""The benchmark of speed: its sums and tables, what makes it fail and what does not, and a few parts of it on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import benchmark  # noqa: E402
from benchmarks import NAMES, measure, report  # noqa: E402

ROW = {
    "measure": "ddpm 32", "way": "diffunet", "unit": "images/s", "better": "more", "reference": "diffunet",
    "median": 1234.5, "from_to": [1200.0, 1300.0], "rounds": [1200.0, 1234.5, 1300.0], "ratio": 1.0,
    "ratio_from_to": [1.0, 1.0], "difference": 1e-6, "tolerance": 1e-4,
}  # fmt: skip
OTHER = ROW | {
    "way": "diffusers",
    "median": 12.345,
    "from_to": [12.0, 13.0],
    "ratio": 0.01,
    "ratio_from_to": [0.009, 0.011],
}
NAMED = {"measure": "ddpm 32", "way": "diffusers", "unit": "images/s", "better": "more", "reference": "diffunet"}


def part(*rows, planned=None, ended="exit code 0"):
    """What came of a sub-benchmark."""
    planned = [[row["measure"], row["way"]] for row in rows] if planned is None else planned
    return {"about": "First line.\n\nMore.", "planned": planned, "rows": list(rows), "ended": ended, "busy_before": 0.0}


def found(**parts):
    """What speed.json holds."""
    machine = {
        "cpu": "A CPU", "cores": 2, "threads": 2, "flags": ["AVX2"], "memory_gib": 8.0, "chosen": "fp32 (as asked)",
        "versions": {"torch": "2.11", "diffusers": None},
    }  # fmt: skip
    about = {"command": "python scripts/benchmark.py", "date": "2026-01-01", "spin_count": 1000, "quiet": 0.1}
    return about | {"machine": machine, "parts": parts}


# Sums


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_power_that_made_the_points(power):
    points = {x: 3e-3 * x**power for x in (1, 2, 8, 100)}
    assert measure.exponent(points) == pytest.approx(power, abs=1e-12)


def test_the_exponent_is_the_least_squares_of_the_logarithms():
    # log2 of the sizes is 0, 1, 2 and of the seconds 0, 0, 3: the slope is (3 - 0) / 2.
    assert measure.exponent({1: 1.0, 2: 1.0, 4: 8.0}) == pytest.approx(1.5)


def test_ratios_are_of_the_same_round():
    got = measure.summary([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert (got["median"], got["from_to"], got["ratio"], got["ratio_from_to"]) == (4.0, [1.0, 9.0], 2.0, [1.0, 3.0])
    assert "ratio" not in measure.summary([1.0], [])


# Measures


def counting(order, name, values, facts=None):
    """A way whose laps give these values, and are noted in `order`."""
    left = iter(values)

    def lap():
        order.append(name)
        return next(left)

    return lambda: (lap, facts or {})


def test_ways_are_taken_in_turns():
    order = []
    ways = {"a": counting(order, "a", [1.0, 2.0, 3.0]), "b": counting(order, "b", [2.0, 4.0, 3.0], {"steps": 5})}
    a, b = measure.Measure("m", "s", ways, {"b": measure.Wanted("ratio", most=2.0)}).rows(seconds=0.0)
    assert order == ["a", "b"] * 3
    assert (a["rounds"], b["rounds"]) == ([1.0, 2.0, 3.0], [2.0, 4.0, 3.0])
    assert (b["ratio"], b["steps"], b["reference"], b["wanted"]) == (2.0, 5, "a", {"of": "ratio", "most": 2.0})


def test_more_rounds_are_taken_while_there_is_time():
    ways = {"a": counting([], "a", [1.0] * 9)}
    [row] = measure.Measure("m", "s", ways, least=1, most=9).rows(seconds=1000.0)
    assert len(row["rounds"]) == 9


def test_a_way_that_fails_or_is_missing_has_a_row_without_figures_and_the_rest_goes_on():
    def missing():
        raise ModuleNotFoundError("No module named 'diffusers'")

    def differs():
        return (lambda: 1.0), measure.refuse_difference(0.5, 1e-4)

    def nan():
        return (lambda: 1.0), measure.refuse_difference(float("nan"), 1e-4)

    def breaks():
        def lap():
            raise RuntimeError("of its own\nand more")

        return lap, {}

    ways = {"a": counting([], "a", [1.0, 2.0]), "missing": missing, "differs": differs, "nan": nan, "breaks": breaks}
    rows = {row["way"]: row for row in measure.Measure("m", "s", ways).rows(0.0, tiny=True)}
    assert rows["a"]["median"] == 1.5
    assert rows["missing"]["missing"] == "No module named 'diffusers'"
    assert rows["differs"]["failed"] == "computes something else: off by 5.0e-01, where 1.0e-04 is allowed"
    assert "computes something else" in rows["nan"]["failed"]
    assert rows["breaks"]["failed"] == "RuntimeError: of its own"
    assert not any("median" in row for way, row in rows.items() if way != "a")


# What came of it


def test_what_makes_it_fail():
    missing, failed = NAMED | {"missing": "No module named 'diffusers'"}, NAMED | {"failed": "why"}
    assert list(report.problems(part(ROW, OTHER))) == []
    assert list(report.problems(part(ROW, missing))) == []
    assert list(report.problems(part(ROW, failed))) == ["ddpm 32 | diffusers: why"]
    assert list(report.problems(part(ROW, NAMED))) == ["ddpm 32 | diffusers: there are no figures"]
    planned = [["ddpm 32", "diffunet"], ["ddpm 32", "diffusers"]]
    assert list(report.problems(part(ROW, planned=planned))) == ["ddpm 32 | diffusers: there is no row"]
    assert list(report.problems(part(ended="exit code 1"))) == ["ended with exit code 1", "nothing was measured"]


def test_the_table():
    wanted = OTHER | {"wanted": {"of": "ratio", "least": 0.5}}
    missing = NAMED | {"way": "other", "missing": "No module named 'other'"}
    text = report.lines(found(step=part(ROW, wanted, missing)))
    for line in (
        "| measure | way | median (from to) | ratio (from to) | wanted |",
        "| ddpm 32 | diffunet | 1,234 images/s (1,200 to 1,300) | reference |  |",
        "| ddpm 32 | diffusers | 12.3 images/s (12 to 13) | 0.01 (0.009 to 0.011) | at least 0.5 (ratio): NO |",
        "| ddpm 32 | other | missing |  |  |",
        "- ddpm 32 | diffunet: difference 1e-06; tolerance 0.0001",
        "- ddpm 32 | other: No module named 'other'",
        "First line.",
    ):
        assert line in text
    assert "More." not in text
    assert not any("NOT QUIET" in line or "PROBLEM" in line for line in text)
    assert "torch 2.11, diffusers missing" in text[2]


def test_a_machine_that_was_not_quiet_and_a_problem_are_said():
    text = report.lines(found(step=part(NAMED | {"failed": "why"}) | {"busy_before": 1.5}))
    assert "**THE MACHINE WAS NOT QUIET before step: 1.5 cores were busy.**" in text
    assert "- PROBLEM: ddpm 32 | diffusers: why" in text


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"of": "median", "most": 0.3}, "at most 0.3 (s): yes"), ({"of": "median", "most": 0.1}, "at most 0.1 (s): NO"),
        ({"of": "ratio", "least": 2.0}, "at least 2 (ratio)"),
    ],
)  # fmt: skip
def test_what_is_wanted_in_words(goal, said):
    assert report.wanted({"unit": "s", "median": 0.2, "wanted": goal}) == said


@pytest.mark.seconds
def test_bars(tmp_path):
    pytest.importorskip("matplotlib")
    report.draw(found(step=part(ROW, OTHER), busy=part(ROW)), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


# The command


def run(tmp_path, *words, path=()):
    """Its exit code, what speed.json holds, and all that it said."""
    paths = [*path, SCRIPTS.parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, SCRIPTS / "benchmark.py", *words, "--tiny", "--device", "cpu", "--out", tmp_path / "out"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=variables, cwd=tmp_path)
    kept = tmp_path / "out/speed.json"
    return ended.returncode, json.loads(kept.read_text()) if kept.exists() else {}, ended.stdout + ended.stderr


def test_what_cannot_be_is_refused(tmp_path, capsys):
    (tmp_path / "speed.json").touch()
    for words, said in ((["dance"], "there is no dance"), (["step", "--out", str(tmp_path)], "name another folder")):
        with pytest.raises(SystemExit) as stop:
            benchmark.arguments(words)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert benchmark.arguments(["start", "step"]).names == ["step", "start"]
    assert benchmark.arguments([]).names == list(NAMES)


@pytest.mark.slow
def test_a_way_that_computes_something_else_makes_the_exit_code_1(tmp_path):
    pytest.importorskip("diffusers")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'benchmarks' in sys.orig_argv:\n"
        "    from benchmarks import nets\n"
        "    right = nets.unet2d\n"
        "    def wrong(config, folder):\n"
        "        net = right(config, folder)\n"
        "        net.conv_in.weight.data *= 1.001\n"
        "        return net\n"
        "    nets.unet2d = wrong\n"
    )
    code, kept, said = run(tmp_path, "forward", path=[tmp_path])
    assert code == 1, said
    rows = {(row["measure"][:7], row["way"]): row for row in kept["parts"]["forward"]["rows"]}
    assert "computes something else" in rows["ddpm 32", "diffusers"]["failed"]
    assert "median" not in rows["ddpm 32", "diffusers"]
    assert rows["ddpm 32", "diffunet"]["median"] > 0
    assert rows["ddpm 32", "diffunet"]["difference"] < 1e-4


@pytest.mark.slow
def test_a_missing_peer_is_a_row_and_no_failure(tmp_path):
    name = "sample"
    (tmp_path / "diffusers.py").write_text("raise ModuleNotFoundError(\"No module named 'diffusers'\")\n")
    code, kept, said = run(tmp_path, name, path=[tmp_path])
    assert code == 0, said
    rows = kept["parts"][name]["rows"]
    assert {row["way"].split(",")[0] for row in rows if "missing" in row} == {"diffusers"}
    assert all("median" in row for row in rows if row["way"].startswith("diffunet"))
    theirs = [row for row in rows if row["way"].startswith("diffusers")]
    assert all(row["missing"] == "No module named 'diffusers'" for row in theirs)


@pytest.mark.slow
def test_all_of_it_on_a_cpu(tmp_path):
    code, kept, said = run(tmp_path)
    assert code == 0, said
    assert list(kept["parts"]) == list(NAMES)
    for name, least in (("busy", 2), ("overheads", 2), ("processes", 1)):
        part = kept["parts"][name]
        assert part["ended"] == "exit code 0"
        assert [[row["measure"], row["way"]] for row in part["rows"]] == part["planned"]
        assert all(row["median"] >= 0 and len(row["rounds"]) == least for row in part["rows"] if "missing" not in row)
    assert kept["machine"]["device"] == "cpu"
    assert "| beside a busy process |" in (tmp_path / "out/speed.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".jsonl") == []
