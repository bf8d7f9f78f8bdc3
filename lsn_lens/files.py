"""Read and write files: atomic writes, safetensors with a JSON header, the released LAPE masks."""

import contextlib
import errno
import io
import json
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: a temporary file, flushed to disk, replaces `path`.

    Raises:
        OSError: The disk is full, or `path` cannot be written to; an earlier file is kept.
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
        with contextlib.suppress(OSError):  # if even this fails, the first error is reported
            temporary.unlink()
        do = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Give a place that can be written to"
        raise OSError(
            error.errno,
            f"{error.strerror or error} while writing {len(content):,} bytes. No partial file is left; "
            f"finished files are kept. {do} and run the same call again",
            str(path),
        ) from error


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write one safetensors file with a JSON header; returns its path, which ends in `.safetensors`."""
    path = _with_suffix(Path(path))
    own = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    write_bytes(path, save(own, metadata={"lsn_lens": json.dumps(header)}))
    return path


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def load_tensors(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `save_tensors` wrote; the path may omit `.safetensors`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A file of another kind, or a damaged file.
    """
    path = path if Path(path).is_file() and not _with_suffix(Path(path)).is_file() else _with_suffix(Path(path))
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
        ValueError: A file that is damaged or does not fit `labels` and `d_mlp`.
    """
    d_mlp = whole_number(d_mlp, "d_mlp", least=1)
    lists = _load_lists(Path(path))
    if len(lists) != len(labels):
        raise ValueError(f"{path} has {len(lists)} languages, but {len(labels)} were named: {list(labels)}.")
    if len({len(each) for each in lists}) != 1:
        raise ValueError(f"{path}: languages have different numbers of layers: {[len(each) for each in lists]}.")
    if not lists[0]:
        raise ValueError(f"{path} has no layers.")
    rows = [
        [unit_mask(given, d_mlp, f"{path}: {label}, layer {layer}") for layer, given in enumerate(layers)]
        for label, layers in zip(labels, lists, strict=True)
    ]
    return torch.stack([torch.stack(each) for each in rows])


def unit_mask(given: Any, width: int, where: str) -> Bool[Tensor, "unit"]:
    """One layer's units as a mask, from a mask or from indices; ambiguous values are refused.

    A bool vector of length `width` is a mask. So is a vector of `width` zeros and ones (more than two) of any type: as
    indices it would repeat a unit. Distinct integers in `0 ... width - 1` are indices; `[n, 1]`, a single number and an
    empty value (of any type) count as indices too.

    Args:
        given: A tensor, a list of numbers or a number.
        width: Units of the layer.
        where: Description of the value, for errors.

    Raises:
        ValueError: Neither a mask nor indices, or a mask of another width.
    """
    values = _as_tensor(given, where)
    whose, width_one = f"{where}: got {values.dtype} {list(values.shape)}", values.ndim == 2 and values.shape[1] == 1
    values = values.reshape(-1) if width_one or values.ndim == 0 else values
    if not values.numel():
        return torch.zeros(width, dtype=torch.bool)
    if values.ndim > 1 or values.dtype.is_complex:
        raise ValueError(f"{whose}, expected a list of indices, or a bool mask of {width} units.")
    is_bool, is_float = values.dtype == torch.bool, values.dtype.is_floating_point
    values = values if is_bool else values.double() if is_float else values.long()
    if is_float and bool(values.isnan().any()):
        raise ValueError(f"{whose} with NaN, neither indices nor a mask of {width} zeros and ones.")
    is_mask = len(values) == width and bool(((values == 0) | (values == 1)).all())
    if is_mask and (is_bool or width > 2):
        return values.bool()
    if is_bool:
        raise ValueError(f"{whose}: a bool mask, but not of d_mlp={width} units. Is this another model's file?")
    if is_float:
        raise ValueError(
            f"{whose}, neither indices, which are integers, nor a mask of {width} zeros and ones. "
            "Save what is meant: `weights > bar` or `indices.long()`."
        )
    return _from_indices(values, width, where)


def _from_indices(index: Tensor, width: int, where: str) -> Tensor:
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= width:
        raise ValueError(
            f"{where} has indices from {low} to {high}, but d_mlp is {width}. Is this another model's file?"
        )
    mask = torch.zeros(width, dtype=torch.bool)
    mask[index] = True
    if int(mask.sum()) < len(index):
        doubt = f" If it is a mask: it has {len(index)} values, not {width}." if high <= 1 else ""
        raise ValueError(
            f"{where} has {len(index)} indices, but only {int(mask.sum())} different ones; expected each once.{doubt}"
        )
    return mask


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _as_tensor(given: Any, where: str) -> Tensor:
    """A plain tensor of numbers only, without rounding."""
    if isinstance(given, list | tuple) and 0 < sum(map(_is_truth, given)) < len(given):
        raise ValueError(f"{where}: truth values and numbers are mixed: {str(given)[:60]}. Give one or the other.")
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{where}: got {type(given).__name__} {str(given)[:60]}, expected indices or a bool mask ({error})."
        ) from error
    if values.layout != torch.strided or values.is_quantized or values.is_meta:
        raise ValueError(f"{where}: got a tensor of {values.layout}, expected a plain one: save `tensor.to_dense()`.")
    return values.detach().cpu()


def _load_lists(path: Path) -> list[Any]:
    """The nested lists of a `.pth`."""
    lists = load_torch(path)
    if not isinstance(lists, list | tuple) or not all(isinstance(each, list | tuple) for each in lists):
        raise ValueError(
            f"{path}: expected a list of languages, each a list of layers of indices, got {_kinds(lists)}. One mask "
            '[language, layer, unit] of bool is a set already: NeuronSet(languages, {"mlp": mask}).'
        )
    return list(lists)


def load_torch(path: Path | str) -> Any:
    """The content of a file of `torch.save`; only tensors, plain numbers, texts and their containers are unpickled.

    Raises:
        ValueError: An empty or damaged file, or one with other objects, which could run code.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file: fetch it with `git lfs pull`.")
    if not head:
        raise ValueError(f"{path} is empty: fetch or write it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many classes, and torch's advise to load unsafely
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} holds {foreign[1]}: objects other than tensors, numbers and lists are not read, since reading "
                "them can run code. Save tensors instead, for example torch.from_numpy(array)."
            ) from None
        raise ValueError(
            f"{path} is cut off, damaged or no file of torch.save (it begins with {head[:12]!r}). Fetch it again."
        ) from None


