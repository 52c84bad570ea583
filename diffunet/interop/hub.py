"""Models on the hub (huggingface.co), by their name there: owner/name.

Who may see what is the hub's business: `hf auth login` or HF_TOKEN. HF_HOME says where downloads are kept, HF_ENDPOINT
which hub, HF_HUB_OFFLINE=1 that it is not asked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from diffunet import storage
from diffunet.errors import CheckpointError, Error, ResourceError, UsageError

TIMEOUT = 5.0
"""Seconds after which a hub that does not answer is taken to be out of reach."""

PICTURE = "samples.png"
"""Of a repository: what its card shows."""

ADDRESS = "https://huggingface.co/"
"""Of a model, before its name."""

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(f"{_PART}/{_PART}")

_TEXTS = ("model_index.json", "scheduler/scheduler_config.json", "scheduler_config.json", "diffunet.json")
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Of a diffusers repository; the first of the weights that there is."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def is_name(text: str) -> bool:
    """Whether `text` is a name of the hub, owner/name (or its address), and not a path: neither it nor a folder "owner"
    is here."""
    text = text.removeprefix(ADDRESS)
    return _is_valid(text) and not Path(text).exists() and not Path(text).parent.exists()


def check_name(text: str) -> None:
    """Refuse what the hub has no room for.

    Raises:
        UsageError: it is not owner/name, of letters, digits, "-", "_" and ".".
    """
    if not _is_valid(text):
        raise UsageError(f"{text} is not a name on the hub: owner/name, of letters, digits and single - _ .")


def _is_valid(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and "--" not in text and ".." not in text and not text.endswith(".git")


def pull(name: str) -> Path:
    """The folder with the model `name`, downloaded, or from where an earlier download is kept.

    Only what is needed comes: of one of ours its config and weights, of a diffusers repository its JSON files and the
    weights of its UNet (safetensors where there are any). Before any weights come, the config has to be of such a net.
    Where the hub cannot be reached, what was downloaded before is taken.

    Raises:
        UsageError: huggingface_hub is not installed.
        CheckpointError: there is no such model, it may not be read, is none that can be used here, or the hub cannot
            be reached.
        ResourceError: the disk does not take it.
    """
    name = name.removeprefix(ADDRESS)
    library = _library(f"there is no folder {name}, and hub names need another package")
    try:
        with _quiet():
            try:
                info = library.HfApi().model_info(name, timeout=TIMEOUT)
            except Exception as error:
                kept = _kept(library, name) if _is_of_hub(library, error) and _unreachable(library, error) else None
                if kept is None:
                    raise
                return kept
            config, *others = _needed(name, [each.rfilename for each in info.siblings or []])
            found = Path(library.hf_hub_download(name, config, etag_timeout=TIMEOUT))
            _refuse_others(name, found)
            for each in others:
                library.hf_hub_download(name, each, etag_timeout=TIMEOUT)
            return found.parents[config.count("/")]
    except Exception as error:
        if isinstance(error, Error) or not _is_of_hub(library, error):
            raise
        raise _not_pulled(library, name, error) from None


def push(folder: Path, name: str, card: str, private: bool = False, picture: Path | None = None) -> str:
    """Upload a model folder in one commit, and make the repository where there is none.

    Args:
        folder: see `storage`; of what is in it only the config and the weights are uploaded.
        name: on the hub, owner/name.
        card: its README.md; one that is there is replaced, and stays in the history.
        private: of a new repository: nobody else sees it.
        picture: the `PICTURE` that the card shows.

    Returns:
        Its address.

    Raises:
        UsageError: a name that cannot be, no login, one that may not write there, `private` for a repository that is
            public, or huggingface_hub is not installed.
        ResourceError: the hub cannot be reached, or does not take it.
    """
    check_name(name)
    library = _library("the hub needs another package")
    if library.get_token() is None:
        raise UsageError(f"{name} cannot be written to without a login: run hf auth login, or set HF_TOKEN")
    content: dict[str, Any] = {each: folder / each for each in (storage.CONFIG, storage.WEIGHTS)}
    content["README.md"] = card.encode()
    if picture is not None:
        content[PICTURE] = picture
    api = library.HfApi()
    try:
        with _quiet():
            try:
                there = api.model_info(name, timeout=TIMEOUT)
                if private and not there.private:
                    raise UsageError(f"{name} is there and public: make it private on its page, or leave out --private")
            except library.errors.RepositoryNotFoundError:
                api.create_repo(name, private=private)
            operations = [library.CommitOperationAdd(at, source) for at, source in content.items()]
            api.create_commit(name, operations, commit_message="A model of diffunet")
            return f"{api.endpoint}/{name}"
    except Exception as error:
        if isinstance(error, Error) or not _is_of_hub(library, error):
            raise
        raise _not_pushed(library, name, error) from None


def _library(missing: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UsageError(f"{missing}: pip install 'diffunet[hub]'") from None
    return huggingface_hub


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of huggingface_hub: what matters of them is in our errors. Its progress bars, on a terminal, stay."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _needed(name: str, there: Iterable[str]) -> list[str]:
    """What is needed of the files of a repository; the net's config is first, the weights are last.

    Raises:
        CheckpointError: what is needed is not among them.
    """
    there = set(there)
    if {storage.CONFIG, storage.WEIGHTS} <= there:
        return [storage.CONFIG, storage.WEIGHTS]
    for folder in ("unet/", ""):
        for weights in _WEIGHTS:
            if {f"{folder}config.json", f"{folder}{weights}"} <= there:
                return [f"{folder}config.json", *(each for each in _TEXTS if each in there), f"{folder}{weights}"]
    raise CheckpointError(
        f"{name} on the hub is no model that can be used here: it has neither {storage.CONFIG} with {storage.WEIGHTS} "
        f"nor config.json with {_WEIGHTS[0]}"
    )


def _refuse_others(name: str, config: Path) -> None:
    """Refuse the net of another kind of model, of which the weights may be many gigabytes."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        of_ours, kind = content.get("format") == storage.FORMAT, content.get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{name} on the hub has a config that cannot be read: {config}") from None
    if not of_ours and kind != "UNet2DModel":
        what = f"its net is a {kind}" if isinstance(kind, str) else "its config is of another project"
        raise CheckpointError(f"{name} on the hub is no model that can be used here: {what}, not a UNet2DModel or ours")


