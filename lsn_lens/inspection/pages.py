"""What a page of one unit shows: tables, texts with the unit's values, and what could not be shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lsn_lens.inspection.effects import Effect
from lsn_lens.inspection.excerpts import KINDS, Excerpt, TopTexts, Unit


@dataclass(frozen=True)
class Shown:
    """An excerpt with the texts of its tokens.

    Attributes:
        kind: "top" or "random".
        language: Label.
        row: Number of the row in the language's text.
        peak: The unit's value of largest size in the row.
        pieces: Texts of the tokens; tokens that share a character form one piece.
        values: The value of largest size in each piece.
    """

    kind: str
    language: str
    row: int
    peak: float
    pieces: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Content:
    """The content of a page.

    Attributes:
        unit: `(basis, layer, unit)`.
        model: The model's name.
        languages: Labels of the text.
        found: The sets that have the unit: name -> languages.
        tables: "activity", "effects", "scores", "writes", "reads", "similar"; those that could be made.
        notes: For each of these, how it was made, or why it is missing.
        texts: Excerpts, the strongest first.
    """

    unit: Unit
    model: str
    languages: tuple[str, ...]
    found: Mapping[str, Sequence[str]]
    tables: Mapping[str, pd.DataFrame] = field(repr=False)
    notes: Mapping[str, str] = field(repr=False)
    texts: tuple[Shown, ...] = field(repr=False)

    @property
    def title(self) -> str:
        """Name of the unit."""
        basis, layer, unit = self.unit
        return f"Unit {unit} of layer {layer}, basis {basis}"

    @property
    def file(self) -> str:
        """Name of the unit's page."""
        return "{}-{}-{}.html".format(*self.unit)

    @property
    def lead(self) -> list[str]:
        """The main numbers in sentences."""
        said = [_active(self.activity), _effect(self.tables["effects"])]
        sets = "; ".join(f"{name} ({', '.join(languages)})" for name, languages in self.found.items())
        return [*filter(None, said), f"Found by: {sets or 'none of the methods shown'}."]

    @property
    def activity(self) -> pd.DataFrame:
        """The rows of the first measure of activity, the most active language first."""
        table = self.tables["activity"]
        if table.empty:
            return table
        first = table.loc[table["measure"].eq(table["measure"].iloc[0])]
        return first.iloc[(-first["value"].abs()).argsort(kind="stable").tolist()]

    def summary(self) -> dict[str, Any]:
        """One row of a gallery's index."""
        basis, layer, unit = self.unit
        row: dict[str, Any] = {"basis": basis, "layer": layer, "unit": unit}
        found = dict.fromkeys(label for labels in self.found.values() for label in labels)
        row["found for"] = ", ".join(found)
        for place, name in enumerate(("most active in", "next")):
            here = self.activity.iloc[place] if len(self.activity) > place else {"language": "", "value": math.nan}
            row |= {name: here["language"], f"{'activity' if place == 0 else 'activity in next'}": here["value"]}
        effects = self.tables["effects"].sort_values("rise", ascending=False, kind="stable")
        worst = effects.iloc[0]
        row |= {"hurts most": worst["language"], "loss increase": worst["rise"], "p": worst["p"]}
        return row | {"increase in next": effects["rise"].iloc[1] if len(effects) > 1 else math.nan}


def _active(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    top, measure = rows.iloc[0], rows["measure"].iloc[0]

    def told(row: Any) -> str:
        form = ".1%" if measure == "firing rate" else ".3g"
        interval = "" if math.isnan(row["low"]) else f" [{row['low']:{form}}, {row['high']:{form}}]"
        return f"{row['value']:{form}}{interval} in {row['language']}"

    rest = f", next {told(rows.iloc[1])}" if len(rows) > 1 else ""
    return f"{measure.capitalize()}: {told(top)}{rest}."


def _effect(table: pd.DataFrame) -> str:
    """The language whose loss rises most, beside the random units."""
    worst = table.iloc[int(table["rise"].fillna(-math.inf).argmax())]
    few = math.isnan(worst["low"])
    interval = " (too few documents for an interval)" if few else f" [{worst['low']:+z.4f}, {worst['high']:+z.4f}]"
    others = table.loc[table["language"].ne(worst["language"]), "rise"]
    next_one = f"; in the other languages by {others.max():+z.4f} at most" if len(others) else ""
    return (
        f"Changing the unit raises the loss of {worst['language']} by {worst['rise']:+z.4f}{interval} nats per "
        f"token{next_one}. The largest of the random units' there: {worst['random_high']:+z.4f} (p = {worst['p']:.3f}, "
        f"corrected for the languages {worst['q']:.3f})."
    )


def effect_note(effect: Effect, action: str) -> str:
    """How effects were measured, in words."""
    own, drawn = effect.active
    active = "" if math.isnan(own) else f" (activity {own:.3g}, the random units' mean {drawn:.3g})"
    return (
        f"Action: {action}. Loss on hold-out text, nats per token; interval: 95 %, bootstrap over documents. "
        f"Random units: {effect.random} different ones, matched by {effect.matched}, {effect.language}{active}. "
        "Grey: from the least to the largest of the random units. p: random units with at least this increase, one "
        "added to both counts; q: corrected for the languages (Benjamini-Hochberg)."
    )


def shown_texts(texts: TopTexts, unit: Unit, tokenizer: Any) -> tuple[Shown, ...]:
    """The excerpts of one unit, with the texts of their tokens."""
    return tuple(
        Shown(kind, label, each.row, each.peak, *pieces_of(each, tokenizer))
        for kind in KINDS
        for label, some in getattr(texts, kind)[unit].items()
        for each in some
    )


def pieces_of(excerpt: Excerpt, tokenizer: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The texts of an excerpt's tokens, and the value of largest size in each."""
    pieces, values, before, start = list[str](), list[float](), "", 0
    for end in range(1, len(excerpt.ids) + 1):
        text = tokenizer.decode(excerpt.ids[:end], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end < len(excerpt.ids):  # a part of a character
            continue
        pieces.append(text[len(before) :] if text.startswith(before) else tokenizer.decode(excerpt.ids[start:end]))
        values.append(max(excerpt.values[start:end], key=abs))
        before, start = text, end
    return tuple(pieces), tuple(values)
