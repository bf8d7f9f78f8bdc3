"""An audit says different, right things of planted units, of decoys and of random units."""

import math
import re
from dataclasses import replace

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics
from lsn_lens.studies import AuditSettings, audit, audit_run
from lsn_lens.studies.auditing import _method
from lsn_lens.studies.claims import VERDICTS, caveats, claims, responses

QUICK = AuditSettings(max_tokens=600, evaluation_tokens=450, prompts=1, tokens=2, side_seeds=1)


@pytest.fixture(scope="module")
def model(planted):
    return planted.load(device="cpu")


@pytest.fixture(scope="module")
def run(model, world, planted):
    return audit_run(model, world.corpora, planted.truth(), QUICK, progress=False)


@pytest.fixture(scope="module")
def audits(model, world, planted, run):
    """Audits of what is needed (with a method and another domain), of decoys, and of units drawn blindly."""
    truth, generator = planted.truth(), torch.Generator().manual_seed(0)
    mask = torch.zeros_like(truth.masks["mlp"])
    for own in mask:
        own.view(-1)[torch.randperm(own.numel(), generator=generator)[:2]] = True
    given = {
        "planted": (truth, {"method": "lape", "domains": {"again": world.corpora}}),
        "decoy": (planted.truth(["loud", "unread"]), {}),
        "random": (NeuronSet(truth.languages, {"mlp": mask}, "drawn"), {}),
    }
    return {
        name: audit(found, model, world.corpora, QUICK, run=run, progress=False, **more)
        for name, (found, more) in given.items()
    }


def test_three_sets_three_right_verdicts(audits):
    told = {name: study["claims"]["verdict"][0] for name, study in audits.items()}
    assert told == {"planted": "specific", "decoy": "responds, no effect shown", "random": "nothing shown"}
    assert audits["planted"]["claims"]["words"][0].startswith("Holds: without its units, each of the 4 languages")
    assert (
        "100% of the units are most active in their own language (chance 26%" in audits["decoy"]["claims"]["words"][0]
    )
    planted = audits["planted"]["effects"]
    assert planted["passes"].all() and (planted["percentile"] == 1).all() and (planted["own_rise"] > 0.05).all()
    for name in ("decoy", "random"):
        assert not audits[name]["effects"]["above_random"].any()


def test_effects_are_those_of_the_loss_table_and_percentiles_those_of_the_random_sets(audits, model, world, planted):
    study = audits["planted"]
    layout = lsn.Layout(max_tokens=QUICK.evaluation_tokens)
    table = lsn.perplexity_table(model, world.corpora, planted.truth(), layout=layout, progress=False)
    for row in study["effects"].itertuples():
        mine = table.loc[table["intervened"].eq(row.language)].set_index("evaluated")["nll_change"]
        assert row.own_rise == pytest.approx(mine[row.language], abs=1e-6)
        assert row.worst_other_rise == pytest.approx(mine.drop(row.language).max(), abs=1e-6)
        assert row.mean_other_rise == pytest.approx(mine.drop(row.language).mean(), abs=1e-6)
    study = audits["random"]
    for row in study["effects"].itertuples():
        drawn = study["random_points"].loc[lambda x, label=row.language: x["language"].eq(label), "own_rise"]
        assert len(drawn) == QUICK.seeds and row.percentile == sum(each < row.own_rise for each in drawn) / len(drawn)


def test_responses_are_counted_by_hand(run, planted):
    found = planted.truth(["loud", "frequency", "silent"])
    squares, tokens = run.statistics.get("mlp_post.squares"), run.statistics.tokens
    table = responses(run.statistics, "x", found).set_index("language")
    for place, label in enumerate(found.languages):
        units = found.masks["mlp"][place].nonzero().tolist()
        sizes = [
            [math.sqrt(float(squares[i, layer, unit]) / int(tokens[i, layer])) for i in range(4)]
            for layer, unit in units
        ]
        own = list(run.statistics.languages).index(label)
        alone = [all(each[own] > size for i, size in enumerate(each) if i != own) for each in sizes]
        assert table.at[label, "most_active"] == sum(alone)
        assert table.at[label, "activity"] == pytest.approx(sum(each[own] for each in sizes) / len(units))
        others = sum(sum(each) - each[own] for each in sizes) / len(units) / 3
        assert table.at[label, "other_activity"] == pytest.approx(others)


def made_statistics(sizes):
    """Of languages whose units have these sizes `[language, layer, unit]`, one token each."""
    squares = torch.tensor(sizes, dtype=torch.float64) ** 2
    tokens = torch.ones(squares.shape[:2], dtype=torch.long)
    labels = tuple("abcd"[: len(squares)])
    return Statistics(labels, {"mlp_post.squares": squares}, tokens)


