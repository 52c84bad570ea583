"""`diffunet convert` writes a model in another form, and reads models of other projects."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from diffunet.commands import outputs
from diffunet.commands.options import Finite, Number, Overwrite
from diffunet.commands.progress import progress, say, tell
from diffunet.commands.signature import Rare
from diffunet.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from diffunet.storage import Model

Dialect = Literal["guided-diffusion", "improved-diffusion"]


def convert(
    source: Annotated[Positional[str], arg(metavar="SOURCE")], out: Annotated[Positional[str], arg(metavar="OUT")], /,
    to: Literal["diffunet", "diffusers", "onnx", "hub"] | None = None, flags: str | None = None,
    dialect: Rare[Dialect | None] = None, ema: Finite | None = None, step: Rare[Number | None] = None,
    private: bool = False, overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Write a model in another form: as a model folder, for diffusers, as ONNX, to the hub. Reads other projects' too.

    Example: diffunet convert runs/photos photos-diffusers --to diffusers

    Example: diffunet convert runs/photos photos-model --ema 0.05

    Example: diffunet convert runs/photos photos.onnx

    Example: diffunet convert google/ddpm-cifar10-32 cifar10-model

    Example: diffunet convert 64x64_diffusion.pt adm64 --flags="--image_size 64 --num_channels 192 ..."

    Args:
        source: Run folder, model folder, checkpoint such as RUN/checkpoints/step-00001000, folder of diffusers, name
            on the hub (owner/name), model that comes with diffunet, or .pt file of guided-diffusion or
            improved-diffusion.
        out: Folder to make; for onnx a file; for hub the name there, owner/name.
        to: Form to write. If not given, it is onnx where OUT ends in .onnx, else diffunet, a model folder.
        flags: Model and diffusion flags of a .pt file, as its project's README gives them, in one word.
        dialect: Project that a .pt file is of. If not given, it is guided-diffusion.
        ema: Relative width of an average of the weights, its spread over the length of the run: 0.03 to 0.20 are
            usual. It is put together from those that a run folder stores (--train.ema-every).
        step: Step of the average of --ema, one that averages are stored of. If not given, it is the newest.
        private: Let nobody else see what --to hub uploads.
    """
    to = to or ("onnx" if out.endswith(".onnx") else "diffunet")
    if step is not None and ema is None:
        raise UsageError(f"--step goes with --ema; for an earlier checkpoint give {source}/checkpoints/step-{step:08d}")
    if private and to != "hub":
        raise UsageError("--private goes with --to hub")
    target = Path(out)
    if to != "hub":
        for folder in (target, *list(target.absolute().parents)[:2]):
            if (folder / "config.toml").is_file():
                raise UsageError(f"OUT {out} is in the run folder {folder}, which only training writes to")
        outputs.claim(target, file=to == "onnx", overwrite=overwrite, option="OUT")

    from diffunet import storage
    from diffunet.interop import card, diffusers, hub, models, onnx

    if to == "hub":
        hub.check_name(out)
    # Files of a model of another form would stay in the folder, and be taken for the new one.
    theirs, ours = diffusers.is_folder(target), (target / storage.WEIGHTS).is_file()
    if (to == "diffunet" and theirs) or (to == "diffusers" and ours):
        form = (
            f"{'a folder of diffusers' if theirs else 'a model folder'}, which --overwrite does not make another form"
        )
        raise UsageError(f"OUT {out} is {form}: choose another, or delete it")
    model = _read(source, flags, dialect, ema, step)

    has_weaker = model.weaker is not None or (Path(source) / "model" / storage.WEAKER).is_file()
    if has_weaker and (to != "diffunet" or ema is not None):
        say("without weaker.safetensors, the weaker model by which --guidance pushes samples of this one")

    def export(folder: Path) -> None:
        storage.export_model(folder, model.config, model.denoiser.net.state_dict(), model.step)

    if to == "diffunet":
        export(target)
        weaker = models.find(source) / storage.WEAKER if model.weaker is not None else None
        storage.replace_weaker(target, weaker)
        content = f"the weights of step {model.step}" if model.step else "the model"
        tell(f"{content} in {out}. Try: diffunet sample {out} --out samples.png --grid")
    elif to == "diffusers":
        diffusers.write(model, target)
        tell(f'{out} is a diffusers pipeline. Try: DDPMPipeline.from_pretrained("{out}")')
    elif to == "onnx":
        onnx.write(model, target)
        tell(f"the net in {out}; its inputs are {', '.join(onnx.inputs(model))}")
    else:
        run = Path(source) if (Path(source) / "config.toml").is_file() else None
        picture = None if run is None else card.preview(run)
        with tempfile.TemporaryDirectory() as folder_name:
            export(Path(folder_name))
            tell(hub.push(Path(folder_name), out, card.card(model, run, out), private, picture))


def _read(source: str, flags: str | None, dialect: Dialect | None, ema: float | None, step: int | None) -> Model:
    """Return SOURCE as a model; with `ema`, with that average of its weights."""
    from diffunet import build, storage
    from diffunet.interop import guided_diffusion, models
    from diffunet.training import snapshots

    if source.endswith((".pt", ".pth")) and not Path(source).is_dir():
        if not Path(source).is_file():
            raise CheckpointError(f"there is no file {source}")
        if flags is None:
            needed = '--flags="..." with the flags that its README gives for it'
            raise UsageError(f"{source} does not say what net it is of: {needed}")
        if ema is not None:
            raise UsageError("--ema is of a run folder")
        return guided_diffusion.read(Path(source), flags, dialect or "guided-diffusion")
    if flags is not None or dialect is not None:
        raise UsageError("--flags and --dialect are of a .pt of guided-diffusion or improved-diffusion")
    if ema is None:
        return models.read_model(source)
    with progress("averaging") as show:
        config, weights, reached = snapshots.put_together(Path(source), ema, step, show)
    return storage.with_weights(config, build.net(config), weights, Path(source), reached)
