"""Training that starts from another model (`--init`): which of its options are taken, and how its weights are."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffunet import build, storage
from diffunet.config import Config, preset
from diffunet.errors import UsageError
from diffunet.interop import models

log = logging.getLogger(__name__)

FREE_WITH_INIT = {
    "sampler", "sample_steps", "ladder", "threshold", "image_size", "weighting", "min_snr_gamma", "p2_gamma",
    "sigmoid_bias",
}  # fmt: skip
"""Options that may differ from the model's, since the shapes and the meaning of its weights do not depend on them."""

OWN = {"checkpointing", "task", "mean", "label_dropout", "dropout"}
"""Options that are not the model's but the run's: they depend on its memory, task and images and on how many these are,
and label dropout is 0 in models of other projects, while guidance needs some."""

LABELS, AUGMENTATION = "embedding.label.weight", "embedding.augment.weight"
"""Names of weights whose shape depends on the data and on training, not on the architecture."""


def like_model(config: Config, init: str | Path) -> Config:
    """Return `config` with the architecture and meaning of the model `init`; raise UsageError if it asks otherwise.

    What `config` leaves open, or has as by default, is the model's; but an option of `FREE_WITH_INIT` that it states,
    as `--image-size 64`, stays, unless it is the preset `default` that states it.
    """
    model = models.read_config(init)
    content, plain, theirs = config.model_dump(), Config().model_dump(), model.model_dump()
    usual = preset("default").model_dump(exclude_unset=True)
    if model.diffusion.task != config.diffusion.task:
        log.info("--init: %s learned to %s, and this run to %s", init, model.diffusion.task, config.diffusion.task)
    sections = [(section, name) for section in ("model", "diffusion") for name in theirs[section] if name not in OWN]
    for section, name in (*sections, ("data", "image_size"), ("data", "channels")):
        value, asked = theirs[section][name], content[section][name]
        is_stated = name in getattr(config, section).model_fields_set and asked != usual.get(section, {}).get(name)
        if name in FREE_WITH_INIT and is_stated and asked is not None:
            continue
        if asked in (plain[section][name], value):
            if value != asked:
                log.info("--init: %s.%s = %r, as in %s", section, name, value, init)
            content[section][name] = value
        elif name not in FREE_WITH_INIT:
            raise UsageError(f"--init takes {section}.{name} = {value!r} from {init}; leave it out")
    return Config.model_validate(content)


def copy_weights(init: str | Path, net: nn.Module, config: Config, make: build.NetFactory = build.net) -> None:
    """Copy the weights of the model `init` into `net`, which `make` made of `config`; raise CheckpointError if unfit.

    Classes are matched by name; those that the model does not know keep their random start. The first convolution is
    fitted to the task: a net that learns to inpaint gets zeros for the known pixels and the mask, so that it begins
    with the model's prediction whatever they are. In the other direction, the weights for known pixels are dropped,
    and those of the mask become a bias: nothing is known then, so that the mask is 1 everywhere (but for the zeros
    that pad the image's border). A net of a user's own gets the weights as they are.
    """
    model = models.read_model(init, make)
    if model.weaker is not None:
        log.info("--init: the weights of %s alone, without the weaker model beside it", init)
    weights = model.denoiser.net.state_dict()
    if config.model.custom is None:
        weights = _fitted(weights, net.state_dict(), model.config.data.class_names, config.data.class_names)
    storage.load_weights(net, weights, Path(init))


def _fitted(
    weights: dict[str, Tensor], own: dict[str, Tensor], classes: Sequence[str], new_classes: Sequence[str]
) -> dict[str, Tensor]:
    """Return `weights` of a net with `classes` in the shapes of `own`, the random weights of one with `new_classes`."""
    if classes != new_classes:
        old_rows = weights.pop(LABELS, None)
        if LABELS in own:
            weights[LABELS] = rows = own[LABELS].clone()
            if old_rows is not None:
                for label in set(new_classes).intersection(classes):
                    rows[new_classes.index(label)] = old_rows[classes.index(label)]
                rows[-1] = old_rows[-1]  # the null label
    augmentation = weights.pop(AUGMENTATION, None)
    if AUGMENTATION in own:
        weights[AUGMENTATION] = torch.zeros_like(own[AUGMENTATION]) if augmentation is None else augmentation
    first = next(name for name, weight in own.items() if weight.ndim == 4)  # the convolution that sees the image
    kernel, channels = weights[first], own[first].shape[1]
    if kernel.shape[1] > channels:
        bias = first.replace("weight", "bias")
        weights[bias] = weights[bias] + kernel[:, -1].sum((1, 2))
        weights[first] = kernel[:, :channels].clone()
    elif kernel.shape[1] < channels:
        weights[first] = F.pad(kernel, (0, 0, 0, 0, 0, channels - kernel.shape[1]))
    return weights