def test_chance_is_the_share_of_the_same_layers_not_one_over_the_languages():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(4, 2, 200, generator=generator)
    sizes[0, 0, :160] = 2.0  # most units of one layer are most active in the first language
    found = NeuronSet(("a",), {"mlp": torch.zeros(1, 2, 200, dtype=torch.bool)})
    found.masks["mlp"][0, 0, torch.randperm(200, generator=generator)[:60]] = True
    found.masks["mlp"][0, 1, torch.randperm(200, generator=generator)[:20]] = True
    table = responses(made_statistics(sizes.tolist()), "x", found)
    alone = (sizes.argmax(0) == 0).double().mean(1)
    assert table["chance"][0] == pytest.approx(float(60 * alone[0] + 20 * alone[1]) / 80) and table["share"][0] > 0.5
    row = claims(effects([("a", 80, 0.0, False, False, False)]), table).iloc[0]
    assert row["verdict"] == "nothing shown" and row["chance"] == pytest.approx(table["chance"][0])


def test_units_active_in_no_language_are_most_active_in_none():
    found = NeuronSet(("a", "b"), {"mlp": torch.ones(2, 1, 4, dtype=torch.bool)})
    table = responses(made_statistics([[[0, 0, 0, 1]], [[0, 0, 2, 1]], [[0, 0, 1, 0]]]), "x", found)
    assert table["most_active"].tolist() == [0, 1] and table["chance"].tolist() == [0, 0.25]


def test_the_method_finds_again_and_what_cannot_be_tested_is_named(audits, model, world, planted):
    survival = audits["planted"]["survival"]
    assert set(survival["control"]) == {"romanised", "shuffled words"} and not len(audits["planted"]["skipped"])
    run = audit_run(model, world.corpora, planted.truth(), QUICK, "lape", progress=False)
    here = lsn.detect(run, "lape")
    for row in survival.itertuples():
        own, other = planted.truth()[row.language], here[row.language]
        assert row.found_again == len(own & other) / len(own)
    skipped = audits["decoy"]["skipped"]
    assert list(skipped["check"]) == ["survival", "domains"] and "no method is known" in skipped["reason"][0]
    domains, effects = (audits["planted"][name] for name in ("domains", "effects"))
    assert list(domains["own_rise"]) == pytest.approx(list(effects["own_rise"]))  # here the same text


def test_a_set_of_a_known_method_is_found_again_without_asking(run):
    found = lsn.detect(run, "lape", rate=0.1)
    assert _method({"a": found}, None) == lsn.METHODS["lape"](rate=0.1)
    assert _method({"a": found, "b": replace(found, method="by hand")}, None) is None


def test_the_page_says_it_in_words_and_leaves_tables_and_sets(audits, tmp_path):
    for name, study in audits.items():
        page = study.report(tmp_path / name)
        text = (tmp_path / name / "report.md").read_text()
        assert study["claims"]["words"][0] in text.replace("&lt;", "<") and page.is_file()
        assert re.search(r"latin-1.*: fewer than 10 neurons\.", text)
        assert "nan" not in text.split("## Provenance")[0].replace("tenant", "")
        assert pd.read_parquet(tmp_path / name / "tables" / "effects.parquet").equals(study["effects"])
        assert NeuronSet.load(tmp_path / name / "neurons" / "set") == study.found["set"]
    assert "Not tested: survival" in (tmp_path / "decoy" / "report.md").read_text()


def effects(rows):
    columns = ["language", "units", "own_rise", "above_random", "surely_hurt_most", "passes", "hurt_most_share"]
    return pd.DataFrame([(*row, 0.9)[:7] for row in rows], columns=columns).assign(set="x")


CASES = {
    "no units": [("a", 0, 0.0, False, False, False), ("b", 0, 0.0, False, False, False)],
    "specific": [("a", 2, 0.1, True, True, True), ("b", 0, 0.0, False, False, False)],
    "specific in part": [("a", 2, 0.1, True, True, True), ("b", 2, 0.1, True, False, False)],
    "needed, too little text to tell whether specific": [
        ("a", 2, 0.1, True, False, False, np.nan),
        ("b", 2, 0.1, True, False, False),
    ],
    "needed, not specific": [("a", 2, 0.1, True, False, False), ("b", 2, 0.1, False, False, False)],
    "hurts, not shown beyond random units": [("a", 2, 0.1, False, True, False), ("b", 2, 0.1, False, True, False)],
    "responds, no effect shown": [("a", 9, 0.0, False, False, False), ("b", 9, 0.0, False, True, False)],
    "nothing shown": [("a", 2, 0.0, False, False, False), ("b", 2, 0.0, False, False, False)],
    "no effect shown": [("a", 2, 0.0, False, False, False), ("b", 2, 0.0, False, False, False)],
}


