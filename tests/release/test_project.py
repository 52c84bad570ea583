"""What stands at the top of the repository for those who cite, contribute, report and deploy."""

import math
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.integrate import solve_ivp

import diffunet
from diffunet import build
from diffunet.commands.cli import main
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import Denoised

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CITATION, FAULT, TESTS = "CITATION.cff", ".github/ISSUE_TEMPLATE/fault.yml", ".github/workflows/tests.yml"


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "schema"),
    [(CITATION, "citation-file-format"), (FAULT, "github-issue-forms"), (TESTS, "github-workflows")],
)
def test_a_file_has_the_form_that_its_readers_ask_for(name, schema):
    """The published schemas, which check-jsonschema brings along."""
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", ROOT / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_yaml_file_is_read_and_known():
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*") if path.is_file()}
    assert there == {FAULT, TESTS}
    assert all(isinstance(read(name), dict) for name in (CITATION, *there))


def test_the_citation_is_of_this_version_and_licence():
    cited = read(CITATION)
    assert cited["version"] == diffunet.__version__
    assert PROJECT["license"] == " AND ".join(cited["license"])
    headings = re.findall(r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == (cited["version"], cited["date-released"].isoformat())


def test_a_fault_is_reported_with_the_machine_and_a_way_to_see_it():
    asked = {each["id"]: each for each in read(FAULT)["body"] if each["type"] != "markdown"}
    assert "diffunet info" in asked["info"]["attributes"]["label"]
    assert {name for name, each in asked.items() if each.get("validations", {}).get("required")} == {
        "what", "reproduction", "info",
    }  # fmt: skip


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_promised():
    jobs = read(TESTS)["jobs"]
    said = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", each)}
    assert set(jobs["linux"]["strategy"]["matrix"]["python"]) == said
    assert [step["run"] for step in jobs["linux"]["steps"] if "run" in step] == ["bash .ci/run"]
    assert [step["run"] for step in jobs["elsewhere"]["steps"] if "run" in step] == ["python scripts/test.py"]
    assert {each.split("-")[0] for each in jobs["elsewhere"]["strategy"]["matrix"]["system"]} == {"windows", "macos"}
    assert all((ROOT / name).is_file() for name in (".ci/run", "scripts/test.py"))


def instructions():
    """Yield (instruction, its words) of the Dockerfile."""
    content = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    for line in re.sub(r"\\\n", " ", content).splitlines():
        if line.strip():
            yield tuple(line.split(maxsplit=1))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_a_linter_has_nothing_to_say_of_the_dockerfile():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_container_is_nobody_special_and_serves_the_page(capsys):
    """Its command is one that diffunet understands, up to the model that is loaded; what it installs is on offer."""
    steps = list(instructions())
    last = dict(steps)
    assert last["USER"] == "1000"
    assert last["WORKDIR"] == last["VOLUME"] == "/data"
    entry, command = (yaml.safe_load(last[name]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == [*PROJECT["scripts"]]
    assert command == ["web", "emoji", "--host", "0.0.0.0", "--port", last["EXPOSE"]]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--limits.nothing"])  # all that comes before is understood
    assert stop.value.code == 2
    assert "--limits.nothing" in capsys.readouterr().err
    [extras] = [re.search(r"/src\[(.*)\]", words)[1] for name, words in steps if name == "RUN" and "/src" in words]
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    sent = (ROOT / ".dockerignore").read_text().split()
    assert sent[0] == "*"
    assert {PROJECT["readme"], "LICENSE", "pyproject.toml", "diffunet"} == {each[1:] for each in sent if each[0] == "!"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", CONTRIBUTING, re.S)


def test_what_contributors_are_told_to_run_is_there(pytestconfig):
    for line in "".join(blocks("bash")).splitlines():
        words = line.partition("#")[0].split()
        assert words[0] == "python3"
        assert (ROOT / words[1]).is_file()
        assert words[2:] in ([], ["--fast"], ["--all"])
    assert pytestconfig.getoption("--times") in (True, False)
    for file in re.findall(r"\]\((?!http)([^)#]+)", CONTRIBUTING + (ROOT / "SECURITY.md").read_text(encoding="utf-8")):
        assert (ROOT / file).exists(), file


def test_the_sampler_in_ten_lines_is_of_second_order():
    """Against scipy's solution of the ODE where images are 1 or -1, so that D(x, sigma) is tanh(x / sigma^2).

    (Where they are normal, the midpoint rule is by chance of third order.)
    """
    step, _ = blocks("python")
    exec(step, namespace := {})
    assert len([line for line in step.splitlines() if line.strip()]) <= 10
    no_noise = None  # it draws none
    high, low, errors = 2.0, 0.5, []
    exact = solve_ivp(lambda sigma, x: (x - np.tanh(x / sigma**2)) / sigma, (high, low), [1.5], rtol=1e-12, atol=1e-12)
    for n in (16, 32, 64):
        sigmas = torch.linspace(high, low, n + 1, dtype=torch.float64)
        x = torch.full((1, 1, 1, 1), 1.5, dtype=torch.float64)
        walk = samplers.sample(
            lambda x, sigma: Denoised(torch.tanh(x / sigma**2)), x, sigmas, namespace["midpoint"], no_noise
        )
        errors.append(abs(samplers.last(walk).item() - exact.y[0, -1]))
    orders = [math.log2(rough / fine) for rough, fine in pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.15)


def test_the_sampler_in_ten_lines_keeps_what_it_knows_from_the_largest_noise_on():
    """In float32 as in float64, where a flow model begins at 1e9, and images are normal: D = x / (1 + sigma^2)."""
    exec(blocks("python")[0], namespace := {})
    ends, no_noise = {}, None
    for precision in (torch.float64, torch.float32):
        sigmas = torch.tensor([1e9, 7, 3, 1.5, 0.7, 0.3, 0], dtype=torch.float64)
        x = (1e9 * torch.tensor([-2.0, -0.3, 0.01, 1.1], dtype=torch.float64)).to(precision)[:, None, None, None]
        walk = samplers.sample(
            lambda x, sigma: Denoised(x / (1 + sigma**2)), x, sigmas, namespace["midpoint"], no_noise
        )
        ends[precision] = samplers.last(walk).double()
    torch.testing.assert_close(ends[torch.float32], ends[torch.float64], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_sampler_in_ten_lines_samples_in_the_place_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(build.SAMPLERS, "heun", build.SAMPLERS["heun"])  # and back afterwards
    namespace = {}
    for block in blocks("python"):
        exec(block, namespace)
    assert Image.open("midpoint.png").size[0] > 2 * 64
