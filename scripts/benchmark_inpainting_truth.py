"""Every way to fill in a hole, on Gaussian data, where the law of the hole given the known pixels is exact.

    .venv/bin/python scripts/benchmark_inpainting_truth.py --out samples

writes `inpainting-truth.md`, and `inpainting-truth.png`, for which it needs matplotlib (`pip install -e .[bench]`).
About a minute on one core; `--quick` a few seconds.

For x0 ~ N(0, S) the denoiser is S (S + sigma^2)^-1 x, so all methods but mmps are linear in the known pixels, the start
and the draws, and what comes out is a Gaussian whose mean and covariance follow from how the method itself answers unit
vectors: no samples, so no sampling error. Conjugate gradients that stop early are not linear: of mmps the law with
the linear system solved is found in the same way, and what stopping changes is measured on samples, both walked from
the same starts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffunet import build
from diffunet.config import Config
from diffunet.diffusion.denoiser import Denoise, Denoised
from diffunet.diffusion.known_pixels import ROUNDING, ddnm, keep_known, mmps, resample_ladder
from diffunet.diffusion.samplers import Step, euler, last, sample, unipc
from diffunet.diffusion.schedules import DDPMSchedule
from diffunet.draws import Noise

SCHEDULE = DDPMSchedule(1000, "linear")
STEPS = (5, 10, 15, 25, 50)
ITERATIONS = (1, 2, 3, 5, 10)
DRAWS = 2
"""The most that a step draws: RePaint's, for the known pixels and for the sampler."""


class Field:
    """Images [1 H W] of a normal law N(0, S) and unit variance, with a hole.

    Legend: B images, n pixels, k of them known, h = n - k not.

    Args:
        covariance: S, float64 [n n].
        keep: bool [H W], True where pixels are known.
    """

    def __init__(self, covariance: Tensor, keep: Tensor) -> None:
        self.covariance, self.keep = covariance, keep
        self.known, self.hole = keep.flatten().nonzero()[:, 0], (~keep).flatten().nonzero()[:, 0]
        self.pull, self.law = self._given(covariance[self.known][:, self.known])
        self.root = torch.linalg.cholesky(covariance[self.known][:, self.known])
        self._maps = cache(self._map)

    def _given(self, of_known: Tensor) -> tuple[Tensor, Tensor]:
        """The hole given the known pixels: its mean as a map [h k] of them, its covariance [h h]."""
        across = self.covariance[self.hole][:, self.known]
        pull = torch.linalg.solve(of_known, across.T).T
        return pull, self.covariance[self.hole][:, self.hole] - pull @ across.T

    def _map(self, sigma: float) -> Tensor:
        eye = torch.eye(len(self.covariance)).double()
        return torch.linalg.solve(self.covariance + sigma**2 * eye, self.covariance)

    def denoise(self, x: Tensor, sigma: Tensor) -> Denoised:
        """E[x0 | x]."""
        return Denoised((x.flatten(1) @ self._maps(sigma.item())).reshape(x.shape))

    def given(self, known: Tensor, known_std: float = 0.0) -> Denoise:
        """E[x0 | x, known pixels]: what a net trained to inpaint learns, and mmps with its equation solved has."""
        noisy = self.covariance[self.known][:, self.known] + known_std**2 * torch.eye(len(self.known)).double()
        pull, law = self._given(noisy)
        mean = known.flatten(1)[:, self.known] @ pull.T

        def denoise(x: Tensor, sigma: Tensor) -> Denoised:
            gain = torch.linalg.solve(law + sigma**2 * torch.eye(len(law)).double(), law)
            x0 = known.flatten(1).clone()
            x0[:, self.hole] = mean + (x.flatten(1)[:, self.hole] - mean) @ gain
            return Denoised(x0.reshape(x.shape))

        return denoise

    def image(self, known: Tensor) -> Tensor:
        """Known pixels [B k] in images [B 1 H W] that are 0 elsewhere."""
        x = torch.zeros(len(known), len(self.covariance), dtype=torch.float64)
        x[:, self.known] = known
        return x.reshape(-1, 1, *self.keep.shape)

    def errors(self, pull: Tensor, law: Tensor) -> tuple[float, float]:
        """Of a mean, given as map [h k], and a covariance [h h]; over images of the law."""
        mean = torch.linalg.norm((pull - self.pull) @ self.root) / torch.linalg.norm(self.pull @ self.root)
        return mean.item(), (torch.linalg.norm(law - self.law) / torch.linalg.norm(self.law)).item()


def pair(correlation: float = 0.9) -> Field:
    """Two pixels, one of them known."""
    return Field(torch.tensor([[1.0, correlation], [correlation, 1.0]]).double(), torch.tensor([[True, False]]))


