"""Several processes and several machines, on the CPU: exact resume, agreement, and the loss of one of them."""

import filecmp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.launching import PATIENCE, finish, launch, wait_for
from helpers.small import tiny
from PIL import Image
from safetensors.torch import load_file

from diffunet.config import read_toml
from diffunet.training import checkpoint
from diffunet.training.loop import train

pytestmark = pytest.mark.slow

PLAIN = {"precision": "fp32", "previews": 0, "optimizer": "muon", "learning_rate": 4e-3}
"""One process is compared with two: no dropout, whose masks are each process's own, float32, and one learning rate for
runs of any length."""


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """72 images, so that an epoch of batches of 12 ends with step 6."""
    root = tmp_path_factory.mktemp("epochs")
    generator = np.random.default_rng(0)
    for i in range(72):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


def test_processes_agree_when_a_run_with_minutes_ends_and_its_config_repeats_it(epochs, tmp_path):
    config = tiny(
        data={"classes": False},
        train=PLAIN | {"minutes": 0.3, "steps": None, "batch_size": 12, "checkpoint_every": 1000, "ema_every": 0},
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert finish(launch(2, [epochs, "--out", tmp_path / "run", "--config", tmp_path / "config.toml"]))[0] == [0, 0]
    t = read_toml(tmp_path / "run/config.toml").train
    assert 3 <= t.cooldown_from < t.steps
    again = [epochs, "--out", tmp_path / "again", "--config", tmp_path / "run/config.toml"]
    assert finish(launch(2, again))[0] == [0, 0]
    a, b = (load_file(tmp_path / run / "model/model.safetensors") for run in ("run", "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


MATRIX = """
import os, signal, sys
from pathlib import Path
import diffunet
from diffunet.config import read_toml
from diffunet.errors import Stopped

data, config, out = sys.argv[1], read_toml(sys.argv[2]), Path(sys.argv[3])
many, last = int(os.environ["WORLD_SIZE"]) > 1, os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)

for cache in (None, "off"):
    config = config.changed("data", cache=cache)
    for kind, step in (("whole", 0), ("mid-epoch", 4), ("boundary", 6), ("inside-1", 4), ("inside-2", 6)):
        run, calls = out / f"{kind}-{cache}", []
        # With many processes what is asked for during a step takes effect at the end of the next one.
        asked = step - many

        def loss(denoised, x0, sigma):
            calls.append(1)
            if kind.startswith("inside") and len(calls) == 2 * (asked - 1) + int(kind[-1]) and last:
                os.kill(os.getpid(), signal.SIGTERM)
            return (denoised.x0 - x0).square().mean(dim=(1, 2, 3))

        def on_step(progress):
            return kind.startswith("inside") or progress.step < asked - 1

        if kind == "whole":
            calls = [1] * 1000
            diffunet.train(config, data, run, loss=loss)
            continue
        try:
            diffunet.train(config, data, run, loss=loss, on_step=on_step)
            raise SystemExit("it was not stopped")
        except Stopped as stopped:
            assert f"stopped at step {step} of" in str(stopped), (kind, cache, str(stopped))
        calls = [1] * 1000
        diffunet.train(config, data, run, loss=loss, resume=True)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_exact_wherever_it_stopped(epochs, tmp_path, processes):
    """{1, 2 processes} x {mid-epoch, epoch boundary, inside each pass of gradient accumulation} x {cache, none}."""
    config = tiny(
        # Two passes of a step on each process, and an epoch of 6 steps.
        train={"steps": 9, "grad_accumulation": 2, "batch_size": 12, "checkpoint_every": 100},
        data={"classes": False, "held_out": 0.0},
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    arguments = [epochs, tmp_path / "config.toml", tmp_path / "runs"]
    codes, said = finish(launch(processes, arguments, code=MATRIX))
    assert codes == [0] * processes, said
    for cache in ("None", "off"):
        for kind in ("mid-epoch", "boundary", "inside-1", "inside-2"):
            assert_equal(tmp_path / f"runs/whole-{cache}", tmp_path / f"runs/{kind}-{cache}", 9)


def assert_equal(a, b, step):
    for name in ("model", "ema", "optimizer"):
        x, y = (checkpoint.folder_of(run, step) / f"{name}.safetensors" for run in (a, b))
        assert filecmp.cmp(x, y, shallow=False), (name, a.name, b.name)


def weights(run, step, name="model"):
    return load_file(checkpoint.folder_of(run, step) / f"{name}.safetensors")


def assert_close(a, b, tolerance=2e-4):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=tolerance), name


def written(tmp_path, **options):
    config = tiny(train=PLAIN | options, model={"dropout": 0.0})
    (tmp_path / "config.toml").write_text(config.to_toml())
    return config, ["--config", tmp_path / "config.toml", "--out"]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_another_number_of_processes_sees_the_same_and_says_so(folder, tmp_path, first, second):
    config, options = written(tmp_path, steps=12)
    train(config, folder, tmp_path / "whole")
    codes, said = finish(launch(first, [folder, *options, tmp_path / "run", "--steps", 5]))
    assert codes == [0] * first, said
    codes, said = finish(launch(second, [folder, *options, tmp_path / "run", "--resume", "--steps", 12]))
    assert codes == [0] * second, said
    assert f"bits may differ: processes was {first}, is {second}" in said
    assert_close(weights(tmp_path / "whole", 12), weights(tmp_path / "run", 12))


def test_processes_agree_on_what_is_learned_beside_the_denoised_image(folder, tmp_path):
    """The uncertainty and the variance of steps are inside what is wrapped: their gradients are shared too."""
    changes = {"schedule": "cosine", "target": "v", "learned_variance": True, "learned_uncertainty": True}
    config = tiny(train=PLAIN | {"steps": 12}, model={"dropout": 0.0}, diffusion=changes)
    (tmp_path / "config.toml").write_text(config.to_toml())
    train(config, folder, tmp_path / "one")
    arguments = [folder, "--config", tmp_path / "config.toml", "--out", tmp_path / "two"]
    codes, said = finish(launch(2, arguments))
    assert codes == [0, 0], said
    one = weights(tmp_path / "one", 12)
    assert one["uncertainty.weight"].abs().max() > 0
    assert_close(one, weights(tmp_path / "two", 12))


def test_a_signal_to_one_process_stops_all_at_the_same_step(folder, tmp_path):
    config, options = written(tmp_path, steps=10**6, log_every=1, checkpoint_every=10**6)
    del config
    workers = launch(2, [folder, *options, tmp_path / "parts"])
    metrics = tmp_path / "parts/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), *workers)
    workers[1].send_signal(signal.SIGTERM)
    codes, said = finish(workers)
    assert codes == [75, 75], said
    stopped = json.loads((tmp_path / "parts/status.json").read_text())["step"]
    assert said.count(f"stopped at step {stopped} of") == 2
    codes, said = finish(launch(2, [folder, *options, tmp_path / "parts", "--resume", "--steps", stopped + 5]))
    assert codes == [0, 0], said
    codes, said = finish(launch(2, [folder, *options, tmp_path / "whole", "--steps", stopped + 5]))
    assert codes == [0, 0], said
    assert_equal(tmp_path / "whole", tmp_path / "parts", stopped + 5)


BY_CLOCK = """
import os, sys
from diffunet.commands.cli import main
from diffunet.training import saving

now = [0.0]

def clock():  # a minute passes at each look of the main process, and that of the others stands still
    now[0] += 60.0 if os.environ["RANK"] == "0" else 0.0
    return now[0]

saving.monotonic = clock
main(["train", *sys.argv[1:]])
"""


def test_processes_agree_on_checkpoints_by_the_clock_of_the_main_one(folder, tmp_path):
    options = {"checkpoint_every": 4, "keep_every": 1, "log_every": 100}
    _, words = written(tmp_path, **options, checkpoint_minutes=0.0)
    codes, said = finish(launch(2, [folder, *words, tmp_path / "whole"]))
    assert codes == [0, 0], said
    words += [tmp_path / "often", "--train.checkpoint-minutes", 1]
    codes, said = finish(launch(2, [folder, *words], code=BY_CLOCK))
    assert codes == [0, 0], said
    # What is asked for during a step is agreed on at the next one. Where there is one by steps nobody asks.
    assert checkpoint.steps(tmp_path / "whole") == [4, 6, 8]  # 6 is where the rate begins to fall
    assert checkpoint.steps(tmp_path / "often") == [2, 3, 4, 6, 8]
    for step in (4, 8):
        assert_equal(tmp_path / "whole", tmp_path / "often", step)


def test_one_image_and_two_processes(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    config = tiny(train=PLAIN | {"steps": 3}, data={"classes": False})
    (tmp_path / "config.toml").write_text(config.to_toml())
    (tmp_path / "data").mkdir()
    (tmp_path / "one.png").rename(tmp_path / "data/one.png")
    options = ["--config", tmp_path / "config.toml", "--out", tmp_path / "run"]
    codes, said = finish(launch(2, [tmp_path / "data", *options]))
    assert codes == [0, 0], said


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_the_loss_of_one_process_ends_the_other_with_a_clear_line_and_both_resume(folder, tmp_path, fate):
    # Without a cool-down, since that of a run which is made longer begins where the checkpoint is.
    _, options = written(tmp_path, steps=10**6, log_every=1, checkpoint_every=20, timeout=0.2, cooldown=0.0)
    workers = launch(2, [folder, *options, tmp_path / "run"])
    wait_for(lambda: (tmp_path / "run/model/model.safetensors").exists(), *workers)
    workers[1].send_signal(fate)
    _, said = workers[0].communicate(timeout=PATIENCE)
    workers[1].kill()
    workers[1].communicate(timeout=PATIENCE)
    assert workers[0].returncode == 6, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert "contact with another process was lost at step" in last
    assert "--resume" in last
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 6)
    last = checkpoint.steps(tmp_path / "run")[-1]
    codes, said = finish(launch(2, [folder, *options, tmp_path / "run", "--resume", "--steps", last + 4]))
    assert codes == [0, 0], said
    codes, said = finish(launch(2, [folder, *options, tmp_path / "whole", "--steps", last + 4]))
    assert codes == [0, 0], said
    assert_equal(tmp_path / "whole", tmp_path / "run", last + 4)


JUDGED = """
import os, signal, sys
from diffunet.commands.cli import main
from diffunet.diffusion import samplers

rank, (fate, *words) = int(os.environ["RANK"]), sys.argv[1:]
pictures = []

def sample(*arguments, function=samplers.sample):
    for i, x, denoised in function(*arguments):
        pictures.append(len(x))
        if fate == "diverged" and rank == 1:
            x.fill_(float("nan"))
        if fate == "stop" and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if fate == "dead" and rank == 1:
            os._exit(9)
        yield i, x, denoised

samplers.sample = sample
try:
    main(["train", *words])
finally:
    print(sum(pictures), flush=True)
"""


def judged(tmp_path, folder, name, processes, fate="", **options):
    """Train with previews and validation; gives the workers, and the words for one that is to be resumed."""
    changes = {"precision": "fp32", "previews": 6, "sample_every": 2, "validate_every": 2, "steps": 4} | options
    config = tiny(train=changes, model={"dropout": 0.0}, data={"held_out": 0.3})
    (tmp_path / f"{name}.toml").write_text(config.to_toml())
    words = [folder, "--config", tmp_path / f"{name}.toml", "--out", tmp_path / name]
    return launch(processes, [fate, *words], code=JUDGED)


def held_out_losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


@pytest.mark.parametrize("batch_size", [3, 12])
def test_previews_and_held_out_losses_are_shared_and_those_of_one_process(folder, tmp_path, batch_size):
    """Of the very same model, bit for bit where batches are equal. With 3 images at a time they are, with 12 not."""
    # The weights do not change, so that all is of one model whatever the number of processes.
    still = {"learning_rate": 1e-12, "grad_accumulation": 1}
    one = judged(tmp_path, folder, "one", 1, batch_size=batch_size, **still)
    said = [worker.communicate(timeout=PATIENCE) for worker in one]
    assert [worker.returncode for worker in one] == [0], said
    two = judged(tmp_path, folder, "two", 2, batch_size=batch_size * (2 if batch_size == 3 else 1), **still)
    shared = [worker.communicate(timeout=PATIENCE) for worker in two]
    assert [worker.returncode for worker in two] == [0, 0], shared
    drawn = [int(out.split()[-1]) for out, _ in (*said, *shared)]
    assert drawn[1] == drawn[2] == drawn[0] / 2 > 0, "each draws half of the pictures"
    losses = [held_out_losses(tmp_path / name) for name in ("one", "two")]
    assert len(losses[0]) == len(losses[1]) == 2
    if batch_size == 3:
        assert losses[0] == losses[1]
    assert np.allclose(*losses, rtol=1e-6)
    for step in (2, 4):
        grids = [np.asarray(Image.open(tmp_path / name / f"samples/step-{step:08d}.png")) for name in ("one", "two")]
        if batch_size == 3:
            assert np.array_equal(*grids)
        assert np.abs(grids[0].astype(int) - grids[1]).max() <= 1


def test_a_picture_of_another_process_that_is_not_finite_is_said_and_training_goes_on(folder, tmp_path):
    codes, said = finish(judged(tmp_path, folder, "run", 2, "diverged"))
    assert codes == [0, 0], said
    assert said.count("no preview of step 2") == 1
    assert len(held_out_losses(tmp_path / "run")) == 2
    assert not (tmp_path / "run/samples").exists()


def test_a_process_that_is_stopped_during_a_preview_stops_all(folder, tmp_path):
    codes, said = finish(judged(tmp_path, folder, "run", 2, "stop", steps=10**6, log_every=1))
    assert codes == [75, 75], said
    stopped = json.loads((tmp_path / "run/status.json").read_text())["step"]
    assert stopped == 4, "asked for in the preview of step 2, agreed on after step 3, and known after step 4"
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", stopped)
    assert not (tmp_path / "run/samples/step-00000002.png").exists()


def test_a_process_that_dies_during_a_preview_ends_the_other_with_a_clear_line(folder, tmp_path):
    codes, said = finish(judged(tmp_path, folder, "run", 2, "dead"))
    assert codes == [6, 9], said
    assert "Traceback" not in said
    assert "contact with another process was lost at step 2" in said


def nodes(arguments, tmp_path):
    """Two groups of `accelerate launch` on one machine, as two machines with a process each would be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    groups = []
    for rank in range(2):
        words = f"--multi_gpu --num_machines 2 --machine_rank {rank} --main_process_ip 127.0.0.1 --num_processes 2"
        words += f" --main_process_port {port} --rdzv_backend static --mixed_precision no --dynamo_backend no"
        own = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "DIFFUNET_CACHE": str(tmp_path / f"cache-{rank}")}
        command = [sys.executable, "-m", "accelerate.commands.launch", *words.split(), "-m", "diffunet", "train"]
        groups.append(
            subprocess.Popen(
                [*command, *map(str, arguments)], env=os.environ | own,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return groups


def test_two_machines_train_what_one_does_and_stop_together(folder, tmp_path):
    config, options = written(tmp_path, steps=12)
    train(config, folder, tmp_path / "one")
    codes, said = finish(nodes([folder, *options, tmp_path / "two"], tmp_path))
    assert codes == [0, 0], said
    assert_close(weights(tmp_path / "one", 12), weights(tmp_path / "two", 12))
    assert_close(weights(tmp_path / "one", 12, "ema"), weights(tmp_path / "two", 12, "ema"))
    # Each had its own cache, built before the processes met.
    assert all(list((tmp_path / f"cache-{rank}").rglob("manifest.json")) for rank in range(2))

    longer = [folder, *options, tmp_path / "two", "--resume", "--steps", 10**6, "--train.log-every", 1]
    groups = nodes(longer, tmp_path)
    metrics = tmp_path / "two/metrics.jsonl"
    wait_for(lambda: len(metrics.read_text().splitlines()) > 30, *groups)
    groups[1].send_signal(signal.SIGTERM)  # the second machine is preempted
    _, said = finish(groups)
    status = json.loads((tmp_path / "two/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75), said
    assert checkpoint.newest(tmp_path / "two") == checkpoint.folder_of(tmp_path / "two", status["step"])


BEFORE = """
import sys, torch.distributed as dist
from diffunet import build
from diffunet.commands.cli import main

dataset = build.dataset

def watched(*arguments, **options):
    assert not dist.is_initialized(), "the cache is built before processes meet"
    print("no process group yet", flush=True)
    return dataset(*arguments, **options)

build.dataset = watched
main(["train", *sys.argv[1:]])
"""


def test_images_are_decoded_before_the_process_group_exists(folder, tmp_path):
    _, options = written(tmp_path, steps=2)
    workers = launch(2, [folder, *options, tmp_path / "run"], code=BEFORE)
    said = [worker.communicate(timeout=PATIENCE) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert all("no process group yet" in out for out, _ in said)
    assert read_toml(tmp_path / "run/config.toml").data.class_names == ("disc", "square")


DIFFERENT = """
import os, sys
from diffunet.commands.cli import main
main(["train", sys.argv[1 + int(os.environ["RANK"])], *sys.argv[3:]])
"""


def test_processes_that_see_different_images_do_not_begin(folder, tmp_path):
    _, options = written(tmp_path, steps=2)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/disc/0.png").unlink()
    workers = launch(2, [folder, tmp_path / "copy", *options, tmp_path / "run"], code=DIFFERENT)
    codes, said = finish(workers)
    assert codes == [3, 3], said
    assert said.count("the processes see different images") == 2
