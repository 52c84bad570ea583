"""Steps that are replayed from a recording, on the CPU: a stand-in for CUDA's graph runs the pass again, from the
tensors that it was recorded with. tests/gpu has the real one."""

from dataclasses import replace

import pytest
import torch
from helpers.small import tiny
from safetensors.torch import load_file

from diffunet import build
from diffunet.compute import Compute
from diffunet.errors import Stopped
from diffunet.training import cuda_graph, defaults
from diffunet.training.learner import Learner
from diffunet.training.loop import train

CPU, CUDA = Compute(torch.device("cpu")), Compute(torch.device("cuda"))


class StandIn(cuda_graph.Recorded):
    """Runs the pass again, and keeps its gradients in tensors that the next call overwrites."""

    def __init__(self, run, parameters, batch, noise):
        self._batch, self._noise = cuda_graph._copied(batch), noise.clone()
        self._run, self._parameters, self._graph = run, parameters, self
        self._losses, self._gradients, self.replays = torch.zeros(len(noise)), [], 0
        run(self._batch, self._noise)
        self._gradients = [(each, each.grad.clone()) for each in parameters if each.grad is not None]
        cuda_graph.forget(parameters)

    def replay(self):
        self.replays += 1
        self._losses.copy_(self._run(self._batch, self._noise))
        for parameter, kept in self._gradients:
            kept.copy_(parameter.grad)
        cuda_graph.forget(self._parameters)


def graph_of(run, forget):
    """As `cuda_graph.graph_of` for an update: calls the function again, and overwrites its first results."""
    run()
    forget()
    result = tuple(each.clone() for each in run())

    class Graph:
        replays = 0

        def replay(self):
            self.replays += 1
            for kept, new in zip(result, run(), strict=True):
                kept.copy_(new)
            forget()

    return Graph(), result


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(cuda_graph, "Recorded", StandIn)
    monkeypatch.setattr(cuda_graph, "graph_of", graph_of)
    monkeypatch.setattr(cuda_graph, "reason_against", lambda *_: None)


def learner(**sections):
    config = defaults.resolve(
        tiny(**sections), images=40, class_names=("disc", "square"), mean=(0.0,) * 3, sigma_data=0.5, how=CPU
    )
    torch.manual_seed(0)
    denoiser = build.denoiser(config)
    CPU.prepare(denoiser)
    return Learner(config, denoiser, CPU)


def batches(learns, count):
    batch = learns.imagined(learns.batch_size)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.randint(0, 256, batch.images.shape, generator=generator, dtype=torch.uint8)
        keep = None if batch.keep is None else torch.rand(batch.keep.shape, generator=generator) < 0.5
        label = torch.randint(0, 3, batch.label.shape, generator=generator)
        yield replace(
            batch, images=images, keep=keep, label=label, sigma=torch.rand(len(images), generator=generator) + 0.1
        )


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"dropout": 0.3}},
        {"diffusion": {"task": "inpaint", "learned_uncertainty": True}, "data": {"augment": 0.5}},
        {"data": {"image_size": 16}, "train": {"half_size": 0.5, "half_size_until": 3}},
        {"train": {"optimizer": "adamw"}},
    ],
    ids=["dropout", "inpaint", "half", "adamw"],
)
def test_replayed_steps_learn_the_same(stand_in, sections):
    plain, replayed = learner(**sections), learner(**sections)
    before = {name: tensor.clone() for name, tensor in replayed.state.net.state_dict().items()}
    assert replayed.record(replayed.batch_size) is None
    assert len(replayed.recorded) == (2 if "half_size" in sections.get("train", {}) else 1)
    updates = replayed.recorded_update._graph.replays
    assert all(torch.equal(tensor, before[name]) for name, tensor in replayed.state.net.state_dict().items())
    assert all(parameter.grad is None for parameter in replayed.parameters)
    tried = {graph: graph.replays for graph in replayed.recorded.values()}
    for step, batch in enumerate(batches(plain, 6)):
        spoilt = replace(batch, sigma=batch.sigma * (torch.nan if step == 2 else 1))  # which nothing is learned from
        first, second = (each.step(step, [spoilt]) for each in (plain, replayed))
        assert all(torch.equal(a, b) or (a.isnan() & b.isnan()).any() for a, b in zip(first, second, strict=True))
        assert second.bad == (step == 2)
    assert sum(graph.replays - before for graph, before in tried.items()) == 6
    assert replayed.recorded_update._graph.replays - updates == 6
    mine, true = ({**each.state.tensors()["model"], **each.state.tensors()["optimizer"]} for each in (replayed, plain))
    assert len(true) > 2 * len(before)
    assert [name for name, tensor in true.items() if not torch.equal(mine[name], tensor)] == []
    assert not all(torch.equal(mine[name], before[name]) for name in before)


