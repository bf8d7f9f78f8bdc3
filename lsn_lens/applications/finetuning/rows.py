"""Documents to rows of tokens for training."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lsn_lens.applications.finetuning.settings import Training
from lsn_lens.evaluation.scored import scored_tokens
from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.text.documents import Documents
from lsn_lens.text.plan import Layout, Plan
from lsn_lens.text.tokens import separator_id, tokenize

LONGEST = 512  # tokens per row, unless a length is given
IGNORED = -100  # what transformers never scores


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed rows of equal length.

    Attributes:
        ids: Tokens.
        labels: The same; `IGNORED` at the first position and at separators.
        documents: Number of documents.
        sha256: Hash of the text.
    """

    ids: Int[Tensor, "row pos"]
    labels: Int[Tensor, "row pos"]
    documents: int
    sha256: str

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[place], "labels": self.labels[place]}


def texts_of(documents: Any) -> Documents | list[str]:
    """Documents as they come, or as a list.

    Raises:
        ValueError: One text, a mapping, or something that is not text.
    """
    if isinstance(documents, Documents):
        return documents
    listed = list(documents) if isinstance(documents, Iterable) and not isinstance(documents, str | dict) else None
    if listed is None or not all(isinstance(each, str) for each in listed):
        raise ValueError(
            f"documents is a {type(documents).__name__}: expected a list of texts, or corpora['fr'].find of "
            "lsn.load_corpora(...)."
        )
    if not listed:
        raise ValueError("documents is empty: there is no text to train on.")
    return listed


def rows_of(model: Model, documents: Any, settings: Training, progress: bool) -> Rows:
    """All documents, joined and cut into rows; the rest that does not fill a row is dropped.

    Raises:
        ValueError: No text, or less of it than one step takes.
    """
    context = int(model.cfg.n_ctx)
    length = min(context, LONGEST) if settings.length is None else settings.length
    layout = Layout("blocks", length, settings.separator, batch_tokens=length, shards=1)
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as folder:
        tokens = tokenize(
            "documents", texts_of(documents), model.tokenizer, Path(folder), separator=settings.separator,
            d_vocab=structure.vocabulary_size(model), progress=progress,
        )  # fmt: skip
        step = settings.batch * settings.accumulation * length
        if tokens.n_tokens < step:
            raise ValueError(
                f"{len(tokens.ends)} documents have {tokens.n_tokens:,} tokens; one step takes {step:,} "
                f"(batch={settings.batch} x accumulation={settings.accumulation} x length={length}). Give more "
                "documents, or a smaller batch or length."
            )
        plan = Plan({"documents": tokens}, layout, context=context, border=structure.position_border(model))
        start = separator_id(model.tokenizer, settings.separator)
        ids, labels = [], []
        for shard in plan.shards:
            for batch in plan.batches(shard):
                scored = torch.nn.functional.pad(scored_tokens(batch, start), (1, 0))
                ids.append(batch.ids)
                labels.append(batch.ids.where(scored, IGNORED))
    return Rows(torch.cat(ids), torch.cat(labels), len(tokens.ends), tokens.sha256)
