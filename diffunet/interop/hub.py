"""Models on the Hugging Face hub (huggingface.co) by their names there, owner/name: download and upload.

The package huggingface_hub does the work. It also decides who may see what (`hf auth login`, or HF_TOKEN), where
downloads are kept (HF_HOME), which hub is asked (HF_ENDPOINT) and whether any is (HF_HUB_OFFLINE=1). Its name imports
quickly, and its modules slowly (errors.py brings the HTTP library), so only the functions that use these import them.
"""

import contextlib
import errno
import functools
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from diffunet import storage
from diffunet.errors import CheckpointError, Error, ResourceError, UsageError
from diffunet.interop import diffusers_weights

TIMEOUT = 5.0
"""Seconds after which a hub that does not answer is taken to be out of reach."""

PICTURE = "samples.png"
"""The image in a repository that its card shows."""

ADDRESS = "https://huggingface.co/"
"""The beginning of the web address of a model; its name follows."""

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?!.*--|.*\.\.|.*\.git$){_PART}/{_PART}")

_TEXTS = ("model_index.json", "scheduler/scheduler_config.json", "scheduler_config.json", "diffunet.json")
_PART_OF_WEIGHTS = re.compile(r".+-\d+-of-\d+\.safetensors")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def is_name(text: str) -> bool:
    """Return whether `text` is a name or web address on the hub, and no path: neither it nor its owner exists here."""
    text = text.removeprefix(ADDRESS)
    return bool(_NAME.fullmatch(text)) and not Path(text).exists() and not Path(text).parent.exists()


def check_name(text: str) -> None:
    """Raise UsageError for a name that no repository of the hub can have."""
    if not _NAME.fullmatch(text):
        raise UsageError(f"{text} is not a name on the hub: owner/name, of letters, digits and single - _ .")


def pull(name: str) -> Path:
    """Download the model `name`, unless it was before, and return the folder that it is kept in.

    Only needed files are downloaded: the config and the weights of one of our models; the JSON files and the weights of
    the UNet of a diffusers repository, the first of `diffusers_weights.FILES` that it has. The weights, which may be
    large, come after the config has shown that the net can be used. Where the hub cannot be reached, an earlier
    download is taken.

    Raises:
        CheckpointError: the model does not exist, may not be read, or cannot be used, or the hub cannot be reached.
        ResourceError: the disk has no room for it.
    """
    from huggingface_hub.utils.tqdm import tqdm

    name = name.removeprefix(ADDRESS)
    with _explained(name, _not_pulled):
        try:  # snapshot_download has no timeout for the first request, and would wait for a silent hub for ever
            info = huggingface_hub.HfApi().model_info(name, timeout=TIMEOUT)
        except Exception as error:
            if _answer(error)[0] < 500 or (kept := _kept(name)) is None:
                raise
            return kept
        needed = _needed(name, [file.rfilename for file in info.siblings or []])
        small = [file for file in needed if file.endswith(".json")]
        # Its bars show without a terminal too, and even when nothing is downloaded.
        options: dict[str, Any] = {"tqdm_class": functools.partial(tqdm, disable=True)}
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=small, etag_timeout=TIMEOUT, **options))
        _refuse_others(name, folder / small[0])
        for weights in _weights(name, folder, needed):
            huggingface_hub.hf_hub_download(name, weights, revision=folder.name, etag_timeout=TIMEOUT)
        return folder


