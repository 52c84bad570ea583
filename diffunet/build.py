"""The one place that turns the names in a config into objects, by a table for each list of names in `names`."""

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffunet import draws, names
from diffunet.compute import Compute
from diffunet.config import Config, DataConfig, DiffusionConfig, TrainConfig, validated
from diffunet.data import folder, groups, index, labels, splits, warp
from diffunet.data.dataset import Dataset, open_dataset
from diffunet.data.labels import Labels
from diffunet.diffusion import losses, samplers, schedules
from diffunet.diffusion.denoiser import EDM, X0, Denoiser, Epsilon, Flow, Target, V
from diffunet.errors import UsageError
from diffunet.nn.footprint import Footprint
from diffunet.nn.footprint import footprint as count
from diffunet.nn.unet import UNet
from diffunet.nn.unet2015 import UNet2015
from diffunet.pictures.ranges import Range, Ranges


class Sampler(NamedTuple):
    """A sampler: what makes its step, the ladder that suits it, and how often the net is called in `steps` steps."""

    make: Callable[[], samplers.Step]
    ladder: names.LadderName = "trailing"
    calls: Callable[[int], int] = lambda steps: steps


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(samplers.ddpm),
    "ddpm-large": Sampler(lambda: samplers.ddpm("large")),
    "ddpm-learned": Sampler(lambda: samplers.ddpm("learned")),
    "euler": Sampler(samplers.euler),
    "heun": Sampler(samplers.heun, calls=lambda steps: 2 * steps - 1),  # its last step, to sigma 0, is Euler's
    "dpm++2m": Sampler(samplers.dpmpp_2m, ladder="log-snr"),
    "dpm++2m-sde": Sampler(lambda: samplers.dpmpp_2m(eta=1.0)),
    "unipc": Sampler(samplers.unipc, ladder="log-snr"),
}
"""The samplers by name. dpm++2m and unipc suit a ladder uniform in log-SNR; at few steps the others do better on a
trailing one. The excess feature distance at 15 calls of the net (scripts/benchmark_quality.py on CIFAR-10, log-SNR /
trailing) is 0.50 / 0.62 for unipc, 7.2 / 1.2 for heun and 7.9 / 1.6 for euler."""


def _ddpm(d: DiffusionConfig) -> schedules.Schedule:
    return schedules.DDPMSchedule(
        d.num_steps, d.schedule, d.zero_snr, beta_range=d.beta_range, rescale_timesteps=d.rescale_timesteps
    )


SCHEDULES: dict[str, Callable[[DiffusionConfig], schedules.Schedule]] = {
    **dict.fromkeys(names.DDPM_SCHEDULES, _ddpm),
    "edm": lambda d: schedules.EDMSchedule(log_mean=d.edm_log_mean, log_std=d.edm_log_std),
    "flow": lambda d: schedules.FlowSchedule(logit_normal=False),
    "flow-logit-normal": lambda d: schedules.FlowSchedule(logit_normal=True),
}
"""The noise schedules by name, before they are shifted for large images."""

TARGETS: dict[str, Callable[[DiffusionConfig], Target]] = {
    "epsilon": lambda d: Epsilon(),
    "x0": lambda d: X0(),
    "v": lambda d: V(),
    "flow": lambda d: Flow(),
    "edm": lambda d: EDM(d.sigma_data or 0.5),
}

WEIGHTINGS: dict[str, Callable[[DiffusionConfig, int], losses.Weighting]] = {
    "simple": lambda d, size: losses.simple(),
    "min-snr": lambda d, size: losses.min_snr(d.min_snr_gamma),
    "soft-min-snr": lambda d, size: losses.soft_min_snr(d.min_snr_gamma),
    "edm": lambda d, size: losses.edm(d.sigma_data or 0.5),
    "p2": lambda d, size: losses.p2(d.p2_gamma),
    "sigmoid": lambda d, size: losses.sigmoid(_schedule(d, size), d.sigmoid_bias),
}
"""The weightings of the loss by name, as functions of the diffusion section and the image size. An option that a
weighting has in the config is also free to change with `--init`: training/transfer.py lists such options."""


NetFactory = Callable[[Config], nn.Module]
"""Makes the net of a resolved config: `net` below, or a function of the user's own.

The net is called as `net(x [B C H W], c_noise [B], label int64 [B] or None, augment [B 9] or None) -> [B C' H W]`, with
C = `in_channels(config)` and C' = `out_channels(config)`. Labels are 0 ... K - 1 for the K names in
`config.data.class_names`, and K or None stands for no class. Its random start comes from torch's global generator.
"""


def in_channels(config: Config) -> int:
    """Return the channels of the net's input: of the image and, for inpainting, of the known pixels and the mask."""
    return config.data.channels if config.diffusion.task == "generate" else 2 * config.data.channels + 1


