"""Tables of steering: against no steering and random units, by strength or count, and warnings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.generation.groups import share_difference, wilson
from lsn_lens.generation.steering.trials import beside, groups_by
from lsn_lens.generation.steering.ways import NONE, NOTHING
from lsn_lens.generation.texts.meaning import meaning_table

REPEATS, UNLIKELY = 0.1, 1.0  # allowed excess over no steering: a share; nats per token
KEPT = ("n", "share", "low", "high", "random_share", "repetition", "text_nll", "none_text_nll")


def steering_table(texts: pd.DataFrame, losses: pd.DataFrame | None = None) -> pd.DataFrame:
    """Shares and losses of each steering, against no steering and its random counterparts.

    Args:
        texts: From `steer`.
        losses: From `steering_losses`; adds the loss increases on real text.

    Returns:
        One row per steering, dose, source and target: `units`, `n` texts; `share` of them in the target language and
        its Wilson 95 % interval `low`, `high`; `none_share`, `random_share` (all seeds; NaN without any) of the target
        language; `fallback` (the language most frequent among the other texts), `und`; `repetition`, `text_nll` (nats
        per token under the unchanged model) and both without steering, `none_repetition`, `none_text_nll`; `clear`
        (`share` is above both others, see `is_larger`); and with `losses` their columns.
    """
    plain = groups_by(texts.loc[texts["steering"] == NONE], "source")
    keys = ["steering", "dose", "source", "target"]
    drawn = groups_by(texts.loc[texts["seed"].notna()], keys)
    rows = []
    for key, group in groups_by(texts.loc[texts["seed"].isna() & texts["steering"].ne(NONE)], keys).items():
        label = dict(zip(keys, key, strict=True))
        rows.append({**label, **beside(group, plain[label["source"]], drawn.get(key), label["target"])})
    table = pd.DataFrame(rows)
    return table if losses is None else table.merge(losses, on=["steering", "dose", "target"], how="left")


def steering_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per steering and strength or count from `steering_table`, the largest mean share first.

    Returns:
        `pairs` of source and target, `n` texts; means over the pairs of `share`, `none_share`, `random_share`; `clear`
        (for how many pairs the share is clearly above both, each pair by itself); means of `und`, `repetition`,
        `none_repetition`, `text_nll`, `none_text_nll` and, if present, of the loss increases; `low` and `high`,
        Wilson's 95 % interval of the mean share, which few texts of some pairs make wide; and `warning`, in words.
    """
    means = ["share", "none_share", "random_share", "und", "repetition", "none_repetition", "text_nll", "none_text_nll"]
    means += [name for name in ("target_nll_change", "other_nll_change") if name in table]
    groups: Any = table.groupby(["steering", "dose"], sort=False)
    frame = groups[means].mean()
    frame.insert(0, "units", groups["units"].mean().round().astype(int))
    frame.insert(1, "pairs", groups["share"].count())
    frame.insert(2, "n", groups["n"].sum())
    frame.insert(6, "clear", groups["clear"].sum())
    alike = groups["n"].agg(lambda n: len(n) ** 2 / (1 / n).sum())  # the mean of shares varies as that of so many texts
    bounds = [wilson(share, n) for share, n in zip(frame["share"], alike, strict=True)]
    frame["low"], frame["high"] = zip(*bounds, strict=True)
    frame = frame.reset_index().sort_values("share", ascending=False, kind="stable", ignore_index=True)
    return frame.assign(warning=[_warning(row) for row in frame.to_dict("records")])


