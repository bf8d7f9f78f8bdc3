"""What files hold: whole or not at all, safetensors with a JSON header, the released LAPE masks."""

import contextlib
import errno
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: a temporary file, flushed to disk, takes the place of `path`.

    Raises:
        OSError: The disk is full, or the place cannot be written to; what was there before is kept.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where even this fails, the first error is the one to tell
            temporary.unlink()
        do = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Give a place that can be written to"
        raise OSError(
            error.errno,
            f"{error.strerror or error} while writing {len(content):,} bytes. Nothing half written is left; "
            f"what was finished before is kept. {do} and run the same call again",
            str(path),
        ) from error


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write one safetensors file with a JSON header; returns its path, which ends in `.safetensors`."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    own = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    write_bytes(path, save(own, metadata={"lsn_lens": json.dumps(header)}))
    return path


def load_tensors(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        ValueError: A file of another kind, or one that is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("lsn_lens", "{}"))
            if header.get("kind") != kind:
                raise ValueError(f"{path} holds {header.get('kind', 'something else')!r}, expected {kind!r}.")
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}).") from error


def write_lape_masks(path: Path | str, mask: Bool[Tensor, "language layer unit"]) -> None:
    """Write `list[language] of list[layer] of LongTensor`."""
    buffer = io.BytesIO()
    torch.save([[layer.nonzero()[:, 0] for layer in each] for each in mask], buffer)
    write_bytes(Path(path), buffer.getvalue())


def read_lape_masks(path: Path | str, labels: Sequence[str], d_mlp: int) -> Bool[Tensor, "language layer unit"]:
    """Read a released LAPE file, which names no languages; see `NeuronSet.from_lape_file`.

    Raises:
        ValueError: Another number of languages than the file has, layers that differ, an index beyond `d_mlp`.
    """
    lists = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(lists, list) or not all(isinstance(each, list) for each in lists):
        raise ValueError(f"{path}: expected a list of languages, each a list of layers of indices.")
    if len(lists) != len(labels):
        raise ValueError(f"{path} has {len(lists)} languages, but {len(labels)} were named: {list(labels)}.")
    if len({len(each) for each in lists}) != 1:
        raise ValueError(f"{path}: languages have different numbers of layers: {[len(each) for each in lists]}.")
    mask = torch.zeros(len(lists), len(lists[0]), d_mlp, dtype=torch.bool)
    for language, layers in enumerate(lists):
        for layer, indices in enumerate(layers):
            index = torch.as_tensor(indices, dtype=torch.long)
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < d_mlp:
                raise ValueError(
                    f"{path}: {labels[language]}, layer {layer} has indices from {int(index.min())} to "
                    f"{int(index.max())}, but d_mlp is {d_mlp}. Is this another model's file?"
                )
            mask[language, layer, index] = True
    return mask
