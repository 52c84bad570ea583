"""Averages of any width, put together after training, against averages that were kept directly."""

import filecmp
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import stop_at
from helpers.small import tiny
from safetensors import SafetensorError

import diffunet
from diffunet import compute, storage
from diffunet.commands.cli import main
from diffunet.config import read_toml
from diffunet.errors import CheckpointError, ResourceError, Stopped
from diffunet.training import checkpoint, defaults, ema, memory, recipe, snapshots
from diffunet.training.ema import Average, averages, exponential, gamma_of, inner_product, mismatch, posthoc, power
from diffunet.training.loop import train
from diffunet.training.state import State

DIRECT = {0.03: 0.02, 0.07: 0.005, 0.15: 0.005, 0.20: 0.01}
"""Widths that are not stored, and the relative error allowed with 16 stored pairs: of the L2 norm of what is put
together less the direct average, over that of the direct average less the newest weights."""

OLD = Path(__file__).parents[1] / "fixtures/v1"


def quadrature(function, upper):
    """Integral over [0, upper]."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return float(function((nodes + 1) * upper / 2) @ weights * upper / 2)


def profile(t, gamma):
    """The power function by its definition, 0 after t."""
    return lambda tau: np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.10, 0.20, 0.25])
def test_width_is_the_relative_deviation_of_the_profile(width):
    t, gamma = 3.0, gamma_of(width)
    p = profile(t, gamma)
    mean = quadrature(lambda tau: tau * p(tau), t)
    deviation = math.sqrt(quadrature(lambda tau: (tau - mean) ** 2 * p(tau), t))
    assert deviation / t == pytest.approx(width, rel=1e-6)
    by_formula = (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5  # appendix C of the paper
    assert by_formula == pytest.approx(width, rel=1e-12)


def test_gamma_of_the_widths_that_the_paper_names():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(ema.WIDEST) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [((2.0, 7.0), (3.0, 17.0)), ((3.0, 7.0), (2.0, 17.0)), ((2.0, 0.5), (2.0, 9.0))])
def test_inner_product_by_quadrature(a, b):
    wanted = quadrature(lambda tau: profile(*a)(tau) * profile(*b)(tau), min(a[0], b[0]))
    assert float(inner_product(*a, *b)) == pytest.approx(wanted, rel=1e-6)


def test_the_steps_that_an_average_takes_in():
    taken, average = [], Average(torch.nn.Linear(1, 1), lambda t, n: taken.append((t, n)) or 0.5)
    for _ in range(2100):
        average.update()
        assert average.time == taken[-1][0]
    times = [t for t, _ in taken]
    assert [n for _, n in taken] == np.diff([0, *times]).tolist()
    assert times[:512] == list(range(1, 513))
    assert times[512:515] + times[-2:] == [514, 516, 518, 2088, 2096]
    assert max(np.array([n for _, n in taken]) / np.array(times).clip(256)) <= 1 / 256


@pytest.mark.parametrize("width", [0.05, 0.10])
def test_a_power_average_is_the_integral_over_all_steps(width):
    """Against every step's own coefficient, the integral of p; and exactly so for weights that do not change."""
    steps, gamma, net = 2500, gamma_of(width), torch.nn.Linear(1, 1, bias=False)
    weights = 10 + np.sin(np.arange(1, steps + 1) / 200)
    average, still = Average(net, power(width)), Average(net, power(width))
    for value in weights:
        torch.nn.init.constant_(net.weight, 7.0)
        still.update()
        torch.nn.init.constant_(net.weight, value)
        average.update()
    edges = (np.arange(average.time + 1) / average.time) ** (gamma + 1)
    exact = float(np.diff(edges) @ weights[: average.time])
    assert average.net.weight.item() == pytest.approx(exact, abs=4 / 200)  # up to 8 steps at once, 4 late on average
    assert still.net.weight.item() == pytest.approx(7.0, rel=1e-6)