def _kinds(given: Any) -> str:
    inside = sorted({type(each).__name__ for each in given}) if isinstance(given, list | tuple) else []
    return type(given).__name__ + (f" of {', '.join(inside)}" if inside else "")


def whole_number(given: Any, name: str, least: int = 0) -> int:
    """An integer of at least `least`; truth values and numbers that need rounding are refused.

    Raises:
        ValueError: Another value, or an integer below `least`.
    """
    if not isinstance(given, bool) and hasattr(type(given), "__index__"):
        with contextlib.suppress(TypeError, ValueError):  # an array of several numbers has the method too
            number = operator.index(given)
            if number >= least:
                return number
    raise ValueError(f"{name}={given!r}: expected a whole number of {least} or more.")


def labels_of(given: Any) -> tuple[str, ...]:
    """Language labels as a tuple.

    Raises:
        ValueError: One string, a set (which has no order), labels that are not strings, or a repeated label.
    """
    if isinstance(given, str | bytes):
        raise ValueError(f"languages={given!r} is one string: give a list, [{given!r}].")
    if isinstance(given, set | frozenset) or not isinstance(given, Iterable):
        raise ValueError(f"languages={given!r}: expected a list of labels, in the order of the masks.")
    labels = tuple(given)
    if not all(isinstance(each, str) for each in labels):
        raise ValueError(f"languages={list(labels)}: expected strings. (In YAML, quote `no` and `on`.)")
    if len(set(labels)) < len(labels):
        raise ValueError(f"a language is named twice: {list(labels)}.")
    return tuple(map(str, labels))
