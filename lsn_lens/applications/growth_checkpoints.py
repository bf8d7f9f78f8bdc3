"""The checkpoints of one training: where they are, and whether they can be compared."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lsn_lens.labels import check_label
from lsn_lens.model.checkpoints import read_config, read_tokenizer, source_of
from lsn_lens.refusal import check_kind
from lsn_lens.text.documents import LanguageCorpus

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
SAMPLES = 3  # documents per language that all tokenizers must cut alike


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a training.

    Attributes:
        source: A local folder, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
    """

    source: str
    revision: str | None = None

    def state(self) -> dict[str, Any]:
        """What says whether the checkpoint is still the same, without reading its weights."""
        folder = Path(source_of(self.source))
        files = {
            each.name: [each.stat().st_size, each.stat().st_mtime_ns]
            for each in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if each.suffix in (".safetensors", ".bin", ".json")
        }
        return {"source": self.source, "revision": self.revision, "files": files}


def checkpoints_in(folder: Path | str) -> dict[str, Checkpoint]:
    """The checkpoints in the subfolders of a folder, by the last number in their names.

    Returns:
        Name of the subfolder -> checkpoint, in order of the numbers (names without a number first, by name).

    Raises:
        ValueError: No subfolder has a model, or one has weights without a configuration.
    """
    found = [each.parent for each in Path(folder).glob("*/config.json")]
    weights = {each.parent for kind in WEIGHTS for each in Path(folder).glob(f"*/{kind}")}
    if lacking := sorted(each.name for each in weights - set(found)):
        raise ValueError(
            f"{str(folder)!r}: {lacking} have weights, but no config.json. Add the file, or take the folders away."
        )
    if not found:
        raise ValueError(f"{str(folder)!r} has no subfolder with a config.json: expected one per checkpoint.")
    return {each.name: Checkpoint(str(each)) for each in sorted(found, key=_order)}


def revisions_of(source: str, revisions: Any) -> dict[str, Checkpoint]:
    """Checkpoints that are revisions of one Hub id, by the revision's name."""
    return {str(each): Checkpoint(source, str(each)) for each in revisions}


def check_checkpoints(
    checkpoints: Mapping[str, Any], corpora: Mapping[str, LanguageCorpus], options: Mapping[str, Any] | None = None
) -> tuple[dict[str, Checkpoint], Any, int]:
    """Require checkpoints of one training, by their configurations and tokenizers; no weights are read.

    Args:
        checkpoints: Name -> `Checkpoint`, local folder or Hub id.
        corpora: Texts that all tokenizers must cut alike.
        options: Options of `load_model`.

    Returns:
        The checkpoints, the tokenizer of the first, and the number of rows of its embedding.

    Raises:
        ValueError: Fewer than two checkpoints, a name that cannot be a folder's, one place twice, other shapes, or
            another tokenizer.
    """
    check_kind("checkpoints", checkpoints, Mapping, "a mapping of name to folder, as checkpoints_in(folder) gives it")
    given = {check_label(name, "checkpoints"): _checkpoint(each) for name, each in checkpoints.items()}
    if len(given) < 2:
        raise ValueError(f"checkpoints={list(given)}: growth needs two or more checkpoints of one training.")
    if strange := [name for name in given if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name)]:
        raise ValueError(f"checkpoints={strange}: these names cannot be folders. Use letters, digits, '.', '-', '_'.")
    if len({(Path(each.source).resolve(), each.revision) for each in given.values()}) < len(given):
        raise ValueError(f"checkpoints={given}: one checkpoint is there twice.")
    texts = {label: list(islice(each.hold_out, SAMPLES)) for label, each in corpora.items()}
    first, tokenizer, shapes = next(iter(given)), None, {}
    for name, each in given.items():
        where = dict(options or {}) | ({"revision": each.revision} if each.revision else {})
        source = source_of(each.source)
        now, cut = _shapes(read_config(source, where)), read_tokenizer(source, where)
        shapes, tokenizer = (shapes or now), (cut if tokenizer is None else tokenizer)
        if odd := sorted(k for k in shapes.keys() | now.keys() if shapes.get(k) != now.get(k)):
            raise ValueError(
                f"checkpoint {name!r} has other shapes than {first!r}: {odd[0]} is {now.get(odd[0])}, not "
                f"{shapes.get(odd[0])} ({len(odd)} weights differ). Expected checkpoints of one training."
            )
        if (why := _other_tokenizer(tokenizer, cut, texts)) is not None:
            raise ValueError(
                f"checkpoint {name!r} has another tokenizer than {first!r}: {why}. Losses per token and units would "
                "not compare; expected checkpoints of one training."
            )
    return given, tokenizer, shapes[""][0]


def _checkpoint(given: Any) -> Checkpoint:
    if not isinstance(given, Checkpoint | str | Path):
        raise ValueError(
            f"a checkpoint is a {type(given).__name__}: expected a local folder, a Hub id, or a "
            "Checkpoint(source, revision)."
        )
    return given if isinstance(given, Checkpoint) else Checkpoint(str(given))


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all weights; that of the embedding also under ""."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    return shapes | {"": tuple(model.get_input_embeddings().weight.shape)}


def _other_tokenizer(one: Any, other: Any, texts: Mapping[str, list[str]]) -> str | None:
    """Why two tokenizers are not the same; None if they are."""
    vocabularies = [each.get_vocab() for each in (one, other)]
    if vocabularies[0] != vocabularies[1]:
        moved = sum(vocabularies[1].get(token) != number for token, number in vocabularies[0].items())
        return f"{moved} of {len(vocabularies[0])} tokens have another number or none"
    if one.bos_token_id != other.bos_token_id or one.eos_token_id != other.eos_token_id:
        return "other BOS or EOS tokens"
    for label, each in texts.items():
        if any(one(text)["input_ids"] != other(text)["input_ids"] for text in each):
            return f"it cuts text of {label} otherwise"
    return None


def _order(folder: Path) -> tuple[int, str]:
    numbers = re.findall(r"\d+", folder.name)
    return (int(numbers[-1]) if numbers else -1), folder.name
