"""A net as an ONNX file, for runtimes without PyTorch.

The file holds the net alone. To sample with it, work in `x = x0 + sigma * noise` with pixels in [-1, 1]. The denoised
image is `c_skip * x + c_out * net(c_in * x, c_noise)`, and one step of Euler from sigma down to the next sigma' is
`x = denoised + sigma' / sigma * (x - denoised)`. Begin at `mean + sigma * noise` with the first sigma. The coefficients
depend on the output; those of edm are of Karras et al. 2022, table 1, where sd is the sigma_data of the config:

    output     c_skip                c_out                         c_in
    epsilon    1                     -sigma                        1 / sqrt(1 + sigma^2)
    x0         0                     1                             1 / sqrt(1 + sigma^2)
    v          1 / (1 + sigma^2)     -sigma / sqrt(1 + sigma^2)    1 / sqrt(1 + sigma^2)
    velocity   1 / (1 + sigma)       -sigma / (1 + sigma)          1 / (1 + sigma)
    edm        sd^2 / (sigma^2 + sd^2)    sigma sd / sqrt(sigma^2 + sd^2)    1 / sqrt(sigma^2 + sd^2)

c_noise is the timestep on a DDPM schedule (linear, scaled-linear, cosine, sigmoid), log(sigma) / 4 on EDM's, and
1000 sigma / (1 + sigma) on those of flow; sigma is there the one before the shift for large images. All these numbers
for the model's own ladder of noise levels are in the metadata of the file (`metadata_props`).
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffunet import build, files, storage
from diffunet.errors import ResourceError, UsageError

LARGEST = 2**31 - 2**20
"""Bytes of weights above which they go to a second file, since an ONNX file of 2 GiB cannot be read."""

OUTPUTS = {"epsilon": "epsilon", "x0": "x0", "v": "v", "flow": "velocity", "edm": "edm"}


def inputs(model: storage.Model) -> list[str]:
    """Return the names of the inputs: x, c_noise, and label where there are classes."""
    return list(_example(model))


def output(model: storage.Model) -> str:
    """Return the name of the output: what the net predicts, with "_and_variance" where it learns that too."""
    name = OUTPUTS[model.config.diffusion.target]
    return f"{name}_and_variance" if model.config.diffusion.learned_variance else name


def write(model: storage.Model, path: Path) -> None:
    """Write the net of a model as an ONNX file with its weights; above `LARGEST` these go to PATH.data beside it.

    Inputs, each of any batch size, height and width:
        x: float32 [batch channels height width], noisy images, already multiplied by c_in. A net for inpainting has
            more channels: the known pixels (not multiplied by c_in, 0 in the hole), then the mask (1 in the hole, which
            is everywhere if nothing is known).
        c_noise: float32 [batch].
        label: int64 [batch], of a net with classes: 0 ... K - 1, or K, the null label.
    Output: `output(model)` [batch channels height width]. A learned variance is the second half of the channels, -1
    for the smaller and 1 for the larger log variance of DDPM (Nichol & Dhariwal 2021, eq. 15).

    Metadata, each a text: `config` (as in a model folder), `step`, `target`, `schedule`, `classes` and `mean` (of each
    channel), both JSON lists, and `ladder`: a JSON list with one {"sigma", "c_noise", "c_in", "c_skip", "c_out"} for
    each of the model's own steps, from much noise to little. After the last step sigma is 0, and x is the image.

    Raises:
        UsageError: a package that the export needs is not installed.
        ResourceError: the disk does not take the file; what was there before is whole.
    """
    program = _program(model)
    large = sum(tensor.nbytes for tensor in model.denoiser.net.state_dict().values()) > LARGEST
    names = [f"{path.name}.data", path.name] if large else [path.name]  # PATH refers to PATH.data, which goes first
    try:
        with files.replacing_all(path.parent, names) as temporary:
            files.mkdir(temporary)
            program.save(str(temporary / path.name), external_data=large)
            for name in names:
                files.fsync(temporary / name)
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror or error}; make room") from None


def _example(model: storage.Model) -> dict[str, Tensor]:
    """Return inputs to trace the net with: sizes differ, are odd at every level and never 1, so any become possible."""
    net, unit = model.denoiser.net, 2 ** len(model.config.model.multipliers or ())
    assert isinstance(net.in_channels, int)
    label = {"label": torch.zeros(2, dtype=torch.int64)} if net.num_classes else {}
    return {"x": torch.zeros(2, net.in_channels, unit + 1, unit + 3), "c_noise": torch.zeros(2), **label}


def _program(model: storage.Model) -> Any:
    """Return the net as an ONNXProgram of torch, with no metadata but ours."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError:
        raise UsageError("ONNX needs more packages: pip install 'diffunet[onnx]'") from None
    example = _example(model)
    shapes = {name: {0: "batch", 2: "height", 3: "width"} if name == "x" else {0: "batch"} for name in example}
    logs = logging.root.manager.disable
    logging.disable(logging.ERROR)  # the exporter logs and warns of its own operators, versions and passes
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            program = torch.onnx.export(
                model.denoiser.net, kwargs=example, dynamo=True, verbose=False, input_names=list(example),
                output_names=[output(model)], dynamic_shapes=shapes,
            )  # fmt: skip
    finally:
        logging.disable(logs)
    assert program is not None
    # Every node has a stack trace, which shows the folders of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(_metadata(model))
    return program


def _metadata(model: storage.Model) -> dict[str, str]:
    config, schedule, target = model.config, model.denoiser.schedule, model.denoiser.target
    content = {"format": storage.FORMAT, "version": storage.VERSION, "config": config.model_dump(mode="json")}
    coefficients = {"c_noise": schedule.c_noise, "c_in": target.c_in, "c_skip": target.c_skip, "c_out": target.c_out}
    ladder = [
        {"sigma": sigma.item(), **{name: value(sigma).item() for name, value in coefficients.items()}}
        for sigma in build.ladder(config.diffusion, schedule, config.diffusion.sample_steps)[:-1]
    ]
    return {
        "config": json.dumps(content), "step": str(model.step), "target": config.diffusion.target,
        "schedule": config.diffusion.schedule, "classes": json.dumps(config.data.class_names),
        "mean": json.dumps(build.prior_mean(config).flatten().tolist()), "ladder": json.dumps(ladder),
    }  # fmt: skip
