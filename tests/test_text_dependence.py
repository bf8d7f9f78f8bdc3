"""Sets on more and less text, on other spelling, on other domains."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import SENTENCES, experiment

import lsn_lens as lsn
from lsn_lens.studies import TextDependenceSettings, text_dependence_run, text_dependence_study
from lsn_lens.studies.text_dependence import amounts_table

SETTINGS = TextDependenceSettings(
    amounts=(100, 200, 10**6), samples=3, spelling_tokens=100, domain_tokens=200, evaluation_tokens=40, seeds=2
)


def texts(prefix=""):
    return {
        f"l{k}": [f"{prefix}{i} {text[: 8 + i % 9]} {i * i}" for i in range(60)] for k, text in enumerate(SENTENCES[1:])
    }


@pytest.fixture(scope="module")
def corpora():
    return lsn.load_corpora(texts(), hold_out=0.3)


@pytest.fixture(scope="module")
def study(load, corpora):
    domains = {"one": corpora, "two": lsn.load_corpora(texts("and yet "), hold_out=0.3)}
    return text_dependence_study(load("llama"), corpora, SETTINGS, domains=domains, progress=False)


def test_amounts_by_hand(load, corpora):
    """The table again, from shards cut and merged by hand."""
    method = lsn.methods.Lap(rate=0.5)  # at its default it finds nothing in so few units
    settings = TextDependenceSettings(amounts=(100,), samples=3)
    object.__setattr__(settings, "methods", (method,))
    layout = lsn.Layout("documents", shards=20)
    run = lsn.collect(load("llama"), corpora, ["lap"], layout=layout, progress=False)
    table = amounts_table(run, settings).set_index("language")
    shards: Any = run.shards
    sizes = {label: [int(shard["tokens"].max()) for shard in each] for label, each in shards.items()}
    for label in run.languages:
        row = table.loc[label]
        totals = torch.tensor(sizes[label]).cumsum(0)
        ends = [int((totals - 100 * each).abs().argmin()) + 1 for each in (1, 2, 3)]
        assert row["samples"] == 3
        assert row["tokens"] == pytest.approx(float(totals[ends[-1] - 1]) / 3)
    cuts = {
        label: [0, *(int((torch.tensor(each).cumsum(0) - 100 * k).abs().argmin()) + 1 for k in (1, 2, 3))]
        for label, each in sizes.items()
    }
    sets = []
    for place in range(3):
        draw = {label: [(label, i) for i in range(*cut[place : place + 2])] for label, cut in cuts.items()}
        sets.append(method.select(method.score(lsn.controls.rearranged(run, draw).statistics)))
    for label in run.languages:
        masks = [each[label].masks["mlp"] for each in sets]
        jaccard = [float((a & b).sum() / (a | b).sum()) for a, b in pairwise(masks)]
        assert table.loc[label, "jaccard"] == pytest.approx(sum(jaccard) / 2)
        assert table.loc[label, "units"] == pytest.approx(sum(int(each.sum()) for each in masks) / 3)


def test_all_the_text_is_its_own_sample(study):
    whole = study["amounts"].query("amount == 1000000")
    kept = whole["shared_with_all"][whole["units"] > 0]
    assert (whole["samples"] == 1).all() and whole["jaccard"].isna().all() and len(kept) and (kept == 1).all()


def test_domains_and_losses(study):
    domains, losses = study["domains"], study["domain_losses"]
    pairs = domains[["found_on", "again_on"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["one", "one"], ["one", "two"], ["two", "two"]]
    assert len(losses) == 4 * 3 and (losses["seeds"] == 2).all()
    assert set(study.tables) == {"amounts", "spelling", "domains", "domain_losses"}


def test_a_domain_with_itself_changes_nothing(load, corpora):
    """The same text under two names: equal sets and equal losses."""
    settings = replace(SETTINGS, amounts=(100,), spelling_tokens=0)
    study = text_dependence_study(
        load("llama"), corpora, settings, domains={"one": corpora, "same": corpora}, progress=False
    )
    crossed: Any = study["domains"].query("found_on != again_on")
    assert (crossed["jaccard"].dropna() == 1).all() and crossed["jaccard"].notna().any()
    losses: Any = study["domain_losses"].set_index(["found_on", "measured_on", "language"])["own_rise"].dropna()
    assert len(losses)
    for found_on, measured_on in (("one", "same"), ("same", "one"), ("same", "same")):
        for language in losses.loc["one", "one"].index:
            assert losses[found_on, measured_on, language] == pytest.approx(losses["one", "one", language])


def test_report(study, tmp_path):
    page = study.report(tmp_path).with_suffix(".md").read_text()
    assert "Two samples of text give lape sets" in page and "Losses on another domain" in page


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": ("lappe",)}, "lappe"),
        ({"methods": ()}, "expected names"),
        ({"amounts": (0,)}, "expected numbers of tokens"),
        ({"samples": 1}, "at least 2"),
        ({"seeds": 1}, "no evidence"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        TextDependenceSettings(**settings)


def test_wrong_domains(load, corpora):
    for domains, said in (
        ({"one": corpora}, "at least two"),
        ({"one": corpora, "two": lsn.load_corpora({"xx": ["a text"] * 9}, hold_out=0.3)}, "in this order"),
    ):
        with pytest.raises(ValueError, match=said):
            text_dependence_study(load("llama"), corpora, SETTINGS, domains=domains, progress=False)


def test_run_in_shards_of_the_smallest_amount(load, corpora):
    settings = TextDependenceSettings(amounts=(50, 200))
    run = text_dependence_run(load("llama"), corpora, settings, progress=False)
    assert {len(shards) for shards in run.shards.values()} == {4}


def test_script(tmp_path):
    script = experiment("text_dependence")
    config = script.Config(
        out=tmp_path, amounts=(100, 200), spelling_tokens=0, domain_tokens=100, evaluation_tokens=20, seeds=2,
        languages=("de", "en"), domains={"news": "demo", "again": "demo"},
    )  # fmt: skip
    page = script.report(config, *script.prepare(config))
    assert page.is_file() and (tmp_path / "tables" / "domain_losses.csv").is_file()
