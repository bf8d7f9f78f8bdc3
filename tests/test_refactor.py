"""Numbers of the whole toolkit on the embedded model and text, as they were before code was moved.

`refactor_pins.json` has one line a number: "table / row / column". It is compared with today's tables through the names
below, so that a column, table or module that is renamed is told in one place. What is measured is small: the pins say
that numbers stay, not that they are right. After a change that is meant to change numbers, empty the names below and

    python tests/test_refactor.py --write

which takes names of sections behind it to write those alone.
"""

import json
import math
import numbers
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lsn_lens as lsn
from lsn_lens.analysis import WordProbe, experts, read_probes, sharing, token_languages, word_probes, working_language
from lsn_lens.analysis.representations import (
    language_dominance,
    pair_similarity,
    sentence_embeddings,
    similarity_change,
)
from lsn_lens.comparison import Checks
from lsn_lens.controls.matched import outliers
from lsn_lens.controls.resampling import subset
from lsn_lens.evaluation.by_document import document_losses, rise_intervals
from lsn_lens.evaluation.effects import control_name, summarise
from lsn_lens.evaluation.stages import Stages, search_stages, split_hold_out, switch_sets
from lsn_lens.evaluation.workflow import workflow_effects, workflow_grid, workflow_summary
from lsn_lens.generation import (
    accuracy,
    accuracy_change,
    arithmetics,
    choose_doses,
    deactivate,
    deactivation_table,
    dimensions,
    direction,
    dose_response,
    evaluate_items,
    fallback_matrix,
    forcing,
    identifier,
    instruction,
    load_items,
    prompts_from,
    steer,
    steering_losses,
    steering_summary,
    steering_table,
)
from lsn_lens.generation.tasks.generated import evaluate_generated
from lsn_lens.interventions.values import language_medians

# From pinned names to today's.
TABLES: dict[str, str] = {}  # "compare.losses": "compare.held_out"
COLUMNS: dict[str, str] = {  # "neurons": "units", or in one table only "compare.sizes / neurons": "units"
    "neurons": "units",
    "compare.ablations / random_rise": "random_mean",
}
WORDS = {"units a language": "units per language"}  # in cells and rows: "other languages' mean": "other mean"
FACTORS: dict[str, float] = {}  # today's number over the pinned one: "lens.scripts / letters": 0.01
GONE: set[str] = {  # columns, of all tables or "table / column", that there are no more
    *(f"losses.summary / {each}" for each in ("random_mean", "random_max", "seeds", "p", "warning", "order")),
    "no_model.skipped / reason",
    "no_model.sizes / notes",  # other words
    # words on what was not done are grouped by reason
    "compare.trust / not_done",
    "compare.not_done / order",
    "off_target.trust / not_done",
    "off_target.not_done",
}

# Columns that name a row, by their pinned names, unless they have fractions; rows that share all of them are counted.
KEYS = (
    "name", "method", "check", "control", "warning", "set", "ablation", "switch", "stage", "deactivated",
    "steering", "intervention", "dose", "source", "target", "intervened", "evaluated", "text", "left_out", "language",
    "other", "script", "kind", "type", "basis", "layer", "unit", "document", "id", "seed",
)  # fmt: skip
CLOCK = ("seconds", "seconds_in_pass", "seconds_scoring")  # columns that are not pinned
BY_CLOCK = ("cost",)  # tables whose order is not
CLOSE = 1e-5  # relative or absolute: a HookedTransformer and a bridge, more threads and other batches round differently
UNSURE = {  # where rounding is multiplied: differences of large numbers, quotients of small ones, ranks of near ties
    "perplexity_change": 1e-4,
    "own_rise_perplexity": 1e-4,
    "ratio": 1e-3,
    "z": 1e-3,
    "rank_correlation": 1e-3,
}
BETWEEN = " & "  # the parts of a row
SHORT = 12  # rows of a table whose order is pinned in one line
SHOWN = 30  # differences in a message

PINS = Path(__file__).with_name("refactor_pins.json")
LANGUAGES = ("en", "fr", "zh")
FIND = lsn.Layout(kind="documents", max_tokens=600)
MEASURE = lsn.Layout(length=64, max_tokens=128)
QUIET = {"progress": False}

