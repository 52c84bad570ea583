"""What a step computes on the GPU, recorded once as CUDA graphs and replayed at every step.

A small net is a thousand short kernels. Python and torch take longer to launch them one by one than a GPU takes to run
them: on an H200, with kernels of our own, a step of 128 images at 64 pixels took 25 ms of the GPU and 61 ms in all.
A replayed graph launches all of them at once. It computes the same numbers with the same kernels, from the tensors that
it was recorded with: so images, noise and labels are copied into these first. There is a graph of the pass through the
net and back, and one of the update of the weights: Muon alone launches hundreds of kernels. A graph is used only where
it gives what its function gives without it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffunet import draws
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.training.batches import Batch

Pass = Callable[[Batch, Tensor], Tensor]
"""(batch on the device, noise [b C H W]) -> the loss of each image, [b]; the parameters then have their gradients."""

Update = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, ...]]
"""(loss [], the gradients of all parameters) -> tensors that say what came of it; weights and moments are then changed,
unless the loss is not finite."""

CLOSE = 1e-2
"""The most by which gradients may differ, as a share of their norm: the order of sums in bfloat16 may be another."""

WARMUPS = 3
"""Calls before recording, which allocate what libraries keep, and build kernels."""

T = TypeVar("T")


def reason_against(config: Config, how: Compute, processes: int) -> str | None:
    """Return why the passes of a run with this resolved config cannot be recorded, or None."""
    t = config.train
    if how.device.type != "cuda":
        return "the device is no NVIDIA GPU"
    if not t.cuda_graph:
        return "as asked"
    if processes > 1 or t.grad_accumulation != 1:
        return "a step has several passes"
    if how.precision == "fp16":
        return "the scale of the loss changes in fp16"
    if config.model.checkpointing:
        return "with checkpointing, random states are read back in the pass"
    return None


def graph_of(run: Callable[[], T], forget: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Return the graph of `run`, and the tensors that it returned, which every replay overwrites.

    `run` is called some times before; `forget` is called after each.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARMUPS):
            run()
            forget()
    current.wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # the graph has memory of its own
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = run()
    except BaseException:  # the generator's own state would wait for a recording to end
        generator.graphsafe_set_state(before.graphsafe_get_state())
        raise
    return graph, result


class Recorded:
    """A pass that is replayed, called like the pass itself; its result is overwritten by the next call.

    Args:
        run: the pass, which waits for nothing and reads nothing back from the device.
        parameters: those whose gradients it sets, all None now.
        batch, noise: of the shapes that every call will have.
    """

    def __init__(self, run: Pass, parameters: Sequence[nn.Parameter], batch: Batch, noise: Tensor) -> None:
        self._batch, self._noise = _copied(batch), noise.clone()
        self._graph, self._losses = graph_of(lambda: run(self._batch, self._noise), lambda: forget(parameters))
        self._gradients = [(each, each.grad) for each in parameters if each.grad is not None]
        forget(parameters)

    def __call__(self, batch: Batch, noise: Tensor) -> Tensor:
        """Do the pass: the parameters get the graph's own gradients, which the next call overwrites."""
        for mine, given in zip(_tensors(self._batch), _tensors(batch), strict=True):
            mine.copy_(given, non_blocking=True)
        self._noise.copy_(noise)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._losses


