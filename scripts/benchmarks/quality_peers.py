"""A peer of `quality` in a process of its own: `python -m benchmarks.quality_peers WAY TASK`; TASK is a file of JSON.

Each trains until its minutes, counted from the start of the process, are over, then samples. The settings of packages
are those of their READMEs, as far as a time can replace a number of steps; the width of each net is the one whose
parameters are nearest to diffunet's. Where a package's habit would cost it time for nothing that is judged, it is
spared: there are no previews, checkpoints and scores on the way.

- lucidrains: Unet, GaussianDiffusion and Trainer of denoising-diffusion-pytorch as in the second example of its README:
  batches of 2 x 32, learning rate 8e-5, mirrored images, its average (decay 0.995), 250 steps of DDIM; mixed precision
  on a GPU alone. Trainer stops when its batches say that the time is over.
- diffusers: what train_unconditional.py does as its README calls it, on the published classes: DDPM's 1,000 linear
  steps, epsilon, batch 16, AdamW at 1e-4, warm-up of 500 steps, cosine, its average, mirrored images. The layout of its
  net loses its first levels for images so small that they would not reach its last one.
- edm: the best that is known for such a loop, fresh from Karras et al. 2022, in `edm`.
- diffunet: only samples; it has been trained by its command.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import children
from diffunet import compute
from diffunet.data import symmetry
from diffunet.data.symmetry import one_sided
from diffunet.diffusion.denoiser import Denoiser
from diffunet.evaluation.denoising import denoising_error
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

BATCH, LONG, FEW = 100, 100, 20
"""Images that are sampled at a time; and on a CPU, by a way with more calls of the net than LONG, so FEW. So many are
made however long they take."""

Draw = Callable[[int], Pixels]
"""Samples so many images, uint8 [N H W C]."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Predicts clean images of noisy ones x0 + sigma * noise, [B C H W] and sigma [B]: E[x0 | x], in [-1, 1]."""

JUDGED = 256
"""The images kept back whose noise is taken out for the loss."""


class Guess(NamedTuple):
    """What a denoiser answers."""

    x0: Tensor


class Task:
    """What a peer is told (the fields of TASK), and its clock."""

    def __init__(self, path: str) -> None:
        told: dict[str, Any] = json.loads(Path(path).read_text())
        self.training, self.held_out, self.work = (Path(told[name]) for name in ("training", "held_out", "work"))
        self.size, self.parameters, self.seed = int(told["size"]), int(told["parameters"]), int(told["seed"])
        self.samples, self.patience = int(told["samples"]), float(told["patience"])
        self.tiny, self.run = bool(told["tiny"]), Path(told["run"])
        self.device = compute.choose(told["device"] or None).device
        self.began, self.length = psutil.Process().create_time(), 60 * float(told["minutes"])

    def passed(self) -> float:
        """Return the share of the minutes that has passed since the process began."""
        return (time.time() - self.began) / self.length

    def width(self, net: Callable[[int], nn.Module], step: int = 4) -> int:
        """Return the width, a multiple of `step`, with which a net has about as many parameters as diffunet's."""

        def off(width: int) -> float:
            with torch.device("meta"):
                return abs(math.log(count(net(width)) / self.parameters))

        best = step
        while off(best + step) < off(best):
            best += step
        return best

    def chain(self, steps: int) -> int:
        """Return a number of sampling steps, few where all is tiny."""
        return min(steps, 10) if self.tiny else steps

    def told(self, net: nn.Module, steps: int, batch: int, seconds: float, denoise: Denoise) -> dict[str, Any]:
        """Return what is known of a training."""
        return {
            "loss": self.loss(denoise), "parameters": count(net), "steps": steps, "images seen": steps * batch,
            "training s": seconds,
        }  # fmt: skip

    @torch.no_grad()
    def loss(self, denoise: Denoise) -> float:
        """Return the loss of `diffunet evaluate --loss` on images kept back, of predictions cut off at black and white.

        diffusers' sampler cuts them off, too: without it a net that predicts noise would be judged by what no one sees.
        """
        there = Files(self.held_out, self.size, flip=False)
        x0 = torch.stack([there[n] for n in range(min(JUDGED, len(there)))]).to(self.device)

        def denoiser(x: Tensor, sigma: Tensor, _: Tensor | None) -> Guess:
            return Guess(denoise(x, sigma).float().clamp(-1, 1))

        return denoising_error(cast(Denoiser, denoiser), x0).loss

    def sampled(self, ways: dict[str, tuple[Draw, int]]) -> dict[str, Any]:
        """Sample by each way, given with its calls of the net for an image, into a file each.

        A way that takes longer than `patience` seconds ends after the batch at hand, and its file has fewer images.
        """
        made: dict[str, Any] = {}
        for name, (draw, calls) in ways.items():
            torch.manual_seed(self.seed + 1)
            parts: list[Pixels] = []
            began = time.perf_counter()
            while (done := sum(map(len, parts))) < self.samples:
                if done and time.perf_counter() - began > self.patience:
                    break
                few = calls > LONG and self.device.type == "cpu"
                parts.append(draw(min(FEW if few else BATCH, self.samples - done)))
            seconds = time.perf_counter() - began
            path = self.work / f"{len(made)}.npz"
            np.savez(path, samples=np.concatenate(parts))
            num = sum(map(len, parts))
            made[name] = {"file": str(path), "samples": num, "calls": calls, "s for 100": 100 * seconds / num}
        return made


