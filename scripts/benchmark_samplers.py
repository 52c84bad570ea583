"""Every sampler on every schedule and ladder, on a mixture of Gaussians in the plane, where the denoiser is exact.

    .venv/bin/python scripts/benchmark_samplers.py --out samples

writes `samplers.md`, and `samplers.png` and `samplers-stochastic.png`, for which it needs matplotlib
(`pip install -e .[bench]`). About two minutes on one core; `--quick` a few seconds.

ODE samplers: the root mean square distance to the exact end of the probability-flow ODE, at sigma 0. Ladders begin at
different sigmas: each starts where the exact ODE is at its first one, all on the same trajectories, so that the error
is the sampler's and not that of where it starts. The last step of every sampler, to sigma 0, is x = D; what that alone
costs is the row "last step". Samplers with noise: the sliced Wasserstein-2 distance of their points, started from pure
noise as images are, to a large exact sample; an exact sample of as many points has the distance "floor".
Both are in units of the data, whose deviation is 0.5.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mixture import Mixture, random_mixture, sliced_distance
from torch import Tensor

from diffunet import build
from diffunet.config import Config
from diffunet.diffusion.denoiser import Denoise, Denoised
from diffunet.diffusion.samplers import STRIDE_MAX, State, Step, ddpm, dpmpp_2m, euler, heun, last, sample, unipc
from diffunet.diffusion.schedules import DDPMSchedule, EDMSchedule, FlowSchedule, Schedule
from diffunet.draws import Noise

BUDGETS = (5, 10, 15, 25, 50, 100, 200)
"""Net evaluations; a sampler takes as many steps as fit."""

SCHEDULES: dict[str, Schedule] = {
    "linear": DDPMSchedule(1000, "linear"),
    "scaled-linear": DDPMSchedule(1000, "scaled-linear"),
    "cosine": DDPMSchedule(1000, "cosine"),
    "sigmoid": DDPMSchedule(1000, "sigmoid"),
    "scaled-linear, zero SNR": DDPMSchedule(1000, "scaled-linear", zero_snr=True),
    "edm": EDMSchedule(),
    "flow": FlowSchedule(),
}
LADDERS = ("trailing", "leading", "linspace", "karras", "log-snr")
DRAWN = {
    "linear": "log-snr",
    "sigmoid": "log-snr",
    "scaled-linear, zero SNR": "log-snr",
    "cosine": "trailing",
    "flow": "trailing",
    "edm": "karras",
}
"""What the pictures show, a panel each."""

ODE: dict[str, Callable[[int], Step]] = {
    "euler": lambda n: euler(),
    "heun": lambda n: heun(),
    "dpm++2m": lambda n: dpmpp_2m(),
    "unipc(2)": lambda n: unipc(2),
    "unipc(3)": lambda n: unipc(3),
}
"""Samplers of n steps that draw nothing."""

STOCHASTIC: dict[str, Callable[[int], Step]] = {
    "ddpm, small": lambda n: ddpm("small"),
    "ddpm, large": lambda n: ddpm("large"),
    "heun, churn": lambda n: heun(gamma=min(40 / n, math.sqrt(2) - 1), low=0.05, high=50.0),
    "dpm++2m sde": lambda n: dpmpp_2m(eta=1.0),
}
"""Samplers of n steps that draw; churn as EDM has it for ImageNet-64, without its S_noise, which is against nets."""

NOTES = """`ddim` and `euler` are one function, `ddim(eta=1)`, `euler ancestral` and `ddpm, small` another; flow with
logit-normal times has the ladders of flow, only its training differs."""

Errors = dict[tuple[str, str, str], dict[int, tuple[int, float]]]
"""(schedule, ladder, sampler) -> budget -> evaluations made, error."""


def main() -> None:
    """Measure, print, write the table and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for the table and the pictures; without it, print only")
    parser.add_argument("--quick", action="store_true", help="few points and budgets")
    parser.add_argument("--seed", type=int, default=0, help="of mixture and points")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mixture, budgets = random_mixture(options.seed), BUDGETS[:3] if options.quick else BUDGETS
    points, drawn = (32, 1000) if options.quick else (512, 20_000)
    distances, last_steps = ode_errors(mixture, budgets, points, options.seed)
    spreads, floor = stochastic_errors(mixture, budgets, drawn, options.seed)
    text = report(distances, last_steps, spreads, floor, budgets)
    text += "\n" + claim(mixture, points, options.seed)
    print(text)
    print(f"\n{time.process_time():.0f} s of one core")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "samplers.md").write_text(text, encoding="utf-8")
        draw(distances, "distance to the end of the ODE", options.out / "samplers.png", last_steps=last_steps)
        draw(spreads, "sliced Wasserstein-2 distance", options.out / "samplers-stochastic.png", floor=floor)


