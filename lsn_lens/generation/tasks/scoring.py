"""Accuracy on multiple-choice and cloze items, with and without an intervention."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import pandas as pd
from scipy.stats import binomtest

from lsn_lens.generation.continuations import Pair, Score, encode, fit, score
from lsn_lens.generation.groups import share_of
from lsn_lens.generation.tasks.items import Item
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.text.prompts import as_chat

KEYS = ["language", "id"]
DIVISORS = {
    "none": lambda text, pair: 1,
    "tokens": lambda text, pair: len(pair.continuation),
    "bytes": lambda text, pair: len(text.encode()),
}


def evaluate_items(
    model: Model,
    items: Iterable[Item],
    *,
    normalise: Literal["none", "tokens", "bytes"] = "none",
    separator: Literal["bos", "eos", "none"] = "bos",
    chat: bool | str = False,
    truncate: bool = False,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """The choice that a model finds most probable, and whether it would generate a cloze item's answer.

    Inside `with lsn.intervene(...)` the changed model is scored. A choice's score is the sum of the log-probabilities
    of its tokens after the prompt's; prompt and choice are cut into tokens together (see `continuations.encode`). A
    cloze item is right if every token of an answer is the most probable one after the tokens before it, so that greedy
    decoding generates the answer.

    Args:
        model: A HookedTransformer or TransformerBridge.
        items: From `load_items` or `load_task`.
        normalise: Divide a choice's score by the number of its scored "tokens", or of its UTF-8 "bytes".
        separator: First token of the text: "bos" ("eos" for tokenizers without BOS), "eos" or "none".
        chat: True, or a system prompt: prompts are a user's turns in the tokenizer's chat template, and choices and
            answers what follows them, as in `generate`.
        truncate: Drop the beginning of prompts that are too long; the separator stays.
        batch_size: Prompts with a choice at once.
        progress: Show a progress bar.

    Returns:
        One row per item: `language`, `id`, `kind` ("choice" or "cloze"), `answer`, `chosen` (the choice with the
        highest score, the first of equals; of a cloze item the most probable next token), `correct`,
        `first_token_correct` (the most probable next token is that of the answer), `log_probability` (of the answer; of
        several the most probable; nats), `log_probabilities` and `scores` (after normalising) of all choices or answers
        in order, and `dropped_tokens` (by `truncate`).

    Raises:
        ValueError: No items, a setting out of range, a prompt that is too long, or a text without tokens.
        FloatingPointError: NaN or infinite logits.
    """
    check_model(model)
    items = list(items)
    if not items:
        raise ValueError("no items to evaluate.")
    if normalise not in DIVISORS:
        raise ValueError(f"normalise={normalise!r}: expected one of {list(DIVISORS)}.")
    if truncate and chat is not False:
        raise ValueError("truncate=True would cut off the beginning of the chat template: shorten the prompts.")
    prompts, begins = as_chat(model.tokenizer, [item.prompt for item in items], chat, separator)
    keep = int(separator != "none")
    encoded: list[list[Pair]] = []
    dropped: list[int] = []
    for item, prompt in zip(items, prompts, strict=True):
        pairs = encode(model.tokenizer, prompt, item.choices or item.answers, separator=begins, name=item.name)
        pairs, over = fit(pairs, model.cfg.n_ctx, truncate=truncate, keep=keep)
        encoded.append(pairs)
        dropped.append(over)
    scores = iter(score(model, [pair for pairs in encoded for pair in pairs], batch_size=batch_size, progress=progress))
    rows = [
        {**_row(item, pairs, [next(scores) for _ in pairs], normalise, model.tokenizer), "dropped_tokens": over}
        for item, pairs, over in zip(items, encoded, dropped, strict=True)
    ]
    return pd.DataFrame(rows)


def _row(item: Item, pairs: list[Pair], scores: list[Score], normalise: str, tokenizer: Any) -> dict[str, Any]:
    texts = item.choices or item.answers
    sums = [each.log_probability for each in scores]
    divisors = [DIVISORS[normalise](text, pair) for text, pair in zip(texts, pairs, strict=True)]
    values = [value / divisor for value, divisor in zip(sums, divisors, strict=True)]
    right = [place for place, text in enumerate(texts) if text in item.answers]
    best = max(range(len(values)), key=values.__getitem__)
    answer = max(right, key=sums.__getitem__)
    return {
        "language": item.language,
        "id": item.id,
        "kind": "choice" if item.choices else "cloze",
        "answer": texts[answer],
        "chosen": texts[best] if item.choices else tokenizer.decode([scores[0].first]),
        "correct": best in right if item.choices else any(each.greedy for each in scores),
        "first_token_correct": any(scores[place].first == pairs[place].continuation[0] for place in right),
        "log_probability": sums[answer],
        "log_probabilities": sums,
        "scores": values,
    }


def accuracy(table: pd.DataFrame, by: str | Sequence[str] = "language", *, level: float = 0.95) -> pd.DataFrame:
    """Share of correct items in each group, with its Wilson interval.

    Args:
        table: With a column `correct`, from `evaluate_items` or `evaluate_generated`.
        by: Columns that form the groups.
        level: Of the interval.

    Returns:
        One row per group: the columns of `by`, `items`, `correct`, `accuracy`, `low` and `high`.

    Raises:
        KeyError: The table has no such columns.
    """
    columns = [by] if isinstance(by, str) else list(by)
    rows = []
    for labels, group in _groups(table, columns, [*columns, "correct"]):
        correct = int(group["correct"].sum())
        share = share_of(correct, len(group), level)
        values = {"items": len(group), "correct": correct, "accuracy": share.pop("share")}
        rows.append({**labels, **values, **share})
    return pd.DataFrame(rows)


def accuracy_change(before: pd.DataFrame, after: pd.DataFrame, by: str | Sequence[str] = "language") -> pd.DataFrame:
    """Change of accuracy on the same items, with McNemar's exact test.

    Args:
        before: From `evaluate_items`, for example without an intervention.
        after: The same items, for example under one.
        by: Columns of `before` that form the groups.

    Returns:
        One row per group: the columns of `by`, `items`, `before` and `after` (accuracies), `change`, `lost` and
        `gained` (items that became wrong and right), and `p_value`: two-sided, of lost against gained under equal
        chances; 1 where no item changed.

    Raises:
        KeyError: A table lacks columns.
        ValueError: Other items in one than in the other, or an item twice.
    """
    columns = [by] if isinstance(by, str) else list(by)
    tables: list[Any] = [before, after]
    for table in tables:
        _check_columns(table, [*KEYS, "correct"])
    keys = [pd.MultiIndex.from_frame(table[KEYS]) for table in tables]
    odd = len(keys[0].symmetric_difference(keys[1]))
    if odd or any(each.has_duplicates for each in keys):
        raise ValueError(f"the tables must hold the same items, each once; {odd} are in one only. Pairs are by {KEYS}.")
    right = [table["correct"].to_numpy(dtype=bool) for table in tables]
    paired = before.assign(_was=right[0], _now=pd.Series(right[1], index=keys[1]).reindex(keys[0]).to_numpy())
    rows = []
    for labels, group in _groups(paired, columns, columns):
        lost, gained = (int((group[a] & ~group[b]).sum()) for a, b in (("_was", "_now"), ("_now", "_was")))
        values = {
            "items": len(group),
            "before": float(group["_was"].mean()),
            "after": float(group["_now"].mean()),
            "change": (gained - lost) / len(group),
            "lost": lost,
            "gained": gained,
            "p_value": float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0,
        }
        rows.append({**labels, **values})
    return pd.DataFrame(rows)


def _groups(table: Any, columns: list[str], needed: list[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    _check_columns(table, needed)
    for labels, group in table.groupby(columns, sort=False, dropna=False):
        yield dict(zip(columns, labels, strict=True)), group


def _check_columns(table: Any, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise KeyError(f"the table has no columns {missing}; it has {list(table)}.")
