"""`diffunet evaluate` compares generated images with real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from tyro.conf import OmitArgPrefixes, Positional, arg

from diffunet.commands import options, outputs
from diffunet.commands.options import MODEL, Computing, Number, Overwrite, Sampling, Seed, Steps
from diffunet.commands.progress import progress, say, tell
from diffunet.commands.records import fingerprint
from diffunet.commands.signature import Rare
from diffunet.errors import UsageError
from diffunet.names import MetricName

if TYPE_CHECKING:
    from diffunet.evaluation.told import Loss, Report


def evaluate(
    model: Annotated[Positional[str | None], arg(metavar="MODEL", help=MODEL)] = None,
    data: Annotated[Positional[Path | None], arg(metavar="DATA")] = None, /, *,
    samples: Path | None = None, num: Annotated[int, Field(ge=2, le=10**7)] | None = None, seed: Seed = 0,
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)] | None = None, weights: Rare[tuple[Path, ...]] = (),
    reals: Rare[tuple[Path, ...]] = (), pairs: Rare[Path | None] = None, overwrite: Rare[Overwrite] = False,
    json: bool = False,
    sampling: OmitArgPrefixes[Sampling], likelihood: Literal["vlb", "ode"] | None = None,
    likelihood_num: Rare[Number] = 100, likelihood_steps: Rare[Steps | None] = None, loss: bool = False,
    computing: OmitArgPrefixes[Computing],
) -> None:  # fmt: skip
    """Compare generated images with real ones: a feature distance, beside that of real images to real ones.

    Of a run, all figures are also written to RUN/evaluation.json, and the samples that are nearest to a training image
    to RUN/nearest.png.

    Example: diffunet evaluate runs/photos photos --num 1000

    Example: diffunet evaluate runs/photos photos --num 50000 --metrics fid kid prc is fd-dinov2

    Example: diffunet evaluate --samples made-elsewhere photos

    Example: diffunet evaluate runs/photos photos --loss

    Args:
        data: Folder of real images. With a subfolder for each class the comparison is sharper.
        samples: Folder of samples that anybody has made, in place of MODEL; all of them are taken.
        num: Images to compare. If not given, they are 10,000, or 256 with --loss. The feature distance compares at
            most a third as many as DATA has.
        seed: Seed of the samples and the features.
        metrics: Published figures as well. By the Inception network: FID, KID, precision and recall with density and
            coverage (prc), inception score (is). By DINOv2: fd-dinov2. They need weights, and diffunet[fid].
        weights: Files of the weights of these networks. If not given, they are found in torch hub's cache.
        reals: Statistics of real images by which fid or fd-dinov2 is measured, an .npz with mu and sigma as EDM has.
        pairs: Picture to write of the 16 samples that are nearest to a training image, each above that image. If not
            given, a run's is RUN/nearest.png.
        json: Print one JSON object in place of lines.
        likelihood: Measure bits per dimension of real images as well, by the bound of a DDPM schedule (vlb) or the ODE
            (ode). --precision auto is fp32 then.
        likelihood_num: Images of which --likelihood is measured.
        likelihood_steps: Steps of --likelihood. If not given, they are all of the chain (vlb), or 50 (ode).
        loss: Measure instead how well the model takes noise out of held-out images, at 16 noise levels: a number that
            compares models however they were trained, and hardly varies with chance.
    """
    if samples is not None:
        of_a_model = num, loss, likelihood, sampling, replace(computing, device=None, threads=None)
        _refuse_with_samples(data, model, of_a_model != (None, False, None, Sampling(), Computing()))
        model, data = None, Path(str(model))
    elif model is None or data is None:
        raise UsageError(f"{'MODEL' if model is None else 'DATA'} is missing (see diffunet evaluate --help)")
    if likelihood is None and (likelihood_num != 100 or likelihood_steps is not None):
        raise UsageError("--likelihood-num and --likelihood-steps go with --likelihood vlb or ode")
    if loss and (likelihood is not None or sampling != Sampling()):
        raise UsageError("--loss draws no samples: it goes with neither --likelihood nor options of sampling")
    if loss and (metrics is not None or pairs is not None):
        raise UsageError("--loss draws no samples: it goes with neither --metrics nor --pairs")
    if metrics is None and (weights or reals):
        raise UsageError("--weights and --reals go with --metrics, such as --metrics fid")
    if reals and not {"fid", "fd-dinov2"} & {*(metrics or ())}:
        raise UsageError("--reals has statistics for a distance: it goes with --metrics fid or --metrics fd-dinov2")
    if overwrite and pairs is None:
        raise UsageError("--overwrite is about --pairs FILE, and there is none")
    if pairs is not None:
        outputs.lossless(pairs, "--pairs")
        outputs.claim(pairs, file=True, overwrite=overwrite, option="--pairs")
    if likelihood is not None and computing.precision == "auto":
        # Bits of thousands of dimensions are added up, and with them what rounding does to each.
        computing = replace(computing, precision="fp32")
    from diffunet import ranks, storage
    from diffunet.evaluation import figures
    from diffunet.evaluation import report as reports
    from diffunet.evaluation.networks import Published

    run = None if model is None or not (Path(model) / storage.RUN_CONFIG).is_file() else Path(model)
    if run is not None:
        outputs.claim(run / figures.NAME, file=True, overwrite=True, option="MODEL")
    published = Published(metrics or (), weights, reals)
    with ranks.together() as processes, progress("evaluating") as show:
        if not processes.is_main and (loss or model is None):
            return  # only samples are made by all
        named = _named(model, run) if model and processes.is_main else {}  # before the weights, which may be newer
        pipe = None if model is None else options.load(model, computing)
        if pairs is not None and pipe is not None:
            outputs.refuse_misfit(pairs, pipe.channels, "--pairs")

        def tell_step(what: str, done: int, total: int) -> None:
            show(done, total, what)

        found: Report | Loss | None
        if pipe is None:
            assert samples is not None
            device = options.device(computing)
            found = reports.evaluate_samples(
                samples, data, seed=seed, published=published, device=device, on_step=tell_step
            )
        elif loss:
            found = reports.denoising(pipe, data, num=num or 256, seed=seed, on_step=tell_step)
        else:
            found = reports.evaluate(
                pipe, data, num=num or 10_000, seed=seed, published=published, likelihood=likelihood,
                likelihood_num=likelihood_num, likelihood_steps=likelihood_steps, on_step=tell_step,
                ranks=processes, **options.for_pipeline(sampling, pipe),
            )  # fmt: skip
    if found is not None:  # it is the main process
        _write(found, found.figures() | named, run, pairs, json)


def _refuse_with_samples(data: Path | None, model: str | None, of_a_model: bool) -> None:
    if data is not None or model is None:
        raise UsageError("--samples takes the place of MODEL: diffunet evaluate --samples FOLDER DATA")
    if of_a_model:
        raise UsageError(
            "--samples are there, and all are taken: it goes with none of --num, --loss, --likelihood, --precision, "
            "--compile, --kernels and the options of sampling"
        )


def _named(model: str, run: Path | None) -> dict[str, Any]:
    """Return the figures that tell a model from others, in whatever precision it is computed, and a run's step."""
    from diffunet.interop import models

    read = models.read_model(model)
    return {"model": fingerprint(read)} | ({} if run is None else {"step": read.step})


def _write(found: Report | Loss, named: dict[str, Any], run: Path | None, pairs: Path | None, json: bool) -> None:
    """Write both files of a run, and the picture of pairs; print the figures `named`, or lines about them."""
    from diffunet.evaluation import figures
    from diffunet.pictures import images

    pictures = [picture for picture in (run and run / figures.PAIRS, pairs) if picture]
    if found.pairs is not None and pictures:
        named["nearest"] = pictures[0].name
    try:
        if found.pairs is not None and pictures:
            for picture in pictures:  # that of a run goes with its figures
                images.save(found.pairs, picture)
            say(f"samples nearest to a training image, each above that image: {pictures[-1]}")
        if run is not None:
            figures.write(run, named)
            say(f"figures: {run / figures.NAME}")
    finally:  # it may have taken hours, and the disk may be full
        tell(figures.text(named) if json else "\n".join(found.lines()))
