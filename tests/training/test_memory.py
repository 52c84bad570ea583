"""Runs that do not fit: refused by counting, caught for real under a limit, and `--batch-size auto`."""

import json

import pytest
import torch
from helpers.launching import finish, start
from helpers.small import tiny

from diffunet import compute
from diffunet.config import read_toml
from diffunet.errors import ResourceError, UsageError
from diffunet.training import defaults, memory
from diffunet.training.loop import train

# The address space of a process that has torch is large from the start: what counts is what is left.
LIMITED = """
import resource, sys
import torch, torch.utils.flop_counter, diffunet.training.loop
from diffunet.commands.cli import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main(sys.argv[2:])
"""


def limited(mebibytes, folder, config, run, *options):
    (run.parent / "config.toml").write_text(config.to_toml())
    words = ["train", folder, "--config", run.parent / "config.toml", "--out", run, *options]
    pytest.importorskip("resource", reason="only Unix limits a process")
    return finish([start(LIMITED, mebibytes, *words, OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="1")])


LARGE = {"channels": 32, "multipliers": (1, 2), "dropout": 0.0}


@pytest.mark.slow
def test_out_of_memory_is_one_line_with_what_to_do(folder, tmp_path):
    config = tiny(model=LARGE, train={"batch_size": 2**14, "precision": "fp32", "grad_accumulation": 1})
    [code], said = limited(1000, folder, config, tmp_path / "run")
    assert code == 6, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    for words in ("--batch-size 16384", "half of it", "--train.grad-accumulation", "--model.checkpointing", "channels"):
        assert words in last
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 6


@pytest.mark.slow
def test_auto_finds_a_batch_that_fits_and_writes_it_down(folder, tmp_path):
    """With 820 MiB: 16 images a pass take 890 and are found not to fit, and 8 take 600."""
    big = {**LARGE, "channels": 64}
    config = tiny(
        model=big, data={"image_size": 48},
        train={"batch_size": "auto", "grad_accumulation": 1, "precision": "fp32", "steps": 2, "previews": 1},
    )  # fmt: skip
    [code], said = limited(820, folder, config, tmp_path / "run")
    assert code == 0, said
    chosen = read_toml(tmp_path / "run/config.toml").train.batch_size
    assert 1 <= chosen < 32  # what is worth it on a CPU does not fit
    # Four times as much does not: the same run with it is out of memory. (A tenth is left alone, powers of two tried.)
    config = config.changed("train", batch_size=4 * chosen)
    [code], said = limited(820, folder, config, tmp_path / "twice")
    assert code == 6, said
    # Resuming keeps what was found.
    config = config.changed("train", batch_size="auto", steps=3)
    train(config, folder, tmp_path / "run", resume=True)
    assert read_toml(tmp_path / "run/config.toml").train.batch_size == chosen


def test_auto_takes_what_is_worth_it_where_all_fits_and_leaves_the_generators_alone(folder, tmp_path):
    before = torch.get_rng_state()
    config = tiny(train={"batch_size": "auto", "grad_accumulation": 2, "steps": 1, "previews": 0})
    train(config, folder, tmp_path / "run")
    assert read_toml(tmp_path / "run/config.toml").train.batch_size == 2 * compute.WORTH["cpu"]
    assert torch.equal(before, torch.get_rng_state())


def test_a_config_that_asks_for_terabytes_is_refused_by_counting(folder, tmp_path):
    config = tiny(model={"channels": 2048, "multipliers": (1, 64)})
    with pytest.raises(ResourceError, match=r"the net needs \d+\.\d GiB .*--model\.channels \(now 2048\)"):
        train(config, folder, tmp_path / "run")
    with pytest.raises(UsageError, match="batch_size"):
        tiny().changed("train", batch_size=10**12)


def test_counting_is_what_training_takes():
    """The count of parameters against those of the net itself, times weights, gradients, two moments and the EMA."""
    from diffunet import build

    config = defaults.architecture(tiny(model={"dropout": 0.0}, train={"ema_every": 0}), torch.device("cpu"))
    parameters = sum(p.numel() for p in build.net(config).parameters())
    how = compute.choose("cpu", "fp32")
    one, two, three = (memory.training_bytes(config, how, batch) for batch in (1, 2, 3))
    assert three > two > one > 5 * 4 * parameters > one / 2