def _kept(library: ModuleType, name: str) -> Path | None:
    """The folder of an earlier download, where all of it came."""
    for config in (storage.CONFIG, "unet/config.json"):
        found = library.try_to_load_from_cache(name, config)
        if isinstance(found, str):
            folder = Path(found).parents[config.count("/")]
            there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            with contextlib.suppress(CheckpointError):
                _needed(name, there)
                return folder
    return None


def _is_of_hub(library: ModuleType, error: Exception) -> bool:
    """Whether it comes from the disk, the network or huggingface_hub, whose HTTP library depends on its version."""
    known = (OSError, library.errors.HTTPError, RuntimeError)  # the last of hf_xet, which moves large files
    return isinstance(error, known) or type(error).__module__.startswith("huggingface_hub")


def _status(library: ModuleType, error: Exception) -> int | None:
    """What the hub answered, as HTTP says it; None where it did not."""
    return error.response.status_code if isinstance(error, library.errors.HfHubHTTPError) else None


def _unreachable(library: ModuleType, error: Exception) -> bool:
    status = _status(library, error)
    return status is None or status >= 500


def _reason(library: ModuleType, error: Exception) -> str:
    if isinstance(error, library.errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    status = _status(library, error)
    return f"it answers {status}" if status is not None else str(error)[:200] or type(error).__name__


def _not_pulled(library: ModuleType, name: str, error: Exception) -> Error:
    endpoint = library.constants.ENDPOINT
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        kept = library.constants.HF_HUB_CACHE
        return ResourceError(f"{name} cannot be kept in {kept}: {error.strerror}; make room, or set HF_HOME")
    if isinstance(error, library.errors.GatedRepoError):
        return CheckpointError(f"{name} is gated: ask for access on {endpoint}/{name} and log in: hf auth login")
    if isinstance(error, library.errors.RepositoryNotFoundError) or _status(library, error) in (401, 403):
        return CheckpointError(
            f"{name} is neither a folder here nor a public model of {endpoint}; if it is private, log in: hf auth login"
        )
    return CheckpointError(
        f"{name} is no folder here, and the hub {endpoint} could not be reached ({_reason(library, error)}): check the "
        "network, or give a folder that is on this machine"
    )


def _not_pushed(library: ModuleType, name: str, error: Exception) -> Error:
    if _status(library, error) in (401, 403):
        return UsageError(f"your login may not write to {name} on the hub: run hf auth login with a token that may")
    if not _unreachable(library, error):
        return ResourceError(f"the hub did not take {name}: {str(error)[:300]}")
    reason = _reason(library, error)
    return ResourceError(f"the hub {library.constants.ENDPOINT} could not be reached ({reason}): check the network")