def count(net: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def pixels(x: Tensor) -> Pixels:
    """Return images of [0, 1], [N C H W], as uint8 [N H W C]."""
    return (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def level(alphas_cumprod: Tensor) -> Tensor:
    """Return sigma of each of DDPM's timesteps."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


def nearest(levels: Tensor, sigma: Tensor) -> Tensor:
    """Return the timestep whose noise level is nearest to each sigma [B], int64 [B]."""
    return (levels.log() - sigma.log()[:, None]).abs().argmin(dim=1)


def diffunet(task: Task) -> dict[str, Any]:
    """Sample a run as it does by itself."""
    from diffunet import build, storage
    from diffunet.sampling.pipeline import load

    pipe = load(task.run, task.device)
    step, d = storage.model_step(storage.find_model(task.run)) or 0, pipe.config.diffusion
    batch = pipe.config.train.batch_size
    assert isinstance(batch, int), "the config is resolved"

    seeds = itertools.count(1000 * task.seed)

    def draw(num: int) -> Pixels:
        made = pipe.sample(num, seed=next(seeds), batch_size=num)
        return np.stack([images.to_array(picture, 3) for picture in made])

    made = task.sampled({"": (draw, build.calls(d.sampler, d.sample_steps))})

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return pipe.denoiser(x, sigma, None).x0

    return task.told(pipe.denoiser.net, step, batch, 0.0, denoise) | {"made": made}


def lucidrains(task: Task) -> dict[str, Any]:
    """Train and sample by denoising-diffusion-pytorch."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    torch.manual_seed(task.seed)
    gpu, steps = task.device.type == "cuda", task.chain(250)
    made = partial(Unet, dim_mults=(1, 2, 4, 8), flash_attn=gpu)
    net = made(task.width(made))
    diffusion = GaussianDiffusion(net, image_size=task.size, timesteps=1000, sampling_timesteps=steps)
    trainer = Trainer(
        diffusion, str(task.training), train_batch_size=32, train_lr=8e-5, train_num_steps=700_000,
        gradient_accumulate_every=2, ema_decay=0.995, amp=gpu, calculate_fid=False, save_and_sample_every=10**9,
        results_folder=str(task.work),
    )  # fmt: skip
    there = sum(1 for _ in task.training.iterdir())
    if len(trainer.ds) != there:
        raise RuntimeError(f"it reads {len(trainer.ds)} of {there} images: no other kinds than JPEG, PNG and .tiff")

    def until(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            if task.passed() >= 1:
                trainer.train_num_steps = 0  # the step at hand is its last
            yield batch

    trainer.dl = until(trainer.dl)
    trainer.train()
    seconds = time.time() - task.began
    average = trainer.ema.ema_model.eval()
    ways = {f"DDIM {steps}": ((lambda num: pixels(average.sample(batch_size=num))), steps)}
    levels = level(average.alphas_cumprod)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scaled = x / (1 + sigma.square()).sqrt()[:, None, None, None]
        return average.model_predictions(scaled, nearest(levels, sigma)).pred_x_start

    return task.told(net, trainer.step, 64, seconds, denoise) | {"made": task.sampled(ways)}


class Files(torch.utils.data.Dataset[Tensor]):
    """The images of a folder in [-1, 1], each opened anew, as the script of diffusers has them."""

    def __init__(self, root: Path, size: int, *, flip: bool = True) -> None:
        from torchvision import transforms as t

        self.paths = sorted(root.iterdir())
        parts = [t.Resize(size), t.CenterCrop(size), *([t.RandomHorizontalFlip()] if flip else [])]
        self.change = t.Compose([*parts, t.ToTensor(), t.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: int) -> Tensor:
        from PIL import Image

        with Image.open(self.paths[n]) as image:
            return self.change(image.convert("RGB"))


def readme_net(size: int, width: int) -> Any:
    """Return UNet2DModel as train_unconditional.py has it, but for its width and, below 64 pixels, its first levels."""
    from diffusers import UNet2DModel

    times, attention = (1, 1, 2, 2, 4, 4), 4
    first = max(0, 6 - max(2, int(math.log2(size))))
    down = ["AttnDownBlock2D" if level == attention else "DownBlock2D" for level in range(first, 6)]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return UNet2DModel(
        sample_size=size, in_channels=3, out_channels=3, layers_per_block=2,
        block_out_channels=tuple(width * factor for factor in times[first:]), down_block_types=tuple(down),
        up_block_types=tuple(up), norm_num_groups=math.gcd(width, 32),
    )  # fmt: skip


def diffusers(task: Task) -> dict[str, Any]:
    """Train and sample as diffusers' examples/unconditional_image_generation does."""
    from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(task.seed)
    made = partial(readme_net, task.size)
    net = made(task.width(made)).to(task.device)
    average = EMAModel(
        net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_cls=type(net),
        model_config=net.config,
    )  # fmt: skip
    noises: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    cosine = torch.optim.lr_scheduler.LambdaLR(  # the clock in place of a planned number of steps
        optimizer, lambda step: min(1, step / 500) * 0.5 * (1 + math.cos(math.pi * min(1, task.passed())))
    )
    loader = torch.utils.data.DataLoader(Files(task.training, task.size), batch_size=16, shuffle=True)
    steps = seen = 0
    while task.passed() < 1 or not steps:
        for x0 in loader:
            x0 = x0.to(task.device)
            noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),), device=task.device)
            F.mse_loss(net(noises.add_noise(x0, noise, t), t).sample, noise).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            cosine.step()
            optimizer.zero_grad()
            average.step(net.parameters())
            steps, seen = steps + 1, seen + len(x0)
            if task.passed() >= 1:
                break
    seconds = time.time() - task.began
    average.copy_to(net.parameters())
    net.eval()

    def draw(scheduler: Any, count: int, num: int) -> Pixels:
        pipeline: Any = DDPMPipeline(net, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pixels(torch.from_numpy(pipeline(num, num_inference_steps=count, output_type="np").images).movedim(3, 1))

    levels = level(noises.alphas_cumprod.to(task.device))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None, None, None]
        return x - s * net(x / (1 + s.square()).sqrt(), nearest(levels, sigma)).sample

    fast = DPMSolverMultistepScheduler.from_config(noises.config)
    whole = task.chain(1000)
    ways: dict[str, tuple[Draw, int]] = {
        f"DPM-Solver++ {n}": (partial(draw, fast, n), n) for n in (task.chain(25), task.chain(50) + task.tiny)
    }
    ways[f"DDPM {whole}"] = partial(draw, noises, whole), whole
    return task.told(net, steps, 16, seconds, denoise) | {"images seen": seen, "made": task.sampled(ways)}


def edm_net(size: int, width: int, dropout: float) -> Any:
    """Return UNet2DModel about as EDM has it: levels of 1, 2, 2 times the width, attention at 16 pixels and below."""
    from diffusers import UNet2DModel

    layouts = {16: (1, 2, 2), 32: (1, 2, 2, 2), 64: (1, 2, 3, 4)}
    times = next((layout for most, layout in layouts.items() if size <= most), (1, 1, 2, 3, 4))
    down = ["AttnDownBlock2D" if size // 2**level <= 16 and level else "DownBlock2D" for level in range(len(times))]
    return UNet2DModel(
        sample_size=size, in_channels=3, out_channels=3, layers_per_block=2, dropout=dropout,
        block_out_channels=tuple(width * factor for factor in times), down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)), attention_head_dim=None,
        norm_num_groups=math.gcd(width, 8), resnet_time_scale_shift="scale_shift",
    )  # fmt: skip