def test_every_verdict_has_a_case():
    assert set(CASES) == {name for name, *_ in VERDICTS}


@pytest.mark.parametrize("name", CASES)
def test_verdicts(name):
    counts = [row[1] for row in CASES[name]]
    most = counts if name == "responds, no effect shown" else [each // 2 for each in counts]
    active = pd.DataFrame({"set": "x", "units": counts, "most_active": most, "chance": 0.5})
    row = claims(effects(CASES[name]), active[:0] if name == "no effect shown" else active).iloc[0]
    assert row["verdict"] == name and "nan" not in row["words"]


def test_caveats_name_lost_units_outliers_and_broken_texts():
    common = {"set": ["x"], "language": ["fr"]}
    tables = {
        "effects": pd.DataFrame({**common, "units": [3]}),
        "survival": pd.DataFrame({**common, "control": ["romanised"], "note": [""], "before": [3], "survival": [0.1],
                                  "ceiling": [0.9]}),
        "outliers": pd.DataFrame({**common, "outliers": [1], "own_rise": [0.2], "own_rise_of_outliers": [0.15]}),
        "off_target": pd.DataFrame({**common, "collapse": ["code"]}),
        "domains": pd.DataFrame({**common, "domain": ["news"], "own_hurt_most": [False], "units": [3]}),
        "skipped": pd.DataFrame({"set": ["x", "y"], "check": ["one", "two"], "reason": ["why.", "how."]}),
    }  # fmt: skip
    assert list(caveats(tables, "x")) == [
        "fr: fewer than 10 neurons.", "fr: the method finds few of the units again on romanised text.",
        "fr: a few outlier units alone have more than half of the effect.", "fr: the model breaks on code.",
        "fr: not hurt most in the domain news.", "Not tested: one, as why.",
    ]  # fmt: skip


def test_attention_units_of_a_mixture_of_experts_are_measured(hugging_face, load):
    """No method needs to be named, and zero is what the edited output projection gives."""
    texts = {"sw": ["Mvua kubwa ilinyesha milimani"] * 9, "ta": ["நேற்று மழை", "ஆற்றில் வெள்ளம்"] * 5}
    texts = {label: [f"{text} {i}" for i, text in enumerate(each)] for label, each in texts.items()}
    corpora = lsn.load_corpora(texts)
    mask = torch.rand(2, 2, 32, generator=torch.Generator().manual_seed(0)) < 0.2
    found = NeuronSet(("sw", "ta"), {"z": mask}, "drawn")
    study = audit(found, load("mixtral"), corpora, replace(QUICK, length=16, evaluation_tokens=48), progress=False)
    edited, losses = hugging_face("mixtral"), []
    with torch.no_grad():
        for layer, each in enumerate(edited.model.layers):
            each.self_attn.o_proj.weight[:, mask[0, layer]] = 0
        stream = [i for text in corpora["sw"].hold_out for i in (0, *tiny_tokenizer()(text)["input_ids"])]
        blocks = torch.tensor(stream[:48]).view(-1, 16)
        scored = blocks[:, 1:].flatten() != 0  # a separator is no target
        for each in (edited, hugging_face("mixtral")):
            logits = each(blocks).logits[:, :-1].flatten(0, 1)
            losses.append(float(torch.nn.functional.cross_entropy(logits[scored], blocks[:, 1:].flatten()[scored])))
    row = study["effects"].set_index("language").loc["sw"]
    assert row["own_rise"] == pytest.approx(losses[0] - losses[1], abs=1e-4)
    assert not {"set", "all"} & set(study["skipped"].loc[study["skipped"]["check"].eq("activity"), "set"])


def test_what_does_not_fit_is_refused_before_anything_is_measured(model, world, planted, monkeypatch):
    truth = planted.truth()
    monkeypatch.setattr("lsn_lens.studies.auditing.collect", None)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    wrong = {
        "another model": (replace(truth, origin={"model": "m", "fingerprint": "0" * 32}), ValueError, "another model"),
        "shape": (NeuronSet(truth.languages, {"mlp": torch.ones(4, 2, 9).bool()}), ValueError, "9"),
        "language": (NeuronSet(("fr",), {"mlp": truth.masks["mlp"][:1]}), KeyError, "no text for"),
        "nothing": ({}, ValueError, "expected a set"),
        "no set": ({"x": 3}, ValueError, r"sets\['x'\] is 3"),
    }
    for sets, error, words in wrong.values():
        with pytest.raises(error, match=words):
            audit(sets, model, world.corpora, QUICK, progress=False)
    for settings in ({"seeds": 18}, {"prompts": 0}, {"multiple": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            AuditSettings(**settings)
