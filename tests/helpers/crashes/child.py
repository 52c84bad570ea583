"""A process that has imported everything and computed nothing; it forks a child for each line of standard input.

So a crash costs a fraction of a second instead of the seconds that importing torch takes. Nothing is computed here, as
a pool of threads would not outlive a fork. A request is a JSON object with "do", the name of a function below, and its
arguments; with "fault", the child is watched by faults.c. The reply has the signal that ended the child, and what it
wrote and returned.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch

import diffunet
import diffunet.commands.cli
from diffunet import storage
from diffunet.training import checkpoint


def train(*, config: dict[str, Any], data: str, run: str, resume: bool, stop: int | None = None) -> dict[str, Any]:
    """Train; how it ended, as an exit code and the one line of the command. `stop` asks for a stop with that step."""
    on_step = None if stop is None else lambda progress: progress.step < stop - 1  # takes effect after the next step
    try:
        diffunet.train(diffunet.Config.model_validate(config), data, run, resume=resume, on_step=on_step)
    except diffunet.Error as error:
        return {"code": error.exit_code, "message": str(error)}
    return {"code": 0, "message": ""}


def finish(*, step: int, **options: Any) -> dict[str, Any]:
    """Train, and digests of what the run then holds for `step`: see `outcome`."""
    ended = train(**options)
    return ended | ({"outcome": outcome(Path(options["run"]), step)} if ended["code"] == 0 else {})


def outcome(run: Path, step: int) -> dict[str, Any]:
    """All that two equal runs have in common, bit for bit: tensors, the plain state, and a picture."""
    folder = checkpoint.folder_of(run, step)
    assert checkpoint.problem(folder) is None
    state = json.loads((folder / "state.json").read_text())
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]  # each is whole
    picture = io.BytesIO()
    diffunet.load(run).sample(1, seed=3)[0].save(picture, "png")
    return {
        **{name: digest(folder / f"{name}.safetensors") for name in ("model", "ema", "optimizer", "power")},
        "averages": {path.name: digest(path) for path in sorted((run / "ema").iterdir())},
        "state": {name: state[name] for name in ("step", "counters", "index_hash")},
        "metrics": [[entry[name] for name in ("step", "loss", "grad_norm")] for entry in entries if "loss" in entry],
        "sampled from": digest(run / "model/model.safetensors"),
        "picture": hashlib.sha256(picture.getvalue()).hexdigest(),
    }


def digest(path: Path) -> str:
    """sha256 over the names, types, shapes and bytes of a file's tensors."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(storage.read_tensors(path)[0].items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def main(*, words: list[str]) -> dict[str, Any]:
    """The `diffunet` command."""
    try:
        diffunet.commands.cli.main(words)
    except SystemExit as ended:
        return {"code": ended.code}
    raise AssertionError("the command did not exit")


def child(request: dict[str, Any], reply: int, said: int) -> None:
    """Do what is asked, in the forked process, and write it to `reply`; never returns."""
    answer: dict[str, Any] = {}
    try:
        signal.alarm(300)  # bounds a hang
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(request.pop("environment", {}))
        if fault := request.pop("fault", None):
            library = ctypes.CDLL(fault.pop("library"))
            log = os.open(fault.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            at, action, error, kinds = (fault[name] for name in ("at", "action", "error", "kinds"))
            trouble = library.arm(
                os.fsencode(fault["root"]), log, ctypes.c_long(at), action, error, ctypes.c_uint(kinds)
            )
            if trouble:
                raise OSError(trouble, "the kernel refuses to watch")
        if limit := request.pop("file_size_limit", None):
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        answer = {"train": train, "finish": finish, "main": main}[request.pop("do")](**request)
        answer["modules"] = sorted(sys.modules)
    except BaseException:
        answer = {"code": 1, "message": traceback.format_exc()}
    finally:
        with os.fdopen(reply, "w") as file:
            json.dump(answer, file)
        os._exit(0)


def learn(modules: list[str], known: set[str]) -> None:
    """Import what a child had to import, so that the next ones need not."""
    for name in modules:
        if name not in known:
            known.add(name)
            try:
                importlib.import_module(name)
            except ImportError:  # made at run time, in no file
                continue


def serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = set(sys.modules)
    for line in sys.stdin:
        request = json.loads(line)
        assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
        gc.collect()
        gc.freeze()
        said = os.memfd_create("said")
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            child(request, writing, said)
        os.close(writing)
        with os.fdopen(reading) as file:
            content = file.read()
        _, status = os.waitpid(pid, 0)
        result = json.loads(content) if content else {}
        learn(result.pop("modules", []), known)
        os.lseek(said, 0, os.SEEK_SET)
        with os.fdopen(said, errors="replace") as file:
            result["said"] = file.read()
        print(json.dumps({"signal": os.WTERMSIG(status), **result}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