def ladder(schedule: str, name: str, n: int) -> Tensor:
    """As sampling with a model has it, [n + 1]."""
    return build.ladder(Config().changed("diffusion", ladder=name).diffusion, SCHEDULES[schedule], n)


def calls(step: Step, sigmas: Tensor) -> int:
    """How often `step` asks the denoiser on its way down `sigmas`."""
    made = 0

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        nonlocal made
        made += 1
        return Denoised(x)

    last(sample(denoise, torch.zeros(1, 1, 1, 1), sigmas, step, lambda: torch.zeros(1, 1, 1, 1)))
    return made


def fitting(make: Callable[[int], Step], ladder_of: Callable[[int], Tensor], budget: int) -> tuple[int, int]:
    """The most steps within a budget of evaluations, and the evaluations that they take."""

    def needed(n: int) -> int:
        return calls(make(n), ladder_of(n))

    n = budget // 2  # fits, whatever the sampler: no step takes more than two, and the last one takes one
    if needed(budget) <= budget:
        n = budget
    while needed(n + 1) <= budget:
        n += 1
    return n, needed(n)


def no_noise() -> Tensor:
    """For samplers of the ODE."""
    raise AssertionError("samplers of the ODE make no draw")


def rms(difference: Tensor) -> float:
    """Root of the mean square distance of points."""
    return difference.flatten(1).square().sum(1).mean().sqrt().item()