def test_an_exponential_average_forgets_at_its_half_life():
    net = torch.nn.Linear(1, 1, bias=False)
    average = Average(net, ema.exponential(halflife=3000, ramp=1.0, batch=10))
    for step in range(3000):
        torch.nn.init.constant_(net.weight, float(step >= 2696))
        average.update()
    # The half-life is 300 steps, and the weights of the last 304 are 1.
    assert average.net.weight.item() == pytest.approx(1 - 0.5 ** (304 / 300), abs=1e-4)


def test_mismatch_by_quadrature_and_no_other_coefficients_are_better():
    stored, t, width = [(t, w) for t in (2.0, 4.0, 6.0, 8.0) for w in ema.WIDTHS], 8.0, 0.07
    wanted = profile(t, gamma_of(width))

    def error(coefficients):
        def square(tau):
            parts = [c * profile(s, gamma_of(w))(tau) for c, (s, w) in zip(coefficients, stored, strict=True)]
            return (np.sum(parts, axis=0) - wanted(tau)) ** 2

        pieces = [quadrature(lambda x, at=at: square(x + at), 2.0) for at in (0.0, 2.0, 4.0, 6.0)]
        return math.sqrt(sum(pieces) / quadrature(lambda tau: wanted(tau) ** 2, t))

    best = posthoc(stored, t, width)
    assert best.sum() == pytest.approx(1, abs=1e-12)
    assert mismatch(stored, best, t, width) == pytest.approx(error(best), rel=1e-6)
    generator = np.random.default_rng(0)
    for _ in range(5):
        change = generator.normal(size=len(stored))
        assert error(best + 0.01 * (change - change.mean())) > error(best)


def test_power_average_of_weights_is_the_integral_of_the_profile():
    net = torch.nn.Linear(12, 1, bias=False)
    average = Average(net, power(0.1))
    for k in range(1, 13):
        with torch.no_grad():
            net.weight.copy_(torch.eye(12)[k - 1 : k])  # after update k the weights are the k-th unit vector
        average.update()
    edges = (np.arange(13) / 12) ** (gamma_of(0.1) + 1)  # integral of the profile from 0 to k
    assert average.updates == 12
    assert np.allclose(average.net.weight.numpy()[0], np.diff(edges), rtol=1e-5, atol=1e-12)


def flat(tensors):
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@pytest.mark.parametrize("skip", [False, True])
def test_put_together_from_a_random_walk(skip):
    torch.manual_seed(0)
    net = torch.nn.Linear(60, 60)
    kept = {width: Average(net, power(width)) for width in (*ema.WIDTHS, *DIRECT)}
    stored = {}
    for step in range(1, 801):
        skipped = skip and step % 7 in (1, 2)  # the weights stand still, and it is a step like any other
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.003 * torch.randn_like(parameter) * (not skipped))
        for average in kept.values():
            average.update()
        if step % 50 == 0:
            for width in ema.WIDTHS:
                stored[kept[width].updates, width] = flat(kept[width].net.parameters())
    t, now = kept[0.05].updates, flat(net.parameters())
    for width, allowed in DIRECT.items():
        coefficients = posthoc(list(stored), t, width)
        made = sum(c * weights for c, weights in zip(coefficients, stored.values(), strict=True))
        direct = flat(kept[width].net.parameters())
        assert (made - direct).norm() < allowed * (direct - now).norm(), width
    [exact] = np.flatnonzero(posthoc(list(stored), t, 0.1))
    assert list(stored)[exact] == (t, 0.1)


STEPS = 32


@pytest.fixture(scope="module")
def long(folder, tmp_path_factory):
    """A run with 16 stored pairs, whose checkpoint holds averages of other widths too, kept directly in float32."""
    out = tmp_path_factory.mktemp("runs") / "long"
    quiet = {
        "cooldown": 0,
        "previews": 0,
        "validate_every": 1000,
        "log_every": 16,
        "checkpoint_every": 16,
        "ema_every": 2,
    }
    write, pair = snapshots.write, ema.WIDTHS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ema, "WIDTHS", (*pair, *DIRECT))
        patch.setattr(snapshots, "write", lambda run, step, averages: write(run, step, averages[: len(pair)]))
        train(tiny(train={"steps": STEPS, "learning_rate": 3e-3, **quiet}), folder, out)
    return out


