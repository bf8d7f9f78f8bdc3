"""GGUF files: which file is meant, whether it can be read here, and what its weights were rounded to."""

import contextlib
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

EXTRA = "pip install 'lsn-lens[gguf]' (or: pip install gguf)"
PLAIN = {"F16", "F32", "F64", "BF16"}  # types of tensors that are not quantised


def located(name: str | Path, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The source and the options for transformers: a local GGUF file is its folder and the option `gguf_file`.

    Raises:
        ValueError: A GGUF file that is not there, or one given twice.
    """
    path = Path(name)
    if path.suffix.lower() != ".gguf" or path.is_dir():
        return str(name), dict(options)
    if options.get("gguf_file"):
        raise ValueError(f"{str(name)!r} and gguf_file={options['gguf_file']!r} both name a GGUF file: give one.")
    if not path.is_file():
        raise ValueError(
            f"{str(name)!r}: there is no such file. A GGUF file of a Hub repository is named apart: "
            f"load_model('owner/model', gguf_file={path.name!r})."
        )
    return str(path.parent), {**options, "gguf_file": path.name}


def named(name: str | Path, options: Mapping[str, Any]) -> str | Path:
    """What `load_model` was given, with the GGUF file of a folder or repository."""
    return Path(name) / options["gguf_file"] if options.get("gguf_file") else name


def check_readable(source: str, options: Mapping[str, Any]) -> None:
    """Require the package that reads GGUF files, if one is to be read; and that nothing else is asked of the weights.

    Raises:
        ValueError: The package is not installed, or the weights are to be quantised again.
    """
    if not options.get("gguf_file"):
        return
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{source!r}: to read {options['gguf_file']!r}, the package gguf is missing. {EXTRA}.")
    if options.get("quantization_config") is not None:
        raise ValueError(f"{source!r}: weights of a GGUF file are dequantised; quantization_config cannot be given.")


@contextlib.contextmanager
def reading(options: Mapping[str, Any]) -> Iterator[None]:
    """Parse a GGUF file once: transformers does it for the configuration, the tokenizer and the weights.

    The vocabulary makes it slow. No kernels of ggml are fetched to replace the model's own layers.
    """
    if not options.get("gguf_file"):
        yield
        return
    import gguf

    with (
        mock.patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        mock.patch("transformers.integrations.gguf.kernels.kernelize_ggml_layers", lambda model: None),
    ):
        yield


def dequantised(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which transformers makes ordinary weights of a GGUF file."""
    if not options.get("gguf_file"):
        return dict(options)
    from transformers import GgufConfig

    return {**options, "quantization_config": GgufConfig(dequantize=True)}


def weights_of(source: str, options: Mapping[str, Any], place: Mapping[str, Any]) -> str | None:
    """What the weights of a GGUF file are, in words: its type, and the share of weights in each type of tensor."""
    if not options.get("gguf_file"):
        return None
    import gguf
    from transformers.utils import cached_file

    file: Any = cached_file(source, options["gguf_file"], **{**place, "gguf_file": None})
    reader = gguf.GGUFReader(file)
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += prod(tensor.shape.tolist())
    field = reader.get_field("general.file_type")
    kind = gguf.LlamaFileType(field.contents()).name.split("_", 1)[1] if field else "of no stated type"
    shares = ", ".join(f"{size / sizes.total():.0%} {name}" for name, size in sizes.most_common())
    return f"GGUF {kind} ({shares}){'' if set(sizes) <= PLAIN else ', dequantised'}"