class RecordedUpdate:
    """An update `run` of `parameters` that is replayed, and called like it; the next call overwrites its result."""

    def __init__(self, run: Update, parameters: Sequence[nn.Parameter]) -> None:
        self._gradients = [torch.zeros_like(each) for each in parameters]
        self._loss = self._gradients[0].new_full((), torch.nan)  # so that the calls before recording change nothing
        self._graph, self._result = graph_of(lambda: run(self._loss, self._gradients), lambda: forget(parameters))
        forget(parameters)

    def __call__(self, loss: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Do the update. The gradients may be overwritten by it."""
        self._loss.copy_(loss)
        torch._foreach_copy_(self._gradients, list(gradients))
        self._graph.replay()
        return self._result


def recorded(run: Pass, net: nn.Module, batch: Batch, noise: Tensor, seed: Callable[[], None]) -> Recorded:
    """Return the pass, recorded, if it gives the same losses and gradients as the pass itself.

    Args:
        run, net: the pass, and the net whose parameters it gives gradients.
        batch, noise: of the shapes that every call will have; other values of these shapes are tried.
        seed: called before a pass, so that dropout is the same.

    Raises:
        RuntimeError: it gives others, or some parameters get no gradient.
    """
    parameters = list(net.parameters())
    with filled(parameters):
        graph = Recorded(run, parameters, batch, noise)
        for number in range(2):
            other, noisy = _imagined(batch, noise, number)
            found = []
            for each in (run, graph):
                seed()
                losses = each(other, noisy)
                gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
                if len(gradients) < len(parameters):  # an update is recorded with the gradients of all
                    raise RuntimeError("some weights have no gradient")
                found.append([losses.detach().clone(), *gradients])
                forget(parameters)
            for off in _differences(*found):
                if not off <= CLOSE:  # true for NaN, too
                    raise RuntimeError(f"replayed gradients are off by {off:.1e} of their norm")
    return graph


def recorded_update(
    run: Update, parameters: Sequence[nn.Parameter], moments: Callable[[], Sequence[Tensor]], vary: Callable[[], None]
) -> RecordedUpdate:
    """Return the update, recorded, if it changes weights and moments as the update itself does.

    Args:
        run, parameters: the update, which reads nothing back from the device, and what it changes.
        moments: returns what the update changes beside the parameters; the tensors are there after its first call.
        vary: called once it is recorded; changes the learning rate, which a replay must read anew.

    Raises:
        RuntimeError: it changes them otherwise.
    """
    graph = RecordedUpdate(run, parameters)
    vary()
    changed = [*parameters, *moments()]
    before = [each.detach().clone() for each in changed]
    generator, found = torch.Generator(before[0].device), []
    with torch.no_grad():
        for each in (run, graph):
            generator.manual_seed(0)
            gradients = [torch.empty_like(p).normal_(generator=generator) for p in parameters]
            try:
                each(before[0].new_ones(()), gradients)
                found.append([after - earlier for after, earlier in zip(changed, before, strict=True)])
            finally:
                forget(parameters)
                torch._foreach_copy_(changed, before)
    for true, mine in zip(*found, strict=True):
        if not float((mine - true).norm()) <= CLOSE * float(true.norm()):  # true for NaN, too
            raise RuntimeError("a replayed update changes the weights otherwise")
    return graph


def forget(parameters: Sequence[nn.Parameter]) -> None:
    """Let the parameters have no gradients."""
    for parameter in parameters:
        parameter.grad = None


@contextmanager
def filled(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Give parameters small random numbers where they are 0, which would hide most gradients, within this context."""
    kept = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator(parameters[0].device).manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.empty_like(parameter).normal_(std=0.02, generator=generator)
            parameter.copy_(torch.where(parameter == 0, noise, parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)


def _imagined(batch: Batch, noise: Tensor, number: int) -> tuple[Batch, Tensor]:
    """Return other values of all that changes from step to step, at random, in the shapes of these."""
    with torch.random.fork_rng([noise.device] if noise.is_cuda else []):
        draws.seed_global(noise.device, number)
        keep = None if batch.keep is None else torch.rand_like(batch.keep, dtype=torch.float32) < 0.5
        images = torch.randint_like(batch.images, 0, 256)
        label = None if batch.label is None else torch.randint_like(batch.label, 0, 2)  # there is one, and none
        augment = None if batch.augment is None else 0.5 * torch.randn_like(batch.augment)
        sigma = torch.rand_like(batch.sigma) * 2 + 0.05
        return Batch(batch.start, images, label, sigma, augment, keep), torch.randn_like(noise)


def _differences(true: Sequence[Tensor], mine: Sequence[Tensor]) -> Iterator[float]:
    """Yield the norms of the differences of the losses, which come first, and of the gradients, as shares of theirs."""
    assert len(true) == len(mine)
    for part in (slice(1), slice(1, None)):
        exact, found = (torch.cat([each.flatten() for each in tensors[part]]) for tensors in (true, mine))
        yield float((found - exact).norm() / exact.norm())


def _tensors(batch: Batch) -> list[Tensor]:
    return [each for each in (batch.images, batch.label, batch.sigma, batch.augment, batch.keep) if each is not None]


def _copied(batch: Batch) -> Batch:
    label, augment, keep = (None if each is None else each.clone() for each in (batch.label, batch.augment, batch.keep))
    return Batch(batch.start, batch.images.clone(), label, batch.sigma.clone(), augment, keep)