Tables = Mapping[str, pd.DataFrame]


@cache
def model():
    return lsn.load_model("demo", device="cpu")


@cache
def corpora():
    return lsn.load_corpora("demo", LANGUAGES)


@cache
def run():
    """All methods' statistics, one row a document."""
    return lsn.collect(model(), corpora(), None, layout=FIND, **QUIET)


@cache
def found(method, **parameters):
    return lsn.detect(run(), method, **parameters)


def collected() -> Tables:
    kept = run().statistics
    totals = [{"name": key, "total": float(each.double().abs().sum())} for key, each in kept.sums.items()]
    return {"text": run().to_frame().reset_index(), "statistics": pd.DataFrame(totals)}


def methods() -> Tables:
    """Scores and sets of all methods."""
    rows = []
    for name, kind in lsn.METHODS.items():
        scores = lsn.score(run(), name)
        chosen = kind().select(scores)
        for basis, values in scores.values.items():
            for language, value, mask in zip(scores.languages, values, chosen.masks[basis], strict=True):
                finite = value[value.isfinite()]
                mean = float(finite.mean()) if len(finite) else math.nan
                places = mask.flatten().nonzero()
                row = {"method": name, "basis": basis, "language": language, "finite": len(finite), "mean_score": mean}
                rows.append({**row, "units": int(mask.sum()), "sum_of_places": int(places.sum())})
    return {"sets": pd.DataFrame(rows), "outliers": outliers(run().statistics, found("lape"), multiple=3).head(5)}


def compared() -> Tables:
    """All checks but one."""
    checks = Checks(
        replicates=3, permutations=39, without_draws=("diffmean",), paired=True, changed_text=True, ablations=True,
        seeds=1,
    )  # fmt: skip
    comparison = lsn.compare(
        run(), ["lape", "lave", "diffmean"], model=model(), corpora=corpora(), seeds=2, more_seeds=2,
        control_tokens=64, layout=MEASURE, trust=checks, **QUIET,
    )  # fmt: skip
    return dict(comparison)


def compared_off_target() -> Tables:
    """The slow check, once for methods of the same units, without draws of text and labels; two languages."""
    checks = Checks(replicates=0, permutations=0, off_target=True, seeds=1)
    two = subset(run(), ("en", "zh"))
    twins = {name: lsn.METHODS["lape"]() for name in ("lape", "again")}
    comparison = lsn.compare(
        two, twins, model=model(), corpora={label: corpora()[label] for label in two.languages}, action=lsn.zero,
        seeds=2, more_seeds=0, control_tokens=64, layout=MEASURE, found={"again": lsn.detect(two, "lape")},
        trust=checks, **QUIET,
    )  # fmt: skip
    tables = dict(comparison)
    return {name: tables[name] for name in ("ranking", "control", "warnings", "trust", "off_target", "not_done")}


def compared_without_model() -> Tables:
    """All methods that packed blocks allow."""
    layout = lsn.Layout(kind="blocks", length=64, max_tokens=320)
    blocks = lsn.collect(model(), corpora(), None, layout=layout, **QUIET)
    tables = dict(lsn.compare(blocks, **QUIET))
    return {name: table for name, table in tables.items() if name != "agreement_by_language"}


def workflow() -> Tables:
    units = found("plnd")
    switches = ("understand attention", "solve FFN", "generate FFN", "all")
    first, second = split_hold_out(corpora())
    stages, search = search_stages(
        model(), first, units, understand=(1, 2), generate=(1, 2), layout=MEASURE, **QUIET
    )  # fmt: skip
    grid = workflow_grid(model(), second, units, Stages(2, 1), switches=switches, seeds=2, layout=MEASURE, **QUIET)
    effects = workflow_effects(grid)
    counts = {name: each.counts() for name, each in switch_sets(units, stages).items()}
    parts = pd.DataFrame(counts).T.rename_axis("switch").reset_index()
    summary = workflow_summary(effects)
    return {"stages": search, "switches": parts, "grid": grid, "effects": effects, "summary": summary}