def row(n: int = 16, coefficient: float = 0.95) -> Field:
    """Autoregressive of order 1: n pixels in a row, the first half known."""
    i = torch.arange(n)
    return Field(coefficient ** (i[:, None] - i).abs().double(), (i < n // 2)[None])


def picture(size: int = 8) -> Field:
    """size x size pixels of power 1 / f^2, as photographs have, of unit variance; the middle quarter is the hole.

    Cut from a periodic field of twice the size, so that opposite edges know little of each other.
    """
    f = torch.fft.fftfreq(2 * size, dtype=torch.float64)
    power = 1 / (f[:, None] ** 2 + f**2).clamp(min=1 / (2 * size) ** 2)
    correlation = torch.fft.ifft2(power).real
    y, x = (each.flatten() for each in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    covariance = correlation[(y[:, None] - y) % (2 * size), (x[:, None] - x) % (2 * size)] / correlation[0, 0]
    inside = (torch.arange(size) - (size - 1) / 2).abs() < size / 4
    return Field(covariance, ~(inside[:, None] & inside))


FIELDS: dict[str, Field] = {"pair": pair(), "row": row(), "picture": picture()}
NOTES = """pair: two pixels of correlation 0.9, one known. row: 16 pixels, autoregressive of order 1 with
coefficient 0.95, the first 8 known. picture: 8x8 pixels of power 1 / f^2, a hole of 4x4 in the middle.
All of mean 0 and variance 1, on the linear schedule of 1,000 steps."""


@dataclass(frozen=True)
class Method:
    """A line of the table: passes through the net, forwards and back, and the law of what comes out.

    `law(field)` is its mean as a map [h k] of the known pixels, and its covariance [h h]. Lines of one series differ in
    how many calls they make.
    """

    series: str
    setting: str
    calls: int
    law: Callable[[Field], tuple[Tensor, Tensor]]


def ladder(name: str, n: int) -> Tensor:
    """As sampling with a model has it, [n + 1]."""
    return build.ladder(Config().changed("diffusion", ladder=name).diffusion, SCHEDULE, n)


def calls(sigmas: Tensor) -> int:
    """Of D, one for each step down."""
    return int((sigmas.diff() < 0).sum())


def no_noise() -> Tensor:
    """For samplers of the ODE."""
    raise AssertionError("samplers of the ODE make no draw")


Given = Callable[[Tensor, Noise], tuple[Denoise, Step]]
"""From the known image [B 1 H W] and the noise to what is walked with."""


def stepwise(field: Field, given: Given, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """The law after a walk whose steps are linear and remember nothing: moments go from step to step."""
    n, k = len(field.covariance), len(field.known)
    x, known, *draws = torch.eye(n + k + DRAWS * n, dtype=torch.float64).split([n, k, *[n] * DRAWS], dim=1)
    x, *draws = (each.reshape(-1, 1, *field.keep.shape) for each in (x, *draws))

    @cache
    def maps(sigma: float, sigma_next: float) -> tuple[Tensor, Tensor, Tensor]:
        noise = iter(draws).__next__
        denoise, step = given(field.image(known), noise)
        end, _, _ = step(denoise, x, sigmas.new_tensor(sigma), sigmas.new_tensor(sigma_next), noise, None)
        of_x, of_known, of_draws = end.flatten(1).T.split([n, k, DRAWS * n], dim=1)
        return of_x, of_known, of_draws @ of_draws.T

    eye = torch.eye(n, dtype=torch.float64)
    mean, law = torch.zeros(n, k, dtype=torch.float64), sigmas[0] ** 2 * eye
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        if sigma_next > sigma:
            law = law + (sigma_next**2 - sigma**2) * eye
        else:
            of_x, of_known, drawn = maps(sigma, sigma_next)
            mean, law = of_x @ mean + of_known, of_x @ law @ of_x.T + drawn
    return mean[field.hole], law[field.hole][:, field.hole]


def whole(field: Field, given: Callable[[Tensor], Denoise], step: Step, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """The law after a walk that is linear in its start and in the known pixels, and draws nothing else."""
    n, k = len(field.covariance), len(field.known)
    start, known = torch.eye(n + k, dtype=torch.float64).split([n, k], dim=1)
    start = sigmas[0] * start.reshape(-1, 1, *field.keep.shape)
    end = last(sample(given(field.image(known)), start, sigmas, step, no_noise)).flatten(1)[:, field.hole].T
    return end[:, n:], end[:, :n] @ end[:, :n].T


def repaint(name: str, n: int, jump_length: int, jump_n_sample: int) -> Method:
    """`n` steps of the ladder `name`."""
    sigmas, step = resample_ladder(ladder(name, n), jump_length, jump_n_sample), euler(eta=1.0)

    def law(field: Field) -> tuple[Tensor, Tensor]:
        return stepwise(field, lambda y, noise: (keep_known(field.denoise, y, field.keep, noise), step), sigmas)

    return Method(f"repaint, {n} steps, {name}, jumps of {jump_length}", f"{jump_n_sample} times", calls(sigmas), law)


def replace(name: str, n: int, sampler: str) -> Method:
    """Known pixels pasted into D."""
    sigmas, step = ladder(name, n), build.SAMPLERS[sampler].make()

    def law(field: Field) -> tuple[Tensor, Tensor]:
        return whole(field, lambda known: keep_known(field.denoise, known, field.keep), step, sigmas)

    return Method(f"replace, {sampler}, {name}", f"{n} steps", n, law)


def projected(n: int, jump_length: int = 1, jump_n_sample: int = 1) -> Method:
    """DDNM, with its time travel where there are jumps."""
    sigmas = resample_ladder(ladder("trailing", n), jump_length, jump_n_sample)

    def law(field: Field) -> tuple[Tensor, Tensor]:
        return stepwise(field, lambda known, noise: (field.denoise, ddnm(known, field.keep)), sigmas)

    travel = f", jumps of {jump_length}, {jump_n_sample} times" if jump_n_sample > 1 else ""
    return Method("ddnm, time travel" if travel else "ddnm", f"{n} steps{travel}", calls(sigmas), law)


def told(n: int) -> Method:
    """With the exact denoiser given the known pixels."""
    sigmas, step = ladder("log-snr", n), unipc()
    return Method("trained, if it were exact", f"{n} steps", n, lambda field: whole(field, field.given, step, sigmas))


def matched(n: int, iterations: int, samples: int) -> Method:
    """Moment matching.

    Samples have known pixels sqrt(k) times the columns of L, with L L' their covariance: over those k images a linear
    error has the mean square that it has over the law.
    """
    sigmas = ladder("log-snr", n)

    def law(field: Field) -> tuple[Tensor, Tensor]:
        pull, covariance = whole(field, lambda known: field.given(known, ROUNDING), unipc(), sigmas)
        k = len(field.known)
        images, each = math.sqrt(k) * field.root, max(2, samples // k)
        known = field.image(images.T.repeat_interleave(each, 0))
        noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        stopped, solved = (
            last(sample(denoise, sigmas[0] * noise, sigmas, unipc(), no_noise)).flatten(1)[:, field.hole]
            for denoise in (mmps(field.denoise, known, field.keep, iterations), field.given(known, ROUNDING))
        )
        stopped, solved = (end.unflatten(0, (k, each)) for end in (stopped, solved))
        pull = pull + torch.linalg.solve(images, (stopped - solved).mean(1).T, left=False)
        return pull, covariance + spread(stopped) - spread(solved)

    return Method(f"mmps, iterations: {iterations}", f"{n} steps", n * (1 + iterations), law)


def spread(x: Tensor) -> Tensor:
    """Covariance [h h] of x [k N h] within each of the k."""
    x = x - x.mean(1, keepdim=True)
    return torch.einsum("kni,knj->ij", x, x) / (x.shape[0] * (x.shape[1] - 1))


def methods(quick: bool, samples: int) -> list[Method]:
    """All lines of the table."""
    steps, iterations = (STEPS[1:3], ITERATIONS[:2]) if quick else (STEPS, ITERATIONS)
    times = (1, 2) if quick else (1, 2, 5, 10, 20)
    walks = [("trailing", 40, 8), ("trailing", 20, 4)] if quick else [
        ("linspace", 250, 10), ("trailing", 100, 10), ("trailing", 40, 8), ("trailing", 20, 4)
    ]  # fmt: skip
    return [
        *(repaint(*walk, each) for walk in walks for each in times),
        *(replace("trailing", n, "euler") for n in steps),
        *(replace("log-snr", n, "unipc") for n in steps),
        *(projected(n) for n in (*steps, 100)),
        *(projected(n, 10, each) for n, each in ((50, 3), (100, 3), (100, 10))),
        *(matched(n, count, samples) for count in iterations for n in steps),
        *(told(n) for n in steps),
    ]


Lines = list[tuple[Method, list[tuple[float, float]]]]
"""A method and its errors, of mean and covariance, on each of `FIELDS`."""


def main() -> None:
    """Measure, print, write the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for the table and the picture; without it, print only")
    parser.add_argument("--quick", action="store_true", help="few methods and samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = 200 if options.quick else 4000
    lines: Lines = [
        (method, [field.errors(*method.law(field)) for field in FIELDS.values()])
        for method in methods(options.quick, samples)
    ]
    text = report(lines, samples, published((1, 10) if options.quick else (1, 5, 10, 20, 50, 200)))
    print(text)
    print(f"\n{time.process_time():.0f} s of one core")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "inpainting-truth.md").write_text(text, encoding="utf-8")
        draw(lines, options.out / "inpainting-truth.png")


def published(times: tuple[int, ...]) -> str:
    """RePaint with 250 steps and jumps of 10, over how often each stretch is walked."""
    out = ["| times | calls | pair: mean | pair: variance | row: mean | row: map of the mean | row: covariance |"]
    out.append("|---" * 7 + "|")
    two, many = FIELDS["pair"], FIELDS["row"]
    for each in times:
        method = repaint("linspace", 250, 10, each)
        signed = [(ours / exact - 1).item() for ours, exact in zip(method.law(two), (two.pull, two.law), strict=True)]
        pull, law = method.law(many)
        norm = (torch.linalg.norm(pull - many.pull) / torch.linalg.norm(many.pull)).item()
        mean, covariance = many.errors(pull, law)
        cells = [*(f"{100 * error:+.2g} %" for error in signed), *map(percent, (mean, norm, covariance))]
        out.append(f"| {each} | {method.calls} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def percent(error: float) -> str:
    """Two digits."""
    return f"{100 * error:.2g} %" if error < 0.995 else f"{100 * error:.0f} %"


def report(lines: Lines, samples: int, as_published: str) -> str:
    """All of it in Markdown."""
    names = [f"{name}: {what}" for name in FIELDS for what in ("mean", "covariance")]
    parts = [
        "# Filling in where the truth is known\n",
        "Written by `python scripts/benchmark_inpainting_truth.py --out samples`: Gaussian data, where the law of the",
        "hole given the known pixels is exact, and so is the denoiser.\n",
        f"{NOTES}\n",
        "Errors of the hole's mean, root mean square over images of that law, relative to the exact mean; and of its",
        "covariance, in Frobenius norm, relative to the exact one. In closed form, but for mmps, where what stopping",
        f"conjugate gradients early changes is measured on {samples} samples. Calls are passes through the net: n",
        "steps of mmps with m iterations make n forwards and n m backwards.",
        'mmps and "trained, if it were exact" walk with unipc on a log-SNR ladder; the latter is the exact denoiser',
        "given the known pixels, so its error is that of the sampler alone, from pure noise on.\n",
        "## RePaint as published: 250 steps, jumps of 10\n",
        "Resampling mends the mean; the variance settles elsewhere. The row's mean is said in two ways: over images of",
        "the law; and as the norm of its map from the known pixels, likely images and others alike.\n",
        as_published,
        "## All methods\n",
        "| method | | calls | " + " | ".join(names) + " |",
        "|---" * (3 + len(names)) + "|",
    ]
    for method, errors in lines:
        cells = " | ".join(percent(error) for pair in errors for error in pair)
        parts.append(f"| {method.series} | {method.setting} | {method.calls} | {cells} |")
    return "\n".join(parts) + "\n"


DRAWN = {
    "repaint, 250 steps, linspace, jumps of 10": ("#E69F00", "o-"),
    "repaint, 40 steps, trailing, jumps of 8": ("#E69F00", "o--"),
    "replace, unipc, log-snr": ("#555555", "s-"),
    "ddnm": ("#CC79A7", "D-"),
    "mmps, iterations: 1": ("#56B4E9", "^:"),
    "mmps, iterations: 3": ("#0072B2", "^--"),
    "mmps, iterations: 5": ("#0072B2", "v-"),
    "trained, if it were exact": ("#009E73", "P-"),
}
"""Series in the picture, in colours of Okabe and Ito (2008), which the colour-blind can tell apart."""


def draw(lines: Lines, file: Path) -> None:
    """Both errors over calls, a column for each of `FIELDS`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            2, len(FIELDS), figsize=(11, 7.4), sharex=True, sharey=True, layout="constrained"
        )
        for column, name in enumerate(FIELDS):
            for panel, what in zip(axes[:, column], ("mean", "covariance"), strict=True):
                for series, (colour, kind) in DRAWN.items():
                    points = [(m.calls, 100 * e[column][what != "mean"]) for m, e in lines if m.series == series]
                    if points:
                        panel.loglog(*zip(*points, strict=True), kind, label=series, color=colour, linewidth=1.8)
                panel.set_title(f"{name}: {what}", fontsize=12)
                panel.grid(alpha=0.25)
        figure.supxlabel("passes through the net, forwards and back")
        figure.supylabel("error, percent of the exact one")
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(file, dpi=100)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
