"""The report of a comparison of methods: what each section shows and says."""

import math
import re
import shlex
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from lsn_lens import plots
from lsn_lens.evaluation.perplexity import as_matrix
from lsn_lens.neurons import NeuronSet
from lsn_lens.report import Report, Section, lead


def comparison(
    tables: Mapping[str, pd.DataFrame], found: Mapping[str, NeuronSet], view: str, origin: Mapping[str, Any]
) -> Report:
    """The whole report, best method first.

    Args:
        tables: `losses` (from `perplexity_table`), `languages`, `methods` and `controls` (from `effects`), `sizes` and
            `text` (from `Run.to_frame`).
        found: Each method's set.
        view: From `neuron_on_text`, for the best method; "" for none.
        origin: From `provenance`.
    """
    first = tables["methods"].to_dict("records")[0]
    languages = list(origin["corpus"]["languages"])
    return Report(
        "Language-specific neurons",
        f"{origin['model']['name']}, {len(languages)} languages ({', '.join(languages)}), {origin['started'][:10]}",
        lead(first),
        facts(first, tables),
        (
            methods_section(tables, found),
            HOW_TO_READ,
            *(method_section(name, found[name], tables) for name in tables["methods"]["method"].unique()),
            Section(
                f"Neurons on text: {first['method']}", TEXT_VIEW if view else ("No neurons were found.",), view=view
            ),
            text_section(tables, origin),
            origin_section(origin),
        ),
    )


def sizes(found: Mapping[str, NeuronSet]) -> pd.DataFrame:
    """How many neurons each method chose."""
    rows = []
    for name, each in found.items():
        counts, all_neurons = each.counts(), sum(mask[0].numel() for mask in each.masks.values())
        rows.append(
            {
                "method": name,
                "different_neurons": len(each),
                "rate": len(each) / all_neurons,
                "over_all_languages": int(counts.sum()),
                "fewest": int(counts.min()),
                "language_with_fewest": str(counts.idxmin()),
                "most": int(counts.max()),
                "language_with_most": str(counts.idxmax()),
                "parameters": each.method,
            }
        )
    return pd.DataFrame(rows)