def steered() -> Tables:
    targets = ("fr", "zh")
    statistics, medians = run().statistics, language_medians(run().statistics)
    ways = [
        each
        for seed in (None, 0)
        for each in (
            forcing(found("average_precision", count=40), medians, name="average_precision", dose=40, seed=seed),
            arithmetics(statistics, found("lape"), "additive", 2, name="lape", seed=seed),
            direction(statistics, 3, 2, seed=seed),
            dimensions(statistics, found("language_dimensions"), 1, seed=seed),
        )
    ]
    starts = prompts_from(model(), corpora(), count=1, tokens=5)
    prompts = {source: starts[source] for source in ("en", "zh")}
    examples = prompts_from(model(), corpora(), count=1, tokens=5, part="find")
    words = {target: "\n".join([*examples[target], ""]) for target in targets}
    identify = identifier(corpora())
    settings = {"tokens": 4, "temperature": 0.8, **QUIET}
    texts = steer(model(), [*ways, instruction(words)], prompts, targets, identify, samples=1, seed=1, **settings)
    losses = steering_losses(model(), corpora(), ways, targets, layout=MEASURE, **QUIET)
    table = steering_table(texts, losses)
    from_nothing = steer(model(), ways[::2], {}, targets, identify, samples=2, **settings)
    doses = dose_response(from_nothing)
    off = deactivate(model(), {"lape": found("lape")}, prompts, identify, seeds=1, samples=2, **settings)
    best = pd.DataFrame(choose_doses(doses).items(), columns=["steering", "best"])
    remain, away = deactivation_table(off), fallback_matrix(off)
    told = {"text": "written", "language": "identified"}  # what a model wrote names no row
    kept = ["written", "identified", "tokens", "repetition"]
    texts, off = texts.rename(columns=told), off.rename(columns=told)
    return {
        "texts": texts.loc[:, ["steering", "seed", "source", "target", *kept, "clean_log_probability"]],
        "losses": losses, "table": table, "summary": steering_summary(table), "doses": doses,
        "best": best, "deactivated": off.loc[:, ["method", "seed", "source", *kept]],
        "deactivation": remain, "fallback": away.reset_index(),
    }  # fmt: skip


def lens() -> Tables:
    labels = token_languages(model().tokenizer, corpora(), vocabulary=model().cfg.d_vocab, **QUIET)
    layout = lsn.Layout(kind="documents", max_tokens=128, equal=False)
    probes = []
    for each in read_probes()[:4]:
        prompts, words = ({k: part[k] for k in LANGUAGES} for part in (each.prompts, each.words))
        probes.append(WordProbe(prompts, words, each.concept))
    return {
        "layers": working_language(model(), corpora(), labels, layout=layout, **QUIET),
        "words": word_probes(model(), probes, **QUIET), "coverage": labels.coverage(),
        "confusion": labels.confusion().reset_index(), "chance": labels.chance(), "scripts": labels.scripts,
    }  # fmt: skip


def represented() -> Tables:
    sentences = {label: list(corpus.hold_out)[:6] for label, corpus in corpora().items()}
    before = sentence_embeddings(model(), sentences, **QUIET)
    with lsn.intervene(model(), found("lape")["zh"], lsn.zero):
        after = sentence_embeddings(model(), sentences, **QUIET)
    pairs = pair_similarity(before)
    return {
        "pairs": pairs, "dominance": language_dominance(before),
        "change": similarity_change(pairs, pair_similarity(after)),
    }  # fmt: skip


def losses() -> Tables:
    units = found("lape")
    random = units.random_like(0)
    action = lsn.other_mean_ablation(run().statistics)
    matrices = {
        name: lsn.perplexity_matrix(model(), corpora(), each, action, layout=MEASURE, **QUIET).reset_index()
        for name, each in (("found", units), ("random", random))
    }
    beside = {"lape": units, control_name("lape", 0): random}
    table = lsn.perplexity_table(model(), corpora(), beside, layout=MEASURE, **QUIET)
    before = document_losses(model(), corpora(), max_tokens=300, **QUIET)
    with lsn.intervene(model(), units["fr"], lsn.zero):
        after = document_losses(model(), corpora(), max_tokens=300, **QUIET)
    return {
        **matrices, "table": table, "summary": summarise(table), "documents": before,
        "intervals": rise_intervals(before, after),
    }  # fmt: skip


