"""Weights in the files of `torch.save`, read without running anything that is pickled in them."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffunet import compute, storage
from diffunet.errors import CheckpointError, ResourceError


def read_pickled(path: Path, *, legacy: bool = False) -> dict[str, Tensor]:
    """Return the state dict in a file of `torch.save`, on the CPU, mapped and not yet read where the format allows it.

    A shape is only a claim of the file: call `refuse_hollow` before memory of that size is allocated. With `legacy` the
    format of torch before 1.6 is read too, which is not a zip archive and is read at once.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds anything but a flat dict of tensors.
        ResourceError: it does not fit into memory.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    # A small compressed file could unpack to one of any size.
                    raise CheckpointError(f"{path} cannot be read: torch does not compress its files")
                if archive.testzip():
                    raise CheckpointError(f"{path} is damaged (a checksum differs): get it again")
        elif not legacy and path.is_file():
            raise CheckpointError(f"{path} cannot be read: it is damaged, or of a torch before 1.6")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        if compute.is_out_of_memory(error):
            raise out_of_memory(path) from None
        what = "it is cut short, not of torch, or holds more than tensors, which is never run"
        raise CheckpointError(f"{path} cannot be read: {what}") from None
    pairs = content.items() if isinstance(content, dict) else [(None, content)]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
        raise CheckpointError(f"{path} cannot be read: it is not a plain state dict of tensors")
    return dict(content)


def refuse_hollow(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError where the file at `path` does not hold all values of its tensors.

    In a file one number can have any shape, as `Tensor.expand` gives it, and a tensor can be sparse or on "meta".
    """
    dense = all(value.layout == torch.strided and value.device.type == "cpu" for value in tensors.values())
    if not dense or sum(value.nbytes for value in tensors.values()) > path.stat().st_size:
        raise CheckpointError(f"{path} cannot be read: it does not hold all values of its tensors")


def out_of_memory(path: Path) -> ResourceError:
    """Return the error for weights that do not fit into memory."""
    return ResourceError(f"out of memory: {path} has {storage.size(path.stat().st_size)}")
