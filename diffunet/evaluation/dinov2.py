"""FD-DINOv2 (Stein et al. 2023): the Fréchet distance by DINOv2's features, which agrees better with people than FID.

As in the paper's own code: pictures are resized to 224 pixels by Pillow's bicubic filter, and the features are those of
the class token of ViT-L/14. The network is timm's (extra `fid`).
"""

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffunet.errors import UsageError
from diffunet.evaluation.networks import Network, Weights
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

SIZE, PATCH = 224, 14
"""Pixels of a picture that the network sees, and of a patch of it."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, in [0, 1]; the network was trained on pictures normalized by them."""
OFFSET = 0.1
"""What is added to the number of patches of a side where positions are resampled, as in the published code."""
VIT_L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}


class Dinov2(Network):
    """The largest DINOv2 network but one, by which FD-DINOv2 is defined; it answers with features, float32 [N 1024]."""

    NAME = "DINOv2"
    METRICS = ("fd-dinov2",)
    WEIGHTS = Weights(
        "1.2 GB", "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428", ("dinov2_vitl14_pretrain.pth",),
    )  # fmt: skip
    FEATURES = 1024

    def _made(self, content: bytes) -> nn.Module:
        try:
            from timm.models.vision_transformer import VisionTransformer
        except ImportError:
            raise UsageError(
                'FD-DINOv2 is measured by timm, which is not installed: pip install "diffunet[fid]"'
            ) from None
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        del weights["mask_token"]  # for training alone
        weights["pos_embed"] = resampled(weights["pos_embed"], SIZE // PATCH)
        made: nn.Module = VisionTransformer(SIZE, PATCH, num_classes=0, init_values=1.0, **VIT_L)
        made.load_state_dict(weights)
        return made

    def _answers(self, rgb: Pixels) -> tuple[Tensor, ...]:
        sized = (images.from_array(each).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for each in rgb)
        large = np.stack([np.asarray(each) for each in sized])
        x = torch.from_numpy(large).to(self.device).permute(0, 3, 1, 2) / 255
        mean, deviation = (torch.tensor(each, device=self.device)[:, None, None] for each in (MEAN, DEVIATION))
        return (self.net((x - mean) / deviation),)


def resampled(positions: Tensor, side: int) -> Tensor:
    """Return embeddings of the positions of `side` x `side` patches from those of more, [1 1+P D] -> [1 1+side^2 D].

    The first one is the class token's and stays. The published code resamples the others by a bicubic filter without
    antialiasing, by a factor that is a little too large.
    """
    token, patches = positions[:, :1], positions[:, 1:]
    before = math.isqrt(patches.shape[1])
    factor = (side + OFFSET) / before
    square = patches.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    smaller = nn.functional.interpolate(square, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([token, smaller.flatten(2).mT], dim=1)