def ode_errors(mixture: Mixture, budgets: tuple[int, ...], points: int, seed: int) -> tuple[Errors, Errors]:
    """Distance to the end of the ODE: of each sampler, and of x = D where the exact ODE is at the last sigma."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(points, 2, 1, 1, generator=generator, dtype=torch.float64)
    plans = []
    for schedule in SCHEDULES:
        for name in LADDERS:
            for sampler, make in ODE.items():
                for budget in budgets:
                    n, made = fitting(make, partial(ladder, schedule, name), budget)
                    plans.append((schedule, name, sampler, budget, n, made))
    sigmas = {plan: ladder(*plan[:2], plan[4]) for plan in plans}
    exact = mixture.trajectory(noise, {s for each in sigmas.values() for s in (each[0].item(), each[-2].item(), 0.0)})
    errors: Errors = {}
    last_steps: Errors = {}
    for plan in plans:
        schedule, name, sampler, budget, n, made = plan
        rungs = sigmas[plan]
        end = last(sample(mixture.denoise, exact[rungs[0].item()], rungs, ODE[sampler](n), no_noise))
        errors.setdefault((schedule, name, sampler), {})[budget] = (made, rms(end - exact[0.0]))
        if sampler == "euler":
            end = mixture.denoise(exact[rungs[-2].item()], rungs[-2]).x0
            last_steps.setdefault((schedule, name, "last step"), {})[budget] = (made, rms(end - exact[0.0]))
    return errors, last_steps


def stochastic_errors(
    mixture: Mixture, budgets: tuple[int, ...], points: int, seed: int
) -> tuple[Errors, tuple[float, float]]:
    """Sliced Wasserstein-2 distance of samplers that draw, and of dpm++2m beside them; mean and deviation of its floor.

    On the ladder of the pictures, and on trailing and karras.
    """
    generator = torch.Generator().manual_seed(seed)
    distance = sliced_distance(mixture.draw(10 * points, generator).float(), points)
    floor = torch.tensor([distance(mixture.draw(points, generator)) for _ in range(10)])

    def noise() -> Tensor:
        return torch.randn(points, 2, 1, 1, generator=generator)

    first = generator.get_state()  # every walk draws the same

    errors: Errors = {}
    for schedule in SCHEDULES:
        for name in dict.fromkeys((DRAWN.get(schedule, "trailing"), "trailing", "karras")):
            for sampler, make in {**STOCHASTIC, "dpm++2m": ODE["dpm++2m"]}.items():
                for budget in budgets:
                    n, made = fitting(make, partial(ladder, schedule, name), budget)
                    rungs = ladder(schedule, name, n)
                    generator.set_state(first)
                    end = last(sample(mixture.denoise, rungs[0] * noise(), rungs, make(n), noise))
                    errors.setdefault((schedule, name, sampler), {})[budget] = (made, distance(end))
    return errors, (floor.mean().item(), floor.std().item())


def plain_heun(
    denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
) -> tuple[Tensor, Denoised, State]:
    """Karras et al. 2022, algorithm 1 as printed: Euler's step only where it goes to sigma 0."""
    denoised = denoise(x, sigma)
    slope = (x - denoised.x0) / sigma
    predicted = x + (sigma_next - sigma) * slope
    if sigma_next > 0:
        slope = (slope + (predicted - denoise(predicted, sigma_next).x0) / sigma_next) / 2
    return x + (sigma_next - sigma) * slope, denoised, None