def out_channels(config: Config) -> int:
    """Return the channels of the net's output: of the image and, where it is learned, of the variance."""
    return config.data.channels * (2 if config.diffusion.learned_variance else 1)


def net(config: Config) -> UNet | UNet2015:
    """Return the net of a resolved config, initialised from torch's global generator.

    Raises:
        UsageError: for channels that cannot be divided as the config says, and for a net of a user's own.
    """
    model, data = config.model, config.data
    if model.custom is not None:
        raise UsageError(
            f"the net is not one of diffunet's but {model.custom}: give the function that makes it to diffunet.load or "
            "diffunet.train, net=..."
        )
    chosen = {name: value for name, value in model if value is not None}  # the net has defaults for the others
    assert chosen.keys() >= {"channels", "multipliers", "attention_levels"}, "the config is resolved"
    of_data: dict[str, Any] = {
        "in_channels": in_channels(config),
        "out_channels": out_channels(config),
        "num_classes": len(data.class_names),
        "augment_channels": warp.CHANNELS if data.augment else 0,
        "uncertainty": config.diffusion.learned_uncertainty,
    }
    if model.net == "unet2015":
        return UNet2015(
            layers=len(chosen["multipliers"]) - 1, base_channels=chosen["channels"], padding="same", time=True,
            dropout=chosen.get("dropout", 0.0), **of_data,
        )  # fmt: skip
    try:  # pass the fields of ModelConfig that are also keywords of UNet
        return UNet(**{name: chosen[name] for name in chosen.keys() & inspect.signature(UNet).parameters}, **of_data)
    except ValueError as error:
        raise UsageError(f"model: {error}") from None


def refuse_misfit(config: Config, make: NetFactory) -> None:
    """Call a user's own net on the meta device; raise UsageError if its output has not the shape that it has to have.

    Broadcasting would hide it otherwise: an output of one channel would be learned and sampled in all of them.
    """
    size, channels = config.data.image_size, in_channels(config)
    with torch.inference_mode(False), torch.device("meta"):
        label = torch.zeros(2, dtype=torch.int64) if config.data.class_names else None
        output = make(config)(torch.empty(2, channels, size, size), torch.empty(2), label, None)
    wanted = (2, out_channels(config), size, size)
    if tuple(output.shape) != wanted:
        raise UsageError(f"the net answers {[*output.shape]} to images {[2, channels, size, size]}, not {[*wanted]}")


def footprint(config: Config, how: Compute, *, learn: bool, make: NetFactory = net) -> Footprint:
    """Return the memory that the net of a resolved config takes as `how` computes it; see `nn.footprint`."""
    # The train section does not matter here; a fixed one makes the cache hit more often.
    return _footprint(config.model_copy(update={"train": TrainConfig()}), how, learn, make)


@functools.lru_cache(maxsize=8)
def _footprint(config: Config, how: Compute, learn: bool, make: NetFactory) -> Footprint:
    size, channels = config.data.image_size, in_channels(config)
    with torch.inference_mode(False), torch.device("meta"):
        return count(make(config), size, size, how.dtype, how.device.type, learn=learn, channels=channels)


def schedule(config: Config) -> schedules.Schedule:
    """Return the noise schedule, shifted for large images."""
    return _schedule(config.diffusion, config.data.image_size)


def _schedule(d: DiffusionConfig, image_size: int) -> schedules.Schedule:
    shift = d.sigma_shift or max(1.0, image_size / 64)
    return schedules.shifted(SCHEDULES[d.schedule](d), shift)


def target(config: Config) -> Target:
    """Return what the net predicts."""
    return TARGETS[config.diffusion.target](config.diffusion)


def weighting(config: Config) -> losses.Weighting:
    """Return the weight of each noise level in the loss."""
    return WEIGHTINGS[config.diffusion.weighting](config.diffusion, config.data.image_size)


def denoiser(config: Config, backbone: nn.Module | None = None) -> Denoiser:
    """Return the denoiser of a config: its net, or `backbone` in its place, with its target and schedule."""
    d = config.diffusion
    return Denoiser(backbone or net(config), target(config), schedule(config), d.learned_variance, d.task == "inpaint")


def step(d: DiffusionConfig) -> samplers.Step:
    """Return the step of the config's sampler."""
    return SAMPLERS[d.sampler].make()


def calls(sampler: str, steps: int) -> int:
    """Return how often `sampler`, a name or an alias, calls the net in `steps` steps."""
    return SAMPLERS[names.canonical(sampler)].calls(steps)