def edm(task: Task) -> dict[str, Any]:
    """Train and sample as in Karras et al. 2022, table 1 and algorithm 1, in one loop.

    Images are read once; AdamW, batch 32 on a CPU and else 128, has a short warm-up and a rate that falls to zero over
    the last 40% of the time; the average has a half-life of 5% of the steps so far. Like diffunet it drops features out
    where there are fewer than 5,000 images, and mirrors these where left and right do not differ.
    """
    torch.manual_seed(task.seed)
    torch.set_float32_matmul_precision("high")
    paths = Files(task.training, task.size, flip=False)
    data = torch.stack([paths[n].mul(127.5).add(127.5).round().byte() for n in range(len(paths))]).to(task.device)
    few, batch = len(data) < 5000, 32 if task.device.type == "cpu" else 128
    mirrored = few and not one_sided(data[: symmetry.MOST].permute(0, 2, 3, 1).cpu().numpy())
    made = partial(edm_net, task.size, dropout=0.1 if few else 0.0)
    net = made(task.width(made)).to(task.device, memory_format=torch.channels_last)
    average = edm_net(task.size, net.config.block_out_channels[0], 0.0).to(task.device).eval()
    average.load_state_dict(net.state_dict())
    rate, half = 3e-4 * math.sqrt(batch / 32), task.device.type == "cuda"
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def denoise(model: nn.Module, x: Tensor, sigma: Tensor, sd: float = 0.5) -> Tensor:
        """Table 1, with c_noise scaled to the times that diffusers' net is made for."""
        s = sigma.reshape(-1, 1, 1, 1)
        skip, out, into = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt(), 1 / (s**2 + sd**2).sqrt()
        with torch.autocast(task.device.type, torch.bfloat16, enabled=half):
            answer = model(into * x, 100 * sigma.log()).sample
        return skip * x + out * answer.float()

    steps = 0
    while task.passed() < 1 or not steps:
        x0 = data[torch.randint(len(data), (batch,), device=task.device)].float() / 127.5 - 1
        if mirrored:
            x0 = torch.where(torch.rand(batch, 1, 1, 1, device=task.device) < 0.5, x0.flip(3), x0)
        sigma = (1.2 * torch.randn(batch, device=task.device) - 1.2).exp()
        weight = ((sigma**2 + 0.25) / (sigma * 0.5) ** 2).reshape(-1, 1, 1, 1)
        x = x0 + sigma.reshape(-1, 1, 1, 1) * torch.randn_like(x0)
        (weight * (denoise(net, x, sigma) - x0) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (steps + 1) / 100, max(0, 1 - task.passed()) / 0.4)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        with torch.no_grad():
            old, new = list(average.parameters()), list(net.parameters())
            torch._foreach_lerp_(old, new, 1 - 0.5 ** (1 / max(1.0, 0.05 * steps)))
    seconds = time.time() - task.began

    @torch.inference_mode()
    def heun(num: int, n: int = 18, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Pixels:
        """Algorithm 1 without its churn."""
        ramp = torch.linspace(0, 1, n, dtype=torch.float64)
        ladder = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        sigmas = [*ladder.float().to(task.device), torch.zeros((), device=task.device)]
        x = high * torch.randn(num, 3, task.size, task.size, device=task.device)
        for now, then in itertools.pairwise(sigmas):
            slope = (x - denoise(average, x, now.expand(num))) / now
            euler = x + (then - now) * slope
            if then > 0:
                slope = (slope + (euler - denoise(average, euler, then.expand(num))) / then) / 2
            x = x + (then - now) * slope
        return pixels((x + 1) / 2)

    told = task.told(net, steps, batch, seconds, partial(denoise, average))
    return told | {"made": task.sampled({"Heun 18": (heun, 35)})}


WAYS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "diffunet": diffunet, "lucidrains": lucidrains, "diffusers": diffusers, "edm": edm,
}  # fmt: skip


def made(way: str, task: str) -> dict[str, Any]:
    """Do what a task says; this is what the process does."""
    return WAYS[way](Task(task))


if __name__ == "__main__":
    children.answer(made)