@pytest.mark.parametrize("lost", ["images", "label", "sigma", "augment", "keep", "noise", "weights", "not finite"])
def test_a_recording_that_gives_other_gradients_is_not_used(stand_in, monkeypatch, lost):
    def call(self, batch, noise):
        mine = self._batch
        self._batch = batch if lost in ("noise", "weights", "not finite") else replace(
            batch, **{lost: getattr(mine, lost)}
        )  # fmt: skip
        self._noise = self._noise if lost == "noise" else noise
        self.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient * (2 if lost == "weights" else torch.nan if lost == "not finite" else 1)
        return self._losses

    monkeypatch.setattr(StandIn, "__call__", call)
    learns = learner(diffusion={"task": "inpaint"}, data={"augment": 0.5})
    with torch.no_grad():  # as after some training: labels and augmentation begin almost without effect
        for parameter in learns.parameters:
            parameter.normal_(std=0.1)
    before = {name: tensor.clone() for name, tensor in learns.state.net.state_dict().items()}
    assert learns.record(learns.batch_size).startswith("replayed gradients are off by")
    assert learns.recorded == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in learns.state.net.state_dict().items())
    assert all(parameter.grad is None for parameter in learns.parameters)


@pytest.mark.parametrize("lost", ["loss", "gradients", "half", "moments", "not finite", "rate", "error"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_recording_that_updates_otherwise_is_not_used(stand_in, monkeypatch, caplog, lost, optimizer):
    replay = cuda_graph.RecordedUpdate.__call__

    def call(self, loss, gradients):
        if lost == "moments":
            learns.state.moments()[-1].add_(1)
        if lost == "rate":
            learns._set_rate(first)  # that of the recording
        given = torch.full_like(loss, torch.nan) if lost == "loss" else loss
        factor = {"gradients": 0, "half": -1, "not finite": torch.nan}.get(lost, 1)
        changed = [each * (1 if n % 2 and lost == "half" else factor) for n, each in enumerate(gradients)]
        found = replay(self, given, changed)
        return found if lost != "error" else 1 / 0

    monkeypatch.setattr(cuda_graph.RecordedUpdate, "__call__", call)
    learns = learner(train={"optimizer": optimizer})
    first = learns.state.optimizers[0].param_groups[0]["lr"]
    before = {name: tensor.clone() for name, tensor in learns.state.net.state_dict().items()}
    with caplog.at_level("INFO"):
        assert learns.record(learns.batch_size) is None
    why = "division by zero" if lost == "error" else "a replayed update changes the weights otherwise"
    assert caplog.messages == [f"the update of the weights is not recorded: {why}"]
    assert learns.recorded  # the pass is replayed all the same
    assert learns.recorded_update is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in learns.state.net.state_dict().items())
    assert not any(tensor.any() for tensor in learns.state.moments())
    assert all(parameter.grad is None for parameter in learns.parameters)


def test_what_torch_cannot_record_is_done_as_before(monkeypatch):
    def refuses(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(cuda_graph, "reason_against", lambda *_: None)
    monkeypatch.setattr(cuda_graph, "recorded", refuses)
    learns = learner()
    assert learns.record(learns.batch_size) == "operation not permitted when stream is capturing"
    assert learns.recorded == {}


def test_a_person_s_own_net_or_loss_is_not_recorded(stand_in):
    learns = learner()
    assert learns.record(learns.batch_size, own=True) == "the net or the loss is your own"
    assert learns.recorded == {}


@pytest.mark.parametrize(
    ("how", "sections", "processes", "reason"),
    [
        (CPU, {}, 1, "the device is no NVIDIA GPU"),
        (CUDA, {"train": {"cuda_graph": False}}, 1, "as asked"),
        (CUDA, {}, 2, "a step has several passes"),
        (CUDA, {"train": {"grad_accumulation": 2}}, 1, "a step has several passes"),
        (replace(CUDA, precision="fp16"), {}, 1, "the scale of the loss changes in fp16"),
        (CUDA, {"model": {"checkpointing": True}}, 1, "with checkpointing, random states are read back in the pass"),
        (replace(CUDA, precision="bf16"), {}, 1, None),
        (replace(CUDA, compiled=True), {}, 1, None),
    ],
)
def test_which_runs_are_recorded(how, sections, processes, reason):
    config = tiny(**sections)
    config = config.changed("train", grad_accumulation=config.train.grad_accumulation or 1)
    assert cuda_graph.reason_against(config, how, processes) == reason


def test_a_run_that_is_replayed_is_resumed_to_the_same_weights(stand_in, folder, tmp_path):
    options = {"steps": 6, "previews": 0, "checkpoint_every": 3, "threads": 1}
    runs = {name: tmp_path / name for name in ("plain", "replayed")}
    for name, run in runs.items():
        train(tiny(train=options | {"cuda_graph": name == "replayed"}), folder, run)
    stopped = tmp_path / "stopped"
    with pytest.raises(Stopped, match="stopped at step 5"):
        train(tiny(train=options), folder, stopped, on_step=lambda progress: progress.step < 4)
    train(tiny(train=options), folder, stopped, resume=True)
    plain, *others = (load_file(run / "model" / "model.safetensors") for run in (*runs.values(), stopped))
    assert all(torch.equal(other[name], tensor) for other in others for name, tensor in plain.items())
