"""Files of a shard: sums, and values of single documents, each written whole or not at all."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lsn_lens.files import write_bytes

TOKENS = "tokens"  # the key of the number of tokens per layer
DOCUMENTS = "documents"  # the key of the number of documents, in the layout "documents"
CONSTANTS = "constants.safetensors"
LENGTH = "length"  # the key of the number of tokens per document
REDO = "Call collect with the arguments of the run: it redoes that shard."


def row_key(key: str, layer: int) -> str:
    """The key of a document value in one layer."""
    return f"{key}@{layer}"


def checksum(sums: Mapping[str, Tensor]) -> str:
    """A hash over the names, types, shapes and bytes of the tensors."""
    digest = hashlib.sha256()
    for key in sorted(sums):
        value = sums[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def write_shard(path: Path, sums: Mapping[str, Tensor], documents: Path | None = None) -> None:
    """Write one shard's sums with their checksum and the hash of the shard's file of document values."""
    metadata = {"checksum": checksum(sums)} | ({"documents": _file_hash(documents)} if documents else {})
    write_bytes(path, save(dict(sums), metadata=metadata))


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_finished(path: Path, documents: Path | None) -> bool:
    """Whether a shard's sums, and its document values if it has any, are complete on disk."""
    if read_shard(path) is None:
        return False
    if documents is None:
        return True
    with safe_open(str(path), framework="pt") as file:
        stored = (file.metadata() or {}).get("documents")
    return documents.is_file() and stored == _file_hash(documents)


def read_shard(path: Path) -> dict[str, Tensor] | None:
    """A shard's sums; None if the file is missing, truncated or altered."""
    try:
        with safe_open(str(path), framework="pt") as file:
            sums = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            stored = (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    return sums if stored == checksum(sums) else None


def shard_path(folder: Path, name: str) -> Path:
    """The path of a shard in a run's folder."""
    return folder / "shards" / f"{name}.safetensors"


def documents_path(folder: Path, name: str) -> Path:
    """The path of a shard's document values in a run's folder."""
    return folder / "documents" / f"{name}.safetensors"


@dataclass(frozen=True)
class Layered(Mapping[str, Tensor]):
    """One shard whose tensors were collected into several files; a tensor is read on access."""

    paths: tuple[Path, ...]

    def __getitem__(self, name: str) -> Tensor:
        for path in self.paths:
            with safe_open(str(path), framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 (not a dict)
                    return file.get_tensor(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        names: dict[str, None] = {}
        for path in self.paths:
            with contextlib.suppress(OSError, SafetensorError), safe_open(str(path), framework="pt") as file:
                names |= dict.fromkeys(file.keys())
        return iter(names)

    def check(self) -> None:
        """Read every file to its end, to verify it.

        Raises:
            ValueError: A missing or damaged file.
        """
        for path in self.paths:
            if read_shard(path) is None:
                raise ValueError(f"{path} is missing or damaged. {REDO}")

    def __len__(self) -> int:
        return sum(1 for _ in self)


def layered(paths: list[Path]) -> Path | Layered:
    """The shard in these files: the path itself if there is one file."""
    return paths[0] if len(paths) == 1 else Layered(tuple(paths))