def kept(run, width, step=STEPS):
    content, _ = storage.read_tensors(checkpoint.folder_of(run, step) / "power.safetensors")
    start = f"{width:.3f}."
    return {name.removeprefix(start): tensor for name, tensor in content.items() if name.startswith(start)}


@pytest.mark.parametrize(("step", "widths"), [(None, (*ema.WIDTHS, *DIRECT)), (16, (*ema.WIDTHS, 0.07, 0.15))])
def test_put_together_from_a_run(long, step, widths):
    """Twice what the random walk is allowed, and the rounding of float16: 2^-12 of a weight is what it usually is."""
    at = step or STEPS
    stored = [(t, width) for t in range(2, at + 1, 2) for width in ema.WIDTHS]
    now, _ = storage.read_tensors(checkpoint.folder_of(long, at) / "model.safetensors")
    for width in widths:
        config, weights, made_of = snapshots.put_together(long, width, step)
        direct = kept(long, width, at)
        assert int(direct.pop("updates")) == made_of == at
        assert config == read_toml(long / "config.toml")
        names = sorted(direct)
        made, wanted, newest = (flat(part[name] for name in names) for part in (weights, direct, now))
        rounding = 2**-12 * np.linalg.norm(posthoc(stored, at, width)) * wanted.norm()
        allowed = 2 * DIRECT.get(width, 0.0) * (wanted - newest).norm()
        assert (made - wanted).norm() < allowed + rounding, width
        assert (made - wanted).norm() < 2e-3 * wanted.norm(), width


def test_a_stored_width_at_a_stored_step_is_that_file(long):
    path = long / f"ema/step-{STEPS:08d}-0.100.safetensors"
    content, metadata = storage.read_tensors(path)
    said = json.loads(metadata["average"])
    assert said["step"] == said["updates"] == STEPS
    weights = snapshots.put_together(long, 0.10)[1]
    assert all(torch.equal(content[name].float(), weights[name]) for name in weights)


# The command, as people type it.


