"""Loss by document, and intervals on its increase under an intervention."""

from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.evaluation.baseline import held_out
from lsn_lens.evaluation.bootstrap import check_replicates, percentile_interval
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.text.plan import Layout

FEW_DOCUMENTS = 5  # with fewer, a bootstrap over documents is meaningless


def document_losses(
    model: Model,
    corpora: Any,
    *,
    max_tokens: int | None = None,
    separator: str = "bos",
    progress: bool = True,
) -> pd.DataFrame:
    """Next-token loss of every hold-out document, under the interventions in force.

    Each document is read alone, so losses differ from `perplexity_table`, which packs documents into blocks by default.
    The first token after the separator is scored, the separator is not. For several interventions on one text,
    `held_out(...).by_document(intervention)` tokenises it once.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, its `hold_out` part; documents must fit into the model's context.
        max_tokens: Approximate tokens per language; documents are taken whole.
        separator: What each document begins with, as in `Layout`.
        progress: Show a progress bar.

    Returns:
        One row per document: `language`, `document` (its number in the text), `loss` (nats, summed over its scored
        tokens), `tokens` (scored) and `bytes` (of these tokens; NaN if the tokenizer does not give them). The loss of a
        document without scored tokens is NaN.

    Warns:
        UserWarning: A language without scored tokens, or with unknown bytes.

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
    """Loss increase by language, with an interval from a bootstrap over documents, both losses of a document together.

    Args:
        clean: From `document_losses` without intervention.
        changed: From `document_losses` on the same text inside `lsn.intervene(...)`.
        replicates: Draws, 1,000 or more.
        seed: Seed of the draws.
        level: Level of the intervals, in (0, 1).

    Returns:
        One row per language: `language`, `documents`, `tokens`, `rise` (nats per token: the increase of the summed loss
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
    rises = rises.loc[rises["tokens"].gt(0)]  # others have no scored tokens
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
