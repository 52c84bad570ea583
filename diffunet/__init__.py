"""diffunet trains a diffusion model on a folder of images, samples from it, and fills in masked images.

    import diffunet

    pipe = diffunet.load("runs/cats")
    pipe.sample(num=4)[0].save("cat.png")

Public names are imported when they are first used, so that `import diffunet` stays fast and imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from diffunet.version import __version__

_NAMES = {
    "config": "Config",
    "errors": "Cancelled CheckpointError DataError DivergedError Error ResourceError Stopped UsageError",
    "evaluation.run": "Run open_run",
    "nn.unet": "UNet",
    "nn.unet2015": "UNet2015",
    "pictures.made": "Pictures save",
    "sampling.pipeline": "Guidance Pipeline Progress load",
    "sampling.watching": "Bar",
    "training.loop": "train",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from diffunet.config import Config as Config
    from diffunet.errors import Cancelled as Cancelled
    from diffunet.errors import CheckpointError as CheckpointError
    from diffunet.errors import DataError as DataError
    from diffunet.errors import DivergedError as DivergedError
    from diffunet.errors import Error as Error
    from diffunet.errors import ResourceError as ResourceError
    from diffunet.errors import Stopped as Stopped
    from diffunet.errors import UsageError as UsageError
    from diffunet.evaluation.run import Run as Run
    from diffunet.evaluation.run import open_run as open_run
    from diffunet.nn.unet import UNet as UNet
    from diffunet.nn.unet2015 import UNet2015 as UNet2015
    from diffunet.pictures.made import Pictures as Pictures
    from diffunet.pictures.made import save as save
    from diffunet.sampling.pipeline import Guidance as Guidance
    from diffunet.sampling.pipeline import Pipeline as Pipeline
    from diffunet.sampling.pipeline import Progress as Progress
    from diffunet.sampling.pipeline import load as load
    from diffunet.sampling.watching import Bar as Bar
    from diffunet.training.loop import train as train


def __getattr__(name: str) -> Any:
    if name == "web":  # diffunet.web.serve
        return importlib.import_module("diffunet.web")
    if name not in _HOME:
        raise AttributeError(f"module 'diffunet' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"diffunet.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