def sampling(d: DiffusionConfig, **chosen: str | None) -> DiffusionConfig:
    """Return the diffusion section with another `sampler`, `ladder` or `threshold`; None keeps what the section has.

    Raises:
        UsageError: for an unknown name, or a sampler that this model cannot be sampled by.
    """
    values = {option: value for option, value in chosen.items() if value is not None}
    known = {"sampler": names.SAMPLERS, "ladder": names.LADDERS, "threshold": names.THRESHOLDS}
    for option, value in values.items():
        if names.canonical(value) not in known[option]:
            raise UsageError(f"unknown {option} {value!r}; there are {names.listed(known[option])}")
    if not values:
        return d
    # The mean has a number for each channel, of which the section knows nothing: it is left out of the check.
    content = d.model_dump(exclude_unset=True, exclude={"mean"}) | values
    return validated({"diffusion": content}, "the command line").diffusion.model_copy(update={"mean": d.mean})


def ladder(d: DiffusionConfig, noise: schedules.Schedule, n: int) -> Tensor:
    """Return the sigmas that `n` sampling steps on the schedule `noise` visit, float64 [n + 1], the last one 0."""
    name = d.ladder or SAMPLERS[d.sampler].ladder
    low, high = noise.sigma_min, min(noise.sigma_max, 500.0)
    if name == "karras":
        return schedules.karras(low, high, n)
    if name == "log-snr":
        return schedules.uniform_log_snr(low, high, n)
    return schedules.uniform_t(noise, n, name)


def prior_mean(config: Config) -> Tensor:
    """Return the mean of the images in [-1, 1], float32 [C 1 1]: sampling starts from noise around it."""
    return torch.tensor(config.diffusion.mean or (0.0,) * config.data.channels)[:, None, None]


def dataset(data: DataConfig, root: Path, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Return the images of a folder, decoded and cached as the config says; `progress(done, total)` counts files."""
    cache: Path | Literal["off"] | None = "off"
    if data.cache != "off":
        cache = None if data.cache is None else Path(data.cache)
    return open_dataset(
        root, image_size=data.image_size, channels=data.channels, fit=data.fit, background=data.background,
        scales=data.scales, cache=cache, progress=progress, ranges=ranges(data), pages=data.pages,
        reading=data.reading or 1,
    )  # fmt: skip


def ranges(data: DataConfig) -> Ranges:
    """Return what is black and white in images of more than 8 bits, as far as the config says it."""
    ints, floats = data.int_range or data.range, data.float_range or data.range
    return Ranges(Range(*ints) if ints else None, Range(*floats) if floats else None)


def classes(data: DataConfig, dataset: Dataset, root: Path, *, known: bool = False) -> Labels | None:
    """Return the classes of the images below `root`, or None where the config asks for none; see `labels.find`.

    Where it has names of classes already and says nothing of where they are from, subfolders are classes.

    Raises:
        DataError, UsageError: as `labels.find`; or `data.balance` is to draw classes equally often, and there are none.
    """
    if not (data.classes or data.labels is not None):
        if data.balance:
            raise UsageError("--data.balance draws classes equally often, and there are none without --classes")
        return None
    rule = data.labels or (labels.FOLDERS if data.class_names and dataset.classes is None else None)
    return labels.find(
        root, dataset.files.paths, rule, given=dataset.classes, least=1 if known else 2, beside=dataset.beside
    )


def split(data: DataConfig, files: index.Index, of: Labels | None = None) -> groups.Split:
    """Return which images of a folder are trained on and which are held out, as the config says.

    Of each class `of` the images, if they are given, one image at least is trained on. Pages of one file stay together
    where the config says of no groups.

    Raises:
        UsageError: `data.group` finds no groups, or its file cannot be read, see `groups.find`; or the data set is
            divided by its folders.
    """
    places, group = None if of is None else of.places, data.group
    if group is None and data.pages == "all" and any(folder.page_of(path)[1] for path in files.paths):
        # The pages of a file are often much alike.
        group = r"(.*)#[0-9]+$" if splits.find(files.paths) is None else None
    return groups.divide(files, group, data.held_out, index.HELD_OUT_MAX, places)


def distinct(data: DataConfig, files: index.Index, chosen: NDArray[np.int64]) -> int:
    """Return about how many images the files at `chosen`, int64 [N], give; with fit patch, windows without overlap."""
    if data.fit != "patch":
        return len(chosen)
    scale, table = max(data.scales) / data.image_size, files.table[chosen]
    return int((np.maximum(table["width"] * scale, 1) * np.maximum(table["height"] * scale, 1)).sum())


def windows(data: DataConfig, places: Iterable[int]) -> NDArray[np.float64] | None:
    """Return where `augment.gather` takes images to evaluate, float64 [n 3]: the same every time.

    It is the middle of each image, for which None stands; with fit "patch" the window that belongs to its place in the
    list.
    """
    if data.fit != "patch":
        return None
    seed = draws.seed_of("windows")
    return np.array([draws.generator(seed, 0, int(place)).random(4)[1:] for place in places])  # the first was a flip
