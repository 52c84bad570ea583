"""Quality of a trained model's samples over net evaluations, for every sampler: what the default is chosen from.

    .venv/bin/python scripts/benchmark_quality.py runs/cifar10 cifar10 --num 500 --out samples/quality-cifar10.png

The feature distance of `diffunet evaluate` above its floor, all samplers from the same noise, judged by the same
features; prints a table, and for each sampler the fewest evaluations whose excess is within 2% of the best. The picture
needs matplotlib (`pip install -e .[bench]`). Figures are kept beside the picture, as .json, and what is there is not
measured again: a long run may be stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import diffunet
from diffunet import build, compute, files
from diffunet.evaluation.reference import Reference

SAMPLERS = (
    "unipc/log-snr", "unipc", "dpm++2m/log-snr", "dpm++2m", "heun", "ddim", "dpm++2m-sde", "ddpm", "ddpm-large",
)  # fmt: skip
"""On a ladder, or the trailing one. Each once: euler is ddim, euler-ancestral is ddpm."""

EVALUATIONS = (5, 8, 10, 15, 20, 25, 35, 50)

Figures = dict[str, dict[int, float]]
"""Sampler, or sampler/ladder -> net evaluations -> feature distance."""


def main() -> None:
    """Parse, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, help="a sampler, or sampler/ladder")
    parser.add_argument("--evaluations", nargs="+", type=int, default=EVALUATIONS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    options = parser.parse_args()

    pipe = diffunet.load(options.model, dtype=compute.PRECISIONS[options.precision])
    reference = Reference(pipe.config, options.data, options.num, options.seed, pipe.device)
    kept = options.out.with_suffix(".json")
    known: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    figures: Figures = {}
    for name in options.samplers:
        sampler, _, ladder = name.partition("/")
        for wanted in options.evaluations:
            steps = max(n for n in range(1, wanted + 1) if build.calls(sampler, n) <= wanted)
            calls = build.calls(sampler, steps)
            key = f"{name} {calls}"
            if key not in known:
                pictures = pipe.sample(
                    reference.num, seed=options.seed, labels=reference.labels, sampler=sampler, steps=steps,
                    ladder=ladder or "trailing", batch_size=128,
                )  # fmt: skip
                known[key] = reference.compare(pictures).distance
                files.write_atomic(kept, json.dumps({"floor": reference.floor, **known}, indent=1))
            figures.setdefault(name, {})[calls] = known[key]
            print(f"{name:<16} {calls:>4} evaluations: {known[key]:.4f}", flush=True)
    print("\n".join(table(figures, reference.floor)))
    draw(figures, reference.floor, options.out)
    print(options.out)


def table(figures: Figures, floor: float) -> list[str]:
    """Markdown: excess over the floor, a row for each sampler, and the fewest evaluations within 2% of the best."""
    every = sorted({calls for row in figures.values() for calls in row})
    best = min(distance for row in figures.values() for distance in row.values()) - floor
    limit = best + 0.02 * abs(best)
    lines = [
        f"floor (real to real): {floor:.3f}; excess over it:",
        "",
        "| sampler | " + " | ".join(map(str, every)) + " | within 2% of the best from |",
        "|---" * (len(every) + 2) + "|",
    ]
    for sampler, row in figures.items():
        enough = min((calls for calls, distance in row.items() if distance - floor <= limit), default=None)
        cells = [f"{row[calls] - floor:.3f}" if calls in row else "" for calls in every]
        lines.append(f"| {sampler} | {' | '.join(cells)} | {enough or 'none'} |")
    return lines


def draw(figures: Figures, floor: float, out: Path) -> None:
    """Excess over evaluations, both logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4.4), layout="constrained")
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name.split("/")[0] for name in figures))}
    for name, row in figures.items():  # a colour for each sampler; dashed on the trailing ladder
        sampler, _, ladder = name.partition("/")
        excess = [distance - floor for distance in row.values()]
        axes.plot(list(row), excess, "o-" if ladder else "o--", markersize=4, color=colours[sampler], label=name)
    axes.set(xscale="log", yscale="log", xlabel="net evaluations", ylabel="feature distance above real to real")
    ticks = sorted({calls for row in figures.values() for calls in row if calls % 5 == 0})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
