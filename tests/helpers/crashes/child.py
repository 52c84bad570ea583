"""The process from which crashed runs are forked: it has imported everything and forks a child for every request.

So a crash costs a fraction of a second instead of the seconds that importing torch takes. The process itself computes
nothing, since torch's pool of threads would not outlive a fork. A request is a line of standard input, a JSON object
with "do", the name of a function below, and its arguments; with "fault", faults.c watches the child. The reply, a line
of standard output, has the signal that ended the child, its output, and what the function returned.
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
from diffunet.training import checkpoint, saving


def train(
    *, config: dict[str, Any], data: str, run: str, resume: bool, stop: int | None = None, beside: bool = False
) -> dict[str, Any]:
    """Train; return the exit code and the message that the command ends with.

    `stop` asks to end with that step, and `beside` lets a thread write checkpoints, as on a GPU.
    """
    if beside:
        saving.beside = lambda how, size: True
    on_step = None if stop is None else lambda progress: progress.step < stop - 1  # takes effect after the next step
    try:
        diffunet.train(diffunet.Config.model_validate(config), data, run, resume=resume, on_step=on_step)
    except diffunet.Error as error:
        return {"code": error.exit_code, "message": str(error)}
    return {"code": 0, "message": ""}


def finish(*, step: int, **options: Any) -> dict[str, Any]:
    """Train, and return the same with the `outcome` of `step` where it went well."""
    ended = train(**options)
    return ended | ({"outcome": outcome(Path(options["run"]), step)} if ended["code"] == 0 else {})


def outcome(run: Path, step: int) -> dict[str, Any]:
    """Return digests of all that two equal runs have in common bit for bit: tensors, plain state, and a picture."""
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
    """Return the sha256 over the names, types, shapes and bytes of the tensors in a file."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(storage.read_tensors(path)[0].items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def main(*, words: list[str]) -> dict[str, Any]:
    """Run the `diffunet` command, and return its exit code."""
    try:
        diffunet.commands.cli.main(words)
    except SystemExit as ended:
        return {"code": ended.code}
    raise AssertionError("the command did not exit")


def child(request: dict[str, Any], reply: int, output: int) -> None:
    """Answer a request in the forked process and end it.

    Args:
        request: see the module.
        reply, output: descriptors to write the answer, and standard output and error, to.
    """
    answer: dict[str, Any] = {}
    try:
        signal.alarm(300)  # ends it where it hangs
        os.dup2(output, 1)
        os.dup2(output, 2)
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
    """Import the modules that a child had to import, so that later children need not."""
    for name in modules:
        if name not in known:
            known.add(name)
            try:
                importlib.import_module(name)
            except ImportError:  # made at run time, in no file
                continue


def serve() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = set(sys.modules)
    for line in sys.stdin:
        request = json.loads(line)
        assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
        gc.collect()
        gc.freeze()
        output = os.memfd_create("output")
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            child(request, writing, output)
        os.close(writing)
        with os.fdopen(reading) as file:
            content = file.read()
        _, status = os.waitpid(pid, 0)
        result = json.loads(content) if content else {}
        learn(result.pop("modules", []), known)
        os.lseek(output, 0, os.SEEK_SET)
        with os.fdopen(output, errors="replace") as file:
            result["output"] = file.read()
        print(json.dumps({"signal": os.WTERMSIG(status), **result}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