def tasks() -> Tables:
    texts = {label: list(corpus.hold_out)[:4] for label, corpus in corpora().items()}
    ends = {label: [(each[: len(each) // 2], each[len(each) // 2 :]) for each in some] for label, some in texts.items()}
    items = load_items(
        {"prompt": some[place][0], "choices": [end for _, end in some[:3]], "answer": place, "language": label}
        for label, some in ends.items() for place in range(3)
    )  # fmt: skip
    before = evaluate_items(model(), items, normalise="tokens", **QUIET)
    with lsn.intervene(model(), found("lape")["fr"], lsn.zero):
        after = evaluate_items(model(), items, normalise="tokens", **QUIET)
    written = lsn.generate(model(), [item.prompt[:20] for item in items], tokens=8, temperature=0, **QUIET)
    return {
        "before": before, "after": after, "accuracy": accuracy(before), "change": accuracy_change(before, after),
        "written": evaluate_generated(list(written["text"]), items, "token_f1").rename(columns={"text": "written"}),
    }  # fmt: skip


def grouped() -> Tables:
    """Experts, and what languages share."""
    statistics = run().statistics
    alike = experts.expert_similarity(statistics)
    frequency = experts.frequencies(statistics).groupby(level="language").mean().reset_index()
    family = experts.family_test(alike, {"one": ["en", "fr"], "two": ["zh"]}, permutations=99)
    return {
        "frequencies": frequency, "expert_sets": experts.expert_sets(statistics), "alike": alike.reset_index(),
        "family": pd.DataFrame([family]), "profile": sharing.profile(statistics),
        "activity": sharing.activity(statistics), "repeatability": sharing.repeatability(statistics),
    }  # fmt: skip


SECTIONS = {
    "collect": collected,
    "methods": methods,
    "compare": compared,
    "off_target": compared_off_target,
    "no_model": compared_without_model,
    "workflow": workflow,
    "steering": steered,
    "lens": lens,
    "representations": represented,
    "losses": losses,
    "tasks": tasks,
    "grouped": grouped,
}


def renamed(table: str, column: str) -> str:
    """Today's name of a pinned column; of a cell in a list ("scores[0]"), too."""
    name, bracket, place = column.partition("[")
    return COLUMNS.get(f"{table} / {name}", COLUMNS.get(name, name)) + bracket + place


def renamed_part(table: str, part: str) -> str:
    """One "column=value" of a row; nothing if the column is gone."""
    name, sign, value = part.partition("=")
    if not sign:
        return part
    return "" if {name, f"{table} / {name}"} & GONE else f"{renamed(table, name)}={reworded(value)}"


def reworded(value: object) -> object:
    """Today's words for pinned ones."""
    if isinstance(value, str):
        for old, new in WORDS.items():
            value = value.replace(old, new)
    return value


def expected(section: str, pinned: Mapping[str, object]) -> dict[str, object]:
    """The pins of a section under today's names."""
    cells: dict[str, object] = {}
    for key, value in pinned.items():
        table, row, column = key.split(" / ", 2)
        name = column.partition("[")[0]
        if table.partition(".")[0] != section or {table, name, f"{table} / {name}"} & GONE:
            continue
        row = BETWEEN.join(filter(None, (renamed_part(table, part) for part in row.split(BETWEEN))))
        factor = FACTORS.get(f"{table} / {name}", FACTORS.get(name, 1))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        where = f"{TABLES.get(table, table)} / {row} / {renamed(table, column)}"
        cells[where] = value * factor if number else reworded(value)
    return cells


def measured(section: str) -> dict[str, object]:
    """Today's cells, "table / row / column"."""
    cells: dict[str, object] = {}
    pinned_name = {new: old for old, new in TABLES.items()}
    for name, table in SECTIONS[section]().items():
        title = f"{section}.{name}"
        names = [renamed(pinned_name.get(title, title), key) for key in KEYS]
        whole = [each for each in table if each in ("seed", "dose") or not pd.api.types.is_float_dtype(table[each])]
        keys = [each for each in names if each in whole]
        records = table.to_dict("records")
        rows = [BETWEEN.join(f"{key}={plain(record[key])}" for key in keys) or "row" for record in records]
        cells[f"{title} / all / rows"] = len(rows)
        if len(rows) <= SHORT and name not in BY_CLOCK:
            cells[f"{title} / all / order"] = "; ".join(
                " ".join(str(plain(each[key])) for key in keys) for each in records
            )
        seen: Counter[str] = Counter()
        for row, record in zip(rows, records, strict=True):
            seen[row] += 1
            where = f"{title} / {row}" + f"{BETWEEN}number={seen[row]}" * (seen[row] > 1)
            for column, value in record.items():
                if isinstance(value, list | tuple):
                    cells |= {f"{where} / {column}[{place}]": plain(each) for place, each in enumerate(value)}
                elif column not in keys and column not in CLOCK:
                    cells[f"{where} / {column}"] = plain(value)
    return cells


def plain(value: object) -> object:
    """As JSON has it; None is no number, or nothing."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(f"{float(value):.10g}")
        return number if math.isfinite(number) else (None if math.isnan(number) else str(number))
    return None if value is None or value is pd.NA else str(value)


def same(old: object, new: object, close: float) -> bool:
    if any(each is None or isinstance(each, str | bool) for each in (old, new)):
        return old == new
    return new == pytest.approx(old, rel=close, abs=close)


@pytest.mark.filterwarnings("ignore:.*too few, or their lengths")  # few documents are read
@pytest.mark.parametrize("section", SECTIONS)
def test_numbers_are_what_they_were(section):
    before, now = expected(section, json.loads(PINS.read_text(encoding="utf-8"))), measured(section)
    lost = [f"{where}: was {old!r}, is gone" for where, old in before.items() if where not in now]
    unsure = {renamed("", column): close for column, close in UNSURE.items()}
    moved = [
        f"{where}: was {old!r}, is {now[where]!r}"
        for where, old in before.items()
        if where in now and not same(old, now[where], unsure.get(where.rpartition(" / ")[2], CLOSE))
    ]
    assert before
    wrong = [*moved, *lost]
    assert not wrong, "\n".join([f"{len(moved)} of {len(before)} changed, {len(lost)} gone", *wrong[:SHOWN]])


def test_names_are_told_in_one_place(monkeypatch):
    old = pd.DataFrame({"method": ["own way", "b"], "kind": ["x", "x"], "share": [50.0, math.nan], "lost": [1, 2]})
    monkeypatch.setitem(SECTIONS, "made", lambda: {"old": old})
    pins = measured("made")
    new = old.drop(columns=["kind", "lost"]).rename(columns={"method": "way", "share": "part"})
    new = new.assign(way=["its own", "b"], part=new["part"] / 100, more=1)
    monkeypatch.setitem(SECTIONS, "made", lambda: {"new": new})
    monkeypatch.setitem(TABLES, "made.old", "made.new")
    monkeypatch.setitem(COLUMNS, "method", "way")
    monkeypatch.setitem(COLUMNS, "made.old / share", "part")
    monkeypatch.setitem(WORDS, "own way", "its own")
    monkeypatch.setitem(FACTORS, "made.old / share", 0.01)
    GONE.update(gone := {"kind", "made.old / lost", "made.old / order"})
    try:
        before, now = expected("made", pins), measured("made")
    finally:
        GONE.difference_update(gone)
    assert before == {
        "made.new / all / rows": 2, "made.new / way=its own / part": 0.5, "made.new / way=b / part": None,
    }  # fmt: skip
    assert before.items() <= now.items()


def write(sections: list[str]) -> None:
    """The pins of these sections, or of all, under today's names."""
    if any((TABLES, COLUMNS, WORDS, FACTORS, GONE)):
        sys.exit("empty TABLES, COLUMNS, WORDS, FACTORS and GONE first: pins are written under today's names.")
    old = json.loads(PINS.read_text(encoding="utf-8")) if sections else {}
    pins: dict[str, object] = {}
    for each in SECTIONS:
        kept = {key: value for key, value in old.items() if key.partition(".")[0] == each}
        pins |= kept if sections and each not in sections else measured(each)
    PINS.write_text(json.dumps(pins, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--write" not in sys.argv:
        sys.exit(__doc__)
    write([each for each in sys.argv[1:] if each != "--write"])
