"""The optimizers of a run: AdamW, and Muon for the matrices inside the net where the config says so."""

import torch
from torch import Tensor, nn

from diffunet.compute import Compute
from diffunet.config import TrainConfig
from diffunet.errors import UsageError
from diffunet.training.muon import Muon


def of(train: TrainConfig, net: nn.Module, how: Compute) -> tuple[torch.optim.Optimizer, ...]:
    """Return the optimizers of a resolved config, which share the parameters of `net` among them.

    With `optimizer` "muon" what `net.matrices()` yields is learned by Muon, see `unet.UNet.matrices`. All the rest
    (stem, output, embeddings, norms, biases) is AdamW's.

    Raises:
        UsageError: Muon is asked for, and the net has no such method.
    """
    assert train.learning_rate is not None, "the config is resolved"
    matrices: list[tuple[Tensor, int]] = []
    if train.optimizer == "muon":
        if not callable(inside_of := getattr(net, "matrices", None)):
            raise UsageError(
                f"--train.optimizer muon: {type(net).__name__} has no method `matrices` that says which it has, as "
                "diffunet's UNet does; adamw trains any net"
            )
        matrices = list(inside_of())
    inside = {id(weight) for weight, _ in matrices}
    rest = [parameter for parameter in net.parameters() if id(parameter) not in inside]
    adamw = torch.optim.AdamW(
        rest, lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay, fused=True
    )
    if not matrices:
        return (adamw,)
    # Half of the digits are enough for the iteration, which is twice as fast in them where the device computes in them.
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
    return adamw, Muon(matrices, lr=train.learning_rate, weight_decay=train.weight_decay, dtype=dtype)


def begin(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the moments that it has before its first step, so that those of a checkpoint can be copied."""
    keys = ("momentum_buffer",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = {key: torch.zeros_like(parameter) for key in keys}
            if not isinstance(optimizer, Muon):
                state["step"] = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = state


def skip_by_themselves(device: torch.device) -> bool:
    """Try whether fused AdamW on this device leaves the weights alone where its `found_inf` is 1, as Muon does.

    On Apple's GPUs it ignored `found_inf` in versions of torch before one of 2026; there the learner waits for the
    device at each step, and skips it.
    """
    weight = torch.ones(1, device=device, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0, fused=True)
    optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
    optimizer.step()
    return weight.item() == 1.0