def facts(first: Mapping[Hashable, Any], tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """The best method's numbers in short."""
    size = of(tables["sizes"], method=first["method"]).to_dict("records")[0]
    mine = of(tables["languages"], method=first["method"], action=first["action"])
    ratio = first["own_over_random"]
    return {
        f"languages hurt most by their own neurons ({first['method']})": (
            f"{first['own_hurt_most']} of {first['languages']}"
        ),
        "mean own rise, nats a token": f"{first['mean_own_rise']:+.3g}",
        "times the random control's": f"{ratio:.3g}" if not math.isnan(ratio) else first["note"] or "n/a",
        "different neurons": f"{size['different_neurons']:,} ({size['rate']:.2%})",
        "languages with a warning": str(sum(mine["warning"] != "")),
    }


def methods_section(tables: Mapping[str, pd.DataFrame], found: Mapping[str, NeuronSet]) -> Section:
    """All methods at a glance."""
    noted = [each.notes for each in found.values() if "chosen" in each.notes]
    raised = next((notes for notes in noted if notes["chosen"] > notes["asked"]), None)
    rate = "Every method chooses the share of neurons that was asked for."
    if raised:
        rate = (
            f"The rate asked for gives {raised['asked']:,} neurons. It was raised to {raised['chosen']:,} neurons "
            f"({raised['rate']:.2%} of all), the smallest number that gives every language as many as asked for. All "
            "methods use that rate; sizes still differ, since a neuron may belong to several languages and some "
            "methods divide the number evenly."
        )
    methods = tables["methods"]
    shown = methods if "".join(methods["note"]) else methods.drop(columns="note")
    return Section(
        "Methods side by side",
        (
            rate,
            "Best first: for how many languages the own language is hurt most, then how far the mean own rise is above "
            "both the other languages' and the random control's. The order comes from the text that is shown.",
        ),
        {"Rises of the loss in nats a token, means over languages": shown, "Sizes": tables["sizes"]},
        {"methods": plots.method_rises(methods)},
    )  # fmt: skip


HIDDEN = ["action", "method", "random_seeds"]  # said in the text
TEXT_VIEW = (
    "The two highest scoring neurons of each language, on the first held-out document of every language (in the demo "
    "text: the same sentence). Point at a neuron's name to see where it fires, click to keep it. The darker a token, "
    "the higher act(gate); values below 0, where the neuron does not fire, are left white.",
)

HOW_TO_READ = Section(
    "How to read this",
    (
        "A neuron is one unit of an MLP layer. A method looks at when neurons fire on text of each language, and says "
        "which belong to which. Then the neurons of one language at a time are switched off, and the model's loss is "
        "measured on held-out text of all languages.",
        "The loss is the mean negative log-probability of a token, in nats. A rise of 0.1 means that tokens become "
        "10 % less probable on average. Tokens differ between languages, so bits per byte stand beside it: the "
        "same loss for each byte of text. Perplexity is exp(loss).",
        "Neurons that belong to a language should hurt that language: a matrix with a red diagonal and pale elsewhere. "
        "Random neurons, as many in each layer, are the control: a rise that they reach as well says nothing about the "
        "language. A small model or little text makes all numbers noisy; warnings in the tables say where.",
    ),
)


def method_section(name: str, found: NeuronSet, tables: Mapping[str, pd.DataFrame]) -> Section:
    """One method: who is hurt, against the control, and where the neurons are."""
    figures, shown, text = {}, {}, []
    for action in tables["methods"]["action"].unique():
        losses = of(tables["losses"], action=action)
        summary, points = (of(tables[each], action=action, method=name) for each in ("languages", "controls"))
        matrix, end = as_matrix(of(losses, set=name)), slug(f"{name}-{action}")
        figures[f"change-{end}"] = plots.change_matrix(matrix, f"{name}: change of the loss, neurons set to {action}")
        for control in dict.fromkeys(each for each in losses["set"] if each.startswith(f"{name} random ")):
            random = as_matrix(of(losses, set=control))
            if random.notna().all(axis=None):  # the others were measured on their own language only
                title = f"{control}: the same for random neurons, same colour scale"
                limit = plots.robust_limit(matrix)
                figures[f"change-{slug(control)}-{slug(action)}"] = plots.change_matrix(random, title, limit=limit)
        figures[f"control-{end}"] = plots.control(summary, points, f"{name} against random neurons, set to {action}")
        shown[f"Neurons set to {action}: rises of the loss in nats a token"] = summary.drop(columns=HIDDEN)
        text.append(
            f"Neurons set to {action}. {lead(of(tables['methods'], action=action, method=name).to_dict('records')[0])}"
        )
    figures[slug(f"layers-{name}")] = plots.layer_counts(
        found.layer_counts(), f"{name}: neurons per layer and language"
    )
    figures[slug(f"overlap-{name}")] = plots.overlap(found.jaccard(), f"{name}: neurons that languages share")
    return Section(f"Method: {name}", tuple(text), shown, figures)


def text_section(tables: Mapping[str, pd.DataFrame], origin: Mapping[str, Any]) -> Section:
    """The text that was used, and how."""
    used, seeds = origin["corpus"]["layout"], sorted(tables["controls"]["seed"].unique())
    return Section(
        "How it was measured",
        (
            f"Found on {used['kind']} of {used['length']} tokens; what documents begin with: {used['separator']}. "
            "Measured on the held-out part of the corpus, which the methods never saw.",
            f"Each method has {len(seeds)} random controls (seeds {', '.join(map(str, seeds))}): as many neurons in "
            "each language and layer, none of them the language's own. The first control of the first method is "
            "measured on all languages, the others only on the language they stand for: all the comparison needs.",
        ),
        {"Text that the neurons were found on": tables["text"]},
    )


def origin_section(origin: Mapping[str, Any]) -> Section:
    """Where it comes from, and how to get it again."""
    model, versions = origin["model"], ", ".join(f"{name} {each}" for name, each in origin["versions"].items())
    return Section(
        "Provenance",
        (
            f"Model {model['name']} ({model['class']}, {model['dtype']}, {model['layers']} layers, revision "
            f"{model['revision'] or 'not given'}), weights sha256 {model['weights_sha256'][:16]}…; "
            f"text sha256 {origin['corpus']['sha256'][:16]}…",
            f"{versions}; commit {origin['git_commit'] or 'unknown'}; {origin['seconds']:.0f} seconds.",
            "The same command gives the same numbers on the same machine. Tables are in tables/ (parquet and csv), "
            "figures in figures/, the sets in neurons/ (read them with lsn_lens.NeuronSet.load).",
        ),
        code=shlex.join(origin["command"]),
        data=origin,
    )


def of(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows with these values."""
    for column, value in values.items():
        table = table.loc[table[column].eq(value)]
    return table


def slug(text: str) -> str:
    """For file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
