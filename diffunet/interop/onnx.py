"""A net as an ONNX file, for runtimes that know nothing of PyTorch.

The file holds the net alone. To sample with it, work in `x = x0 + sigma * noise`, pixels in [-1, 1]: the denoised image
is `c_skip * x + c_out * net(c_in * x, c_noise)`, and one step of Euler from sigma down to the next sigma' is
`x = denoised + sigma' / sigma * (x - denoised)`; begin at `mean + sigma * noise` with the first sigma. With sd the
sigma_data of the config:

    output     c_skip                c_out                         c_in
    epsilon    1                     -sigma                        1 / sqrt(1 + sigma^2)
    x0         0                     1                             1 / sqrt(1 + sigma^2)
    v          1 / (1 + sigma^2)     -sigma / sqrt(1 + sigma^2)    1 / sqrt(1 + sigma^2)
    velocity   1 / (1 + sigma)       -sigma / (1 + sigma)          1 / (1 + sigma)
    edm        sd^2 / (sigma^2 + sd^2)    sigma sd / sqrt(sigma^2 + sd^2)    1 / sqrt(sigma^2 + sd^2)

c_noise is the timestep on a DDPM schedule (linear, scaled-linear, cosine, sigmoid), log(sigma) / 4 on EDM's and
1000 sigma / (1 + sigma) on those of flow, of the sigma before the shift for large images. So that nobody has to work
that out, the metadata of the file (`metadata_props`) have these numbers for the model's own ladder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffunet import build, files, storage
from diffunet.errors import ResourceError, UsageError

LARGEST = 2**31 - 2**20
"""Bytes of weights above which they are in a second file: an ONNX file of 2 GiB cannot be read."""

OUTPUTS = {"epsilon": "epsilon", "x0": "x0", "v": "v", "flow": "velocity", "edm": "edm"}


def inputs(model: storage.Model) -> list[str]:
    """Names of the inputs: x, c_noise, and label where there are classes."""
    return list(_example(model))


def output(model: storage.Model) -> str:
    """Name of the output: what the net predicts, and where it learns the variance, that in the second half."""
    name = OUTPUTS[model.config.diffusion.target]
    return f"{name}_and_variance" if model.config.diffusion.learned_variance else name


def write(model: storage.Model, path: Path) -> None:
    """The net of a model as an ONNX file with its weights (above `LARGEST`, these are in PATH.data beside it).

    Inputs, all of them of any batch size, height and width:
        x: float32 [batch channels height width], noisy images, already times c_in. A net that is trained to inpaint has
            more channels: then the known pixels (not times c_in, 0 in the hole), and 1 in the hole; all of it is a hole
            where nothing is known.
        c_noise: float32 [batch].
        label: int64 [batch], of a net with classes: 0 ... K - 1, or K, the null label.
    Output: `output(model)` [batch channels height width]. A learned variance is the second half of the channels, -1
    for the smaller and 1 for the larger log variance of DDPM.

    Metadata, each a text: `config` (that of a model folder), `step`, `target`, `schedule`, `classes` (a JSON list),
    `mean` (of each channel, a JSON list) and `ladder`: for each of the model's own number of steps, from much noise to
    little, {"sigma", "c_noise", "c_in", "c_skip", "c_out"}. After the last one sigma is 0, and x the answer.

    Raises:
        UsageError: a package that exports is not installed.
        ResourceError: the disk does not take it; of what was there before nothing is lost.
    """
    program = _program(model)
    large = sum(tensor.nbytes for tensor in model.denoiser.net.state_dict().values()) > LARGEST
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        files.mkdir(temporary)
        program.save(str(temporary / path.name), external_data=large)
        for each in sorted(temporary.iterdir(), reverse=True):  # the weights, where they have a file, before the net
            files.fsync(each)
            files.replace(each, path.with_name(each.name))
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror or error}; make room") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _example(model: storage.Model) -> dict[str, Tensor]:
    """Inputs of a size that no level of the net makes 1, or can be divided by 2: what holds for it holds for any."""
    net = model.denoiser.net
    assert isinstance(net.in_channels, int)
    depth = len(model.config.model.multipliers or ())
    x = torch.zeros(2, net.in_channels, 2**depth + 1, 2**depth + 3)
    told = {"label": torch.zeros(2, dtype=torch.int64)} if net.num_classes else {}
    return {"x": x, "c_noise": torch.zeros(2), **told}


def _program(model: storage.Model) -> Any:
    """The net as torch's ONNXProgram, with our metadata alone."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError:
        raise UsageError("ONNX needs more packages: pip install 'diffunet[onnx]'") from None
    example = _example(model)
    size = {0: "batch", 2: "height", 3: "width"}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.denoiser.net,
            kwargs=example,
            dynamo=True,
            verbose=False,
            input_names=list(example),
            output_names=[output(model)],
            dynamic_shapes={name: size if name == "x" else {0: "batch"} for name in example},
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # every node has a stack trace with the folders of this machine
    program.model.metadata_props.update(_metadata(model))
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what the exporter logs and warns of: its own operators, versions and passes."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _metadata(model: storage.Model) -> dict[str, str]:
    config, denoiser = model.config, model.denoiser
    content = {"format": storage.FORMAT, "version": storage.VERSION, "config": config.model_dump(mode="json")}
    return {
        "config": json.dumps(content),
        "step": str(model.step),
        "target": config.diffusion.target,
        "schedule": config.diffusion.schedule,
        "classes": json.dumps(config.data.class_names),
        "mean": json.dumps(build.prior_mean(config).flatten().tolist()),
        "ladder": json.dumps(
            [
                {
                    "sigma": sigma.item(),
                    "c_noise": denoiser.schedule.c_noise(sigma).item(),
                    "c_in": denoiser.target.c_in(sigma).item(),
                    "c_skip": denoiser.target.c_skip(sigma).item(),
                    "c_out": denoiser.target.c_out(sigma).item(),
                }
                for sigma in build.ladder(config, denoiser.schedule, config.diffusion.sample_steps)[:-1]
            ]
        ),
    }
