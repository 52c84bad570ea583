"""`diffunet info` shows a net and what it costs; net_summary.py does the work, since it needs torch."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

from diffunet.commands.options import Size
from diffunet.commands.progress import tell


def info(
    model: Annotated[Positional[str], arg(metavar="MODEL_OR_PRESET")],
    /,
    image_size: Size | None = None,
    device: str | None = None,
) -> None:
    """Show a net: shapes as an image flows through it, parameters, MACs, memory and time to expect.

    Example: diffunet info default --image-size 64

    Args:
        model: A run folder, a model folder, a folder of diffusers, a name of the hub, or the name of a preset.
        image_size: The model's own if not given.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
    """
    from diffunet.commands.net_summary import describe

    for line in describe(model, image_size, device):
        if not tell(line):
            return