def claim(mixture: Mixture, points: int, seed: int) -> str:
    """What STRIDE_MAX is for, in numbers: 10 steps on two trailing ladders."""
    noise = torch.randn(points, 2, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lines = [
        f"10 steps, trailing: Heun's as printed, and with Euler's where sigma / sigma' > {STRIDE_MAX:g}\n",
        "| schedule | euler | heun | heun as printed | printed / euler |",
        "|---|---|---|---|---|",
    ]
    for schedule in ("cosine", "flow"):
        rungs = ladder(schedule, "trailing", 10)
        exact = mixture.trajectory(noise, [rungs[0].item(), 0.0])
        ends = (
            last(sample(mixture.denoise, exact[rungs[0].item()], rungs, s, no_noise))
            for s in (euler(), heun(), plain_heun)
        )
        errors = [rms(end - exact[0.0]) for end in ends]
        lines.append(f"| {schedule} | {' | '.join(map(number, errors))} | {errors[2] / errors[0]:.3g} |")
    return "\n".join(lines) + "\n"


def number(error: float) -> str:
    """Two digits."""
    return f"{error:.2g}" if error >= 1e-4 else f"{error:.1e}"


def best(errors: Errors, budgets: tuple[int, ...], noise: float = 0.0) -> str:
    """The sampler and ladder of least error for each schedule; below `noise` how many there are."""
    lines = ["| schedule | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for schedule in SCHEDULES:
        row = []
        for budget in budgets:
            ours = {key: each[budget][1] for key, each in errors.items() if key[0] == schedule}
            least = min(ours, key=lambda key: ours[key])
            alike = sum(error <= noise for error in ours.values())
            row.append(f"{alike} at the floor" if alike else f"{least[2]}, {least[1]} {number(ours[least])}")
        lines.append(f"| {schedule} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def table(errors: Errors, budgets: tuple[int, ...]) -> str:
    """Schedules one after another, a line for each ladder and sampler; evaluations made in brackets where fewer."""
    lines = []
    for schedule in SCHEDULES:
        lines += [f"| {schedule} | | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 2) + "|"]
        for name in LADDERS:
            for (of, on, sampler), each in errors.items():
                if (of, on) == (schedule, name):
                    cells = (
                        number(error) + (f" ({made})" if made < budget - 1 else "")
                        for budget, (made, error) in each.items()
                    )
                    lines.append(f"| {name} | {sampler} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def report(
    distances: Errors,
    last_steps: Errors,
    spreads: Errors,
    floor: tuple[float, float],
    budgets: tuple[int, ...],
) -> str:
    """All of it in Markdown."""
    parts = [
        "# Samplers where the denoiser is exact\n",
        "Written by `python scripts/benchmark_samplers.py --out samples`: a mixture of ten Gaussians in the plane, of",
        "deviation 0.5, error over evaluations of the denoiser.\n",
        f"{NOTES}\n",
        "## The ODE: root mean square distance to its exact end\n",
        'Every ladder starts on the exact ODE. The last step of every sampler is x = D; "last step" is what it costs a',
        "sampler that is exact until then. In brackets: evaluations made, where fewer fit. A point that starts close",
        "to the watershed of two components may end in the wrong one: one of 512 that does makes 0.01 of the error.\n",
        "Best:\n",
        best(distances, budgets),
        table({**distances, **last_steps}, budgets),
        "## Noise: sliced Wasserstein-2 distance to exact samples\n",
        f"Started from pure noise. An exact sample of as many points: {floor[0]:.2g} ± {floor[1]:.1g}; up to two",
        "deviations above that is at the floor. dpm++2m, which draws nothing but its start, is there to compare.\n",
        "Best:\n",
        best(spreads, budgets, floor[0] + 2 * floor[1]),
        table(spreads, budgets),
    ]
    return "\n".join(parts)


COLOURS = {
    "euler": "#555555",
    "ddpm, small": "#555555",
    "heun": "#E69F00",
    "heun, churn": "#E69F00",
    "dpm++2m": "#0072B2",
    "unipc(2)": "#009E73",
    "ddpm, large": "#009E73",
    "unipc(3)": "#CC79A7",
    "dpm++2m sde": "#CC79A7",
}
"""Of Okabe and Ito (2008), which the colour-blind can tell apart; each has a marker of its own too."""
MARKERS = "osD^vP"


def draw(
    errors: Errors, label: str, file: Path, last_steps: Errors | None = None, floor: tuple[float, float] | None = None
) -> None:
    """Error over evaluations, a panel for each schedule of `DRAWN`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(2, 3, figsize=(11, 7.4), sharex=True, sharey=True, layout="constrained")
        for panel, (schedule, name) in zip(axes.flat, DRAWN.items(), strict=True):
            samplers = [key[2] for key in errors if key[:2] == (schedule, name)]
            for sampler, marker in zip(samplers, MARKERS, strict=False):
                made, error = zip(*errors[schedule, name, sampler].values(), strict=True)
                panel.loglog(
                    made, error, marker + "-", label=sampler, color=COLOURS[sampler], markersize=6, linewidth=1.8
                )
            if last_steps is not None:
                made, error = zip(*last_steps[schedule, name, "last step"].values(), strict=True)
                panel.loglog(made, error, ":", label="last step alone", color="black", linewidth=1.5)
            if floor is not None:
                panel.axhline(floor[0], linestyle=":", label="exact samples", color="black", linewidth=1.5)
            ticks = [budget for budget in BUDGETS if budget != 15]
            panel.set_xticks(ticks, labels=map(str, ticks), minor=False)
            panel.set_xticks([], minor=True)
            panel.grid(alpha=0.25)
            panel.set_title(f"{schedule}: {name} ladder", fontsize=12)
        figure.supxlabel("evaluations of the denoiser")
        figure.supylabel(label)
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            loc="outside upper center",
            ncols=len(names),
            frameon=False,
            columnspacing=1.2,
            handlelength=1.6,
        )
        figure.savefig(file, dpi=100)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