def push(folder: Path, name: str, card: str, private: bool = False, picture: Path | None = None) -> str:
    """Upload a model folder in one commit, and return the web address of its repository, which is made if needed.

    Args:
        folder: a model folder, see `storage`; only its config and its weights are uploaded.
        card: the text of its README.md; an earlier one is replaced, and stays in the history.
        private: whether a new repository is made that nobody else sees.
        picture: the image that the card shows as `PICTURE`.

    Raises:
        UsageError: the name is impossible, no login may write there, or `private` is asked for and it is public.
        ResourceError: the hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import errors

    check_name(name)
    if huggingface_hub.get_token() is None:
        raise UsageError(f"{name} cannot be written to without a login: run hf auth login, or set HF_TOKEN")
    content: dict[str, Any] = {file: folder / file for file in (storage.CONFIG, storage.WEIGHTS)}
    content |= {"README.md": card.encode(), **({PICTURE: picture} if picture else {})}
    api = huggingface_hub.HfApi()
    with _explained(name, _not_pushed):
        try:
            info = api.model_info(name, timeout=TIMEOUT)
            if private and not info.private:
                raise UsageError(f"{name} is there and public: make it private on its page, or leave out --private")
        except errors.RepositoryNotFoundError:
            api.create_repo(name, private=private)
        # Not upload_folder, which may split an upload into several commits.
        operations = [huggingface_hub.CommitOperationAdd(path, source) for path, source in content.items()]
        api.create_commit(name, operations, commit_message="A model of diffunet")
    return f"{api.endpoint}/{name}"


@contextlib.contextmanager
def _explained(name: str, explain: Callable[[str, Exception], Error]) -> Iterator[None]:
    """Raise what `explain` makes of an error of the hub; silence warnings of huggingface_hub, which say the same."""
    level = (log := logging.getLogger("huggingface_hub")).level
    log.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:
        if isinstance(error, Error) or not _answer(error)[0]:
            raise
        raise explain(name, error) from None
    finally:
        log.setLevel(level)


def _needed(name: str, existing: Iterable[str]) -> list[str]:
    """Return which of the `existing` files of a repository are needed; the config is first, the weights are last.

    Weights in parts are the index that names them, and then all that are there.
    """
    existing = set(existing)
    if {storage.CONFIG, storage.WEIGHTS} <= existing:
        return [storage.CONFIG, storage.WEIGHTS]
    for folder, file in itertools.product(("unet/", ""), diffusers_weights.FILES):
        config, weights = f"{folder}config.json", f"{folder}{file}"
        if {config, weights} <= existing:
            texts = [text for text in _TEXTS if text in existing]
            there = [path for path in existing if path.rpartition("/")[0] == folder.rstrip("/")]
            parts = filter(_PART_OF_WEIGHTS.fullmatch, there if file.endswith(".json") else ())
            return [config, *texts, weights, *sorted(parts)]
    wanted = f"neither {storage.CONFIG} with {storage.WEIGHTS} nor config.json with {diffusers_weights.FILE}"
    raise CheckpointError(f"{name} on the hub is no model that can be used here: it has {wanted}")


def _weights(name: str, folder: Path, needed: Iterable[str]) -> list[str]:
    """Return the files with weights among the `needed` ones, of which `folder` has those that are JSON already."""
    paths = [*needed]
    index = next((path for path in paths if ".index." in path), None)
    if index is None:
        return [path for path in paths if not path.endswith(".json")]
    named = [path.relative_to(folder).as_posix() for path in diffusers_weights.parts(folder / index)]
    if missing := sorted({*named} - {*paths}):
        raise CheckpointError(f"{name} on the hub is incomplete: {index} names {missing[0]}, which is not there")
    return named


def _refuse_others(name: str, config: Path) -> None:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        is_ours, kind = content.get("format") == storage.FORMAT, content.get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{name} on the hub has a config that cannot be read: {config}") from None
    if not is_ours and kind != "UNet2DModel":
        what = f"its net is a {kind}" if isinstance(kind, str) else "its config is of another project"
        raise CheckpointError(f"{name} on the hub is no model that can be used here: {what}, not a UNet2DModel or ours")


def _kept(name: str) -> Path | None:
    """Return the folder of an earlier download, or None where there is none that has all needed files."""
    try:
        # Without patterns it would ask for all files that the repository has.
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=[]))
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        _weights(name, folder, _needed(name, there))
    except (FileNotFoundError, CheckpointError):  # huggingface_hub's LocalEntryNotFoundError is one
        return None
    return folder


def _answer(error: Exception) -> tuple[int, str]:
    """Return an HTTP status, 503 where nothing answered and 0 for an error of anything but the hub, and the reason."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return 503, "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code, f"it answers {error.response.status_code}"
    # The HTTP library depends on the version, so its HTTPError is taken from there. hf_xet raises RuntimeError.
    known = (OSError, errors.HTTPError, RuntimeError)  # type: ignore[attr-defined]
    of_hub = isinstance(error, known) or type(error).__module__.startswith("huggingface_hub")
    return 503 if of_hub else 0, str(error)[:200] or type(error).__name__


def _not_pulled(name: str, error: Exception) -> Error:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what snapshot_download met before it looked for an earlier download
    (status, reason), hub = _answer(error), constants.ENDPOINT
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        place = constants.HF_HUB_CACHE
        return ResourceError(f"{name} cannot be kept in {place}: {error.strerror}; make room, or set HF_HOME")
    words = f"is no folder here, and the hub {hub} could not be reached ({reason}): check the network, or give a "
    words += "folder that is on this machine"
    if isinstance(error, errors.GatedRepoError):
        words = f"is gated: ask for access on {hub}/{name} and log in: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        words = f"is neither a folder here nor a public model of {hub}; if it is private, log in: hf auth login"
    return CheckpointError(f"{name} {words}")


def _not_pushed(name: str, error: Exception) -> Error:
    status, reason = _answer(error)
    if status in (401, 403):
        return UsageError(f"your login may not write to {name} on the hub: run hf auth login with a token that may")
    lost = f"the hub {constants.ENDPOINT} could not be reached ({reason}): check the network"
    return ResourceError(f"the hub did not take {name}: {str(error)[:300]}" if status < 500 else lost)
