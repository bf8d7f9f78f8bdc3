"""Loss document by document, and intervals on what an intervention does to it."""

from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.evaluation.baseline import held_out
from lsn_lens.evaluation.bootstrap import check_replicates, percentile_interval
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.text.plan import Layout

FEW_DOCUMENTS = 5  # below it, a bootstrap over documents says nothing


def document_losses(
    model: Model,
    corpora: Any,
    *,
    max_tokens: int | None = None,
    separator: str = "bos",
    progress: bool = True,
) -> pd.DataFrame:
    """Next-token loss of every hold-out document, under whatever interventions are in place.

    Each document is read on its own, so losses differ from those of `perplexity_table`, which packs documents into
    blocks by default. Predicting the first token after the separator is scored, the separator itself is not. For
    several interventions on one text, `held_out(...).by_document(intervention)` tokenises it once.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, its `hold_out` part; documents must fit into the model's context.
        max_tokens: About how many tokens per language; documents are taken whole.
        separator: What each document begins with, as in `Layout`.
        progress: Show a progress bar.

    Returns:
        One row per document: `language`, `document` (its place in the text), `loss` (nats, summed over its tokens),
        `tokens` (that were scored) and `bytes` (that these stand for; NaN where the tokenizer does not tell). The loss
        of a document of which nothing was scored is NaN.

    Warns:
        UserWarning: Nothing of a language was scored, or its bytes are not known.

    Raises:
        ValueError: No text, or a document longer than the context.
    """
    check_model(model)
    layout = Layout("documents", model.cfg.n_ctx, separator, max_tokens, equal=False)  # type: ignore[arg-type]
    return held_out(model, corpora, layout, progress=progress).by_document(progress=progress)


def rise_intervals(
    clean: pd.DataFrame,
    changed: pd.DataFrame,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """How much the loss rises, with an interval by a bootstrap over documents, both losses of a document together.

    Args:
        clean: From `document_losses` without intervention.
        changed: From `document_losses` on the same text inside `lsn.intervene(...)`.
        replicates: Draws, 1,000 or more.
        seed: Of the draws.
        level: Of the intervals, in (0, 1).

    Returns:
        One row per language: `language`, `documents`, `tokens`, `rise` (nats per token: the rise of the summed loss
        over all tokens), `low`, `high` (expanded percentile interval).

    Raises:
        ValueError: Frames of different text, or fewer than 5 documents with scored tokens in a language.
    """
    check_replicates(replicates, level)
    keys = ["language", "document", "tokens"]
    if not clean[keys].reset_index(drop=True).equals(changed[keys].reset_index(drop=True)):
        raise ValueError(
            "the two frames are not of the same documents: measure both with the same corpora, max_tokens and "
            "separator."
        )
    rises = clean[keys].assign(rise=changed["loss"].to_numpy() - clean["loss"].to_numpy())
    labels = rises["language"].unique()
    rises = rises.loc[rises["tokens"].gt(0)]  # of the others nothing was scored
    counts: dict[str, int] = rises["language"].value_counts().reindex(labels, fill_value=0).to_dict()
    few = {label: count for label, count in counts.items() if count < FEW_DOCUMENTS}
    if few:
        raise ValueError(
            f"too few documents with scored tokens to draw from: {few}; expected {FEW_DOCUMENTS} or more in each "
            "language."
        )
    generator = np.random.default_rng(seed)
    rows = []
    for label, each in rises.groupby("language", sort=False):
        rise, tokens = (each[column].to_numpy(dtype=float) for column in ("rise", "tokens"))
        weights = generator.multinomial(len(each), np.full(len(each), 1 / len(each)), size=replicates).astype(float)
        low, high = percentile_interval((weights @ rise) / (weights @ tokens), len(each), level)
        point = rise.sum() / tokens.sum()
        rows.append(
            {
                "language": label,
                "documents": len(each),
                "tokens": int(tokens.sum()),
                "rise": float(point),
                "low": float(low),
                "high": float(high),
            }
        )
    return pd.DataFrame(rows)