def steering_meaning(
    texts: pd.DataFrame, references: Mapping[str, Mapping[str, str]] | None = None, **options: Any
) -> pd.DataFrame:
    """What steered texts say, from `meaning_table`: each way and its random counterpart, beside no steering.

    Texts without a prompt are left out. Without references each text is compared with the unsteered text of the same
    prompt and sample. Then chrf and bleu say how much of the text stayed as it was, in words: a text in another
    language has little of it even where it says the same. Give references, `embed` or `judge` for its meaning.

    Args:
        texts: From `steer`.
        references: Target -> prompt -> the text wanted in the target.
        options: Further arguments of `meaning_table`: `embed`, `judge`, `tokenize`, `replicates`, `level`, `seed`.

    Returns:
        One row per way, dose and target: `steering` ("none": the unsteered texts of the same sources), `random`
        (whether the units or the direction are), `dose`, `target` and the columns of `meaning_table`.

    Raises:
        KeyError: A target or prompt without a reference.
        ValueError: No texts with a prompt, or the errors of `meaning_table`.
    """
    texts = texts.loc[texts["source"].ne(NOTHING)]
    if texts.empty:
        raise ValueError("no texts with a prompt: what a text says is compared with an answer to the same prompt.")
    plain, steered = texts.loc[texts["steering"].eq(NONE)], texts.loc[texts["steering"].ne(NONE)]
    whole = [plain.assign(target=target).loc[plain["source"].ne(target)] for target in steered["target"].unique()]
    answers = pd.concat([*whole, steered], ignore_index=True).assign(random=lambda frame: frame["seed"].notna())
    keys = ["source", "prompt", "sample"]
    if references is None:
        unsteered = dict(zip(plain[keys].itertuples(index=False, name=None), plain["text"], strict=True))
        wanted = [unsteered[key] for key in answers[keys].itertuples(index=False, name=None)]
    else:
        pairs = list(zip(answers["target"], answers["prompt"], strict=True))
        missing = [pair for pair in pairs if pair[1] not in references.get(pair[0], {})]
        if missing:
            raise KeyError(f"no reference in {missing[0][0]!r} for the prompt {missing[0][1]!r}: give all.")
        wanted = [references[target][prompt] for target, prompt in pairs]
    by = ["steering", "random", "dose"]
    return meaning_table(answers.assign(reference=wanted), "target", by, reference="reference", **options)


def beats(row: Mapping[Any, Any], other: Mapping[Any, Any]) -> int:
    """1 if one row of `steering_summary` has a larger share than another, -1 for a smaller share.

    0 if the 95 % interval of the difference contains 0; texts are taken as independent.
    """
    low, high = share_difference(row, other)
    return int(low > 0) - int(high < 0)


def dose_response(texts: pd.DataFrame) -> pd.DataFrame:
    """Shares of the texts from `steer` by strength or count (`dose`), all sources and targets together.

    Returns:
        One row per steering and dose: `n`, `share` in the target language, Wilson's 95 % interval `low`, `high` (texts
        taken as independent), `none_share`, `random_share`, `repetition`, `text_nll`, `none_text_nll` (see `beside`;
        `none_share`: the mean over targets of their share in texts without steering, without prompts in the target).
    """
    hits = np.where(texts["language"] == texts["target"], "target", "other")
    hit: Any = texts.assign(language=hits, found=texts["language"])
    plain = hit.loc[hit["steering"] == NONE]
    drawn = groups_by(hit.loc[hit["seed"].notna()], ["steering", "dose"])
    rows = []
    for key, group in groups_by(hit.loc[hit["seed"].isna() & hit["steering"].ne(NONE)], ["steering", "dose"]).items():
        row = beside(group, plain, drawn.get(key), "target")
        shares = [
            float((plain.loc[plain["source"] != target, "found"] == target).mean())
            for target in group["target"].unique()
        ]
        kept = {name: row[name] for name in KEPT}
        rows.append({"steering": key[0], "dose": key[1], **kept, "none_share": float(np.mean(shares))})
    return pd.DataFrame(rows)


def choose_doses(doses: pd.DataFrame) -> dict[str, float]:
    """For each steering in `dose_response` the strength or count with the largest share and probable texts.

    Probable: at most 1 nat per token less than texts without steering, under the unchanged model. If no dose has such
    texts, the dose with the most probable texts. Choose on other texts than those in the report.
    """
    chosen = {}
    for name, rows in groups_by(doses, "steering").items():
        fine = rows.loc[rows["text_nll"] <= rows["none_text_nll"] + UNLIKELY]
        best: Any = fine["share"].idxmax() if len(fine) else rows["text_nll"].idxmin()
        chosen[name] = float(rows.at[best, "dose"])
    return chosen


def _warning(row: Mapping[Any, Any]) -> str:
    reasons = {
        "half of the pairs or more not clearly above no steering and random units": 2 * row["clear"] <= row["pairs"],
        "no random counterpart": bool(np.isnan(row["random_share"])),
        "the texts repeat themselves": row["repetition"] > row["none_repetition"] + REPEATS,
        "the texts are improbable to the unchanged model": row["text_nll"] > row["none_text_nll"] + UNLIKELY,
        "the target's own text becomes less probable": row.get("target_nll_change", 0) > 0,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)