def said(capsys, *words, code=0):
    """What a command prints; its one line of complaint where it ends with another code than 0."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    if not code:
        return out
    [line] = err.strip().splitlines()
    assert line.startswith("diffunet: ")
    return line


def test_convert_writes_a_model_folder(long, tmp_path, capsys):
    assert "the weights of step 32" in said(capsys, "convert", long, tmp_path / "a", "--ema", "0.07")
    made, wanted = storage.read_model(tmp_path / "a"), kept(long, 0.07)
    assert made.step == STEPS
    for name, tensor in made.denoiser.net.state_dict().items():
        assert torch.allclose(tensor, wanted[name], atol=1e-3)
    diffunet.load(tmp_path / "a").sample(1)
    assert "exists" in said(capsys, "convert", long, tmp_path / "a", code=2)
    said(capsys, "convert", long, tmp_path / "a", "--overwrite")
    usual, again = storage.read_model(long), storage.read_model(tmp_path / "a")
    assert all(torch.equal(x, y) for x, y in zip(usual.denoiser.parameters(), again.denoiser.parameters(), strict=True))
    said(capsys, "convert", long / "checkpoints/step-00000016", tmp_path / "c")
    assert storage.read_model(tmp_path / "c").step == 16
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("RUN OUT --ema 0.01", 2, r"--ema 0\.01 is not .* they give 0\.02\d to 0\.25\d .*train\.ema_every"),
        ("RUN OUT --ema 0.28", 2, r"they give 0\.02\d to 0\.25\d"),
        ("RUN OUT --ema 0.5", 2, r"above 0\.289 none is a power function"),
        ("RUN OUT --ema -0.1", 2, r"they give 0\.02\d to 0\.25\d"),
        ("RUN OUT --ema nan", 2, "--ema should be a finite number"),
        ("RUN OUT --ema 0.1 --step 7", 2, r"no average is stored of step 7 in .*; there are 2, 4, .* 32$"),
        ("RUN OUT --ema 0.03 --step 4", 2, r"--ema 0\.03 is not"),
        ("RUN OUT --step 16", 2, r"--step goes with --ema; .* RUN/checkpoints/step-00000016"),
        ("RUN RUN/model --overwrite", 2, "is in the run folder"),
        ("RUN RUN --overwrite", 2, "is in the run folder"),
        ("RUN/model OUT --ema 0.1", 4, "RUN/model is not a run folder: it has no config.toml"),
        ("OLD OUT --ema 0.1", 4, r"no stored averages.* trained without \(train\.ema_every\)"),
        ("NOWHERE OUT", 4, "there is no model NOWHERE"),
    ],
)
def test_convert_refuses_in_one_line(long, tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    for name, place in (("RUN", long), ("OLD", OLD / "run")):
        words = words.replace(name, str(place))
        message = message.replace(name, re.escape(str(place)))
    assert re.search(message, said(capsys, "convert", *words.split(), code=code))
    assert not Path("OUT").exists()


@pytest.mark.parametrize("how", ["a bit flipped", "cut", "of another net", "not one"])
def test_a_damaged_file_is_named(long, tmp_path, capsys, how):
    shutil.copytree(long, tmp_path / "run")
    path = tmp_path / "run/ema/step-00000024-0.050.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if how == "of another net":
        storage.write_tensors(path, {"weight": torch.zeros(3)}, {"average": json.dumps({"updates": 24, "sha256": ""})})
    elif how == "not one":
        storage.write_tensors(path, {"weight": torch.zeros(3)}, {})
    else:
        path.write_bytes(content if how == "a bit flipped" else content[:-9])
    assert path.name in said(capsys, "convert", tmp_path / "run", tmp_path / "out", "--ema", "0.07", code=4)
    path.unlink()  # what is left does without
    said(capsys, "convert", tmp_path / "run", tmp_path / "out", "--ema", "0.07")


def test_a_full_disk_leaves_the_model_that_was_there(long, run, tmp_path, monkeypatch):
    shutil.copytree(run / "model", tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(storage, "save_file", full)
    config, weights, step = snapshots.put_together(long, 0.05)
    with pytest.raises(ResourceError, match="No space left on device"):
        storage.export_model(tmp_path / "model", config, weights, step)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


# A checkpoint as a model.


def test_a_checkpoint_folder_is_a_model(long, tmp_path, monkeypatch):
    folder = checkpoint.folder_of(long, 16)
    monkeypatch.chdir(folder)
    for given in (folder, "."):
        model = storage.read_model(given)
        wanted, _ = storage.read_tensors(folder / "ema.safetensors")
        assert model.step == 16
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.denoiser.net.state_dict().items())
        assert model.config == read_toml(long / "config.toml")
    diffunet.load(folder).sample(1)
    shutil.copytree(folder, tmp_path / "alone")
    with pytest.raises(CheckpointError, match=r"is in no run folder, whose config\.toml"):
        diffunet.load(tmp_path / "alone")


def test_a_damaged_checkpoint_folder_is_no_model(long, tmp_path):
    shutil.copytree(long, tmp_path / "run")
    path = checkpoint.folder_of(tmp_path / "run", 16) / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is damaged"):
        diffunet.load(path.parent)
    (path.parent / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json, which says"):
        diffunet.load(path.parent)


# Along a run.

SHORT = {"steps": 6, "cooldown": 0, "ema_every": 2, "previews": 0}


def test_resumed_equals_not_stopped_file_by_file(folder, tmp_path):
    config = tiny(train=SHORT)
    train(config, folder, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "parts", on_step=lambda progress: progress.step < 3)
    later = tmp_path / "parts/ema/step-00000005-0.050.safetensors"  # of steps that a crash undid
    shutil.copy(tmp_path / "whole/ema/step-00000004-0.050.safetensors", later)
    (tmp_path / "parts/ema/.tmpAbCdEf").touch()
    train(config, folder, tmp_path / "parts", resume=True)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / run / "ema").iterdir()} for run in ("whole", "parts")
    ]
    assert sorted(files[0]) == [
        f"step-{step:08d}-{width}.safetensors" for step in (2, 4, 6) for width in ("0.050", "0.100")
    ]
    assert files[0] == files[1]
    whole, parts = (checkpoint.folder_of(tmp_path / run, 6) / "power.safetensors" for run in ("whole", "parts"))
    assert filecmp.cmp(whole, parts, shallow=False)


def test_a_checkpoint_with_damaged_averages_is_not_used(long, tmp_path):
    shutil.copytree(long, tmp_path / "run")
    path = checkpoint.folder_of(tmp_path / "run", STEPS) / "power.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", 16)


def test_a_run_without_goes_on_without_and_says_so(tmp_path, caplog):
    shutil.copytree(OLD, tmp_path / "old")
    config = read_toml(tmp_path / "old/run/config.toml").changed("train", steps=6, ema_every=1)
    caplog.set_level("INFO", logger="diffunet")
    train(config, tmp_path / "old/data", tmp_path / "old/run", resume=True)
    assert caplog.text.count("goes on without stored averages") == 1
    assert not (tmp_path / "old/run/ema").exists()
    assert not (checkpoint.folder_of(tmp_path / "old/run", 6) / "power.safetensors").exists()
    assert read_toml(tmp_path / "old/run/config.toml").train.ema_every == 0


def test_storing_may_be_given_up_on_resume(folder, tmp_path):
    train(tiny(train={**SHORT, "steps": 4}), folder, tmp_path / "run")
    train(tiny(train={**SHORT, "ema_every": 0}), folder, tmp_path / "run", resume=True)
    assert {each.step for each in snapshots.find(tmp_path / "run")} == {2, 4}
    assert checkpoint.problem(checkpoint.folder_of(tmp_path / "run", 6)) is None


def test_a_full_disk_is_said_as_at_a_checkpoint(folder, tmp_path, monkeypatch):
    save_file = storage.save_file

    def full(content, path, metadata):
        if "ema" in path.parts and "00000004" in path.name:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(content, path, metadata)

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(
        ResourceError, match=r"step-00000004-0\.050.* \(\d+ KiB\) .*No space left on device.*--resume.*are whole"
    ):
        train(tiny(train=SHORT), folder, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [3]
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 6
    assert not list((tmp_path / "run/ema").glob(".*"))


def test_how_often_by_default():
    def every(**values):
        config = defaults.resolve(
            tiny(train=values), images=9, class_names=(), mean=(0.0,) * 3, sigma_data=0.5,
            how=compute.choose("cpu", "fp32"),
        )  # fmt: skip
        return config.train.ema_every

    assert every(steps=99) == 0
    assert every(steps=1000) == 63
    assert every(steps=160_000) == 10_000
    assert every(steps=160_000, ema_every=7) == 7


def test_a_number_in_them_that_is_not_finite_is_seen_before_a_save():
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = State(net, (optimizer,), averages(net, 1.0, 1.0, 1, stored=True))
    assert state.finite()
    with torch.no_grad():
        state.power[1].net.bias[0] = math.nan
    assert not state.finite()


def test_they_count_as_memory():
    how = compute.choose("cpu", "fp32")
    some, none = (defaults.architecture(tiny(train={"ema_every": every}), how.device) for every in (5, 0))
    more = memory.training_bytes(some, how, 1) - memory.training_bytes(none, how, 1)
    assert more == 2 * 4 * memory.price(some).parameters


def test_the_last_step_is_stored_too(folder, tmp_path):
    train(tiny(train={"steps": 7, "cooldown": 0, "ema_every": 3, "previews": 0}), folder, tmp_path / "run")
    assert {each.step for each in snapshots.find(tmp_path / "run")} == {3, 6, 7}


def stored_steps(run):
    return sorted({each.step for each in snapshots.find(run)})


@pytest.mark.slow
def test_a_run_that_is_made_longer_thins_them_evenly_where_they_would_take_more_than_their_disk(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(defaults, "WORTH_STORING", 1)
    monkeypatch.setattr(defaults, "STORED", 4)
    quiet = {"cooldown": 0, "previews": 0, "validate_every": 1000, "log_every": 8}
    for name, room in (("little", 4), ("much", 1000)):
        run = tmp_path / name
        train(tiny(train={"steps": 8, **quiet}), folder, run)
        assert stored_steps(run) == [2, 4, 6, 8]
        pair = sum(path.stat().st_size for path in (run / "ema").glob("step-00000002-*"))
        monkeypatch.setattr(defaults, "STORED_BYTES", room * pair)
        train(tiny(train={"steps": 16, **quiet}), folder, run, resume=True)
        every = 4 if name == "little" else 2
        assert read_toml(run / "config.toml").train.ema_every == every
        assert stored_steps(run) == list(range(every, 17, every))
        monkeypatch.setattr(defaults, "STORED_BYTES", 10**9)


def test_averages_that_were_asked_for_so_often_stay(folder, tmp_path, monkeypatch):
    quiet = {"cooldown": 0, "previews": 0, "validate_every": 1000, "ema_every": 3}
    train(tiny(train={"steps": 6, **quiet}), folder, tmp_path / "run")
    monkeypatch.setattr(defaults, "STORED_BYTES", 1)
    train(tiny(train={"steps": 9, **quiet}), folder, tmp_path / "run", resume=True)
    assert stored_steps(tmp_path / "run") == [3, 6, 9]
    train(tiny(train={"steps": 12, **quiet, "ema_every": 2}), folder, tmp_path / "run", resume=True)
    assert stored_steps(tmp_path / "run") == [3, 6, 9, 10, 12]


def test_averages_of_a_run_with_minutes_stay_when_it_only_goes_on(folder, tmp_path, monkeypatch):
    """Both those that were asked for and those that were chosen; the latter are thinned where the run is longer."""
    monkeypatch.setattr(defaults, "WORTH_STORING", 1)
    monkeypatch.setattr(recipe, "seconds_per_step", lambda *_: 1.0)
    options = {"steps": None, "minutes": 60.0, "previews": 0, "validate_every": 1000, "cooldown": 0.4}
    for name, every in (("asked", 3), ("chosen", None)):
        run = tmp_path / name
        monkeypatch.setattr(defaults, "stored_every", lambda *_: 3)
        with pytest.raises(Stopped):
            train(tiny(train=options | {"ema_every": every}), folder, run, on_step=stop_at(6))
        monkeypatch.setattr(defaults, "STORED_BYTES", 1)
        with pytest.raises(Stopped):
            train(tiny(train=options), folder, run, resume=True, on_step=stop_at(9))
        assert stored_steps(run) == [3, 6, 9]
        with pytest.raises(Stopped):
            train(tiny(train=options | {"minutes": 90.0}), folder, run, resume=True, on_step=stop_at(12))
        left = sorted(path.name[:13] for path in (run / "ema").glob("*-0.050.*"))
        assert left == ([f"step-{step:08}" for step in (3, 6, 9, 12)] if name == "asked" else [])
        monkeypatch.setattr(defaults, "STORED_BYTES", 10**9)


def test_buffers_of_the_average_are_those_of_the_net():
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.BatchNorm1d(2))
    average = Average(net, exponential(100.0, 0.1, 4))
    for _ in range(3):
        net(torch.randn(5, 2) + 7)
        average.update()
    assert average.net[1].running_mean.min() > 0.5
    torch.testing.assert_close(average.net[1].running_mean, net[1].running_mean)
    assert average.net[1].num_batches_tracked == 3
