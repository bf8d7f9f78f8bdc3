"""Neuron pages: what they say of planted neurons, beside plain Hugging Face modules and counts by hand."""

import html
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import BROWSER, after
from conftest import BACKENDS
from oracles import plain
from planted_world import LABELS, of
from scipy.stats import t

import lsn_lens as lsn
from lsn_lens import inspection
from lsn_lens.inspection.activity import Activity, scored_by
from lsn_lens.inspection.effects import effect_of
from lsn_lens.inspection.pages import pieces_of
from lsn_lens.inspection.rendering import MARKER, SCRIPT, fragment, write_pages
from lsn_lens.inspection.showing import units_in_turn
from lsn_lens.neurons.sites import WRITE_SITE

QUIET = {"progress": False}
SMALL = {**QUIET, "random": 4, "top": 2, "random_texts": 1, "evaluation": lsn.Layout(max_tokens=600)}


@pytest.fixture(scope="module")
def model(planted):
    return planted.load(device="cpu")


@pytest.fixture(scope="module")
def run(model, world):
    return lsn.collect(model, world.corpora, ["lap", "diffmean"], **QUIET)


def place(planted, role, label):
    unit = of(planted, role, label)
    return "mlp", int(unit["layer"]), int(unit["unit"])


@pytest.fixture(scope="module")
def pages(model, world, run, planted):
    truth = planted.truth(["specific"])
    return lsn.neuron_gallery(model, world.corpora, run, truth, **SMALL)


# a planted neuron shows its truth


def test_a_page_tells_the_truth_of_a_planted_neuron(pages, planted):
    assert len(pages) == len(LABELS)
    for page in pages.pages:
        (label,) = [each for each in LABELS if place(planted, "specific", each) == page.content.unit]
        others = [each for each in LABELS if each != label]
        unit = of(planted, "specific", label)
        active = page.tables["activity"].query("measure == 'firing rate'").set_index("language")
        assert active["low"][label] > 0.9 > 0.1 > active["high"][others].max()
        effects = page.tables["effects"].set_index("language")
        assert effects["low"][label] > 0.01 > effects["rise"][others].abs().max()
        assert effects["rise"][label] == pytest.approx(planted.measured["own_rise"][unit.name], rel=0.5)
        texts = page.tables["texts"]
        weakest_own = texts.query("language == @label")["peak"].abs().min()  # random texts too
        assert weakest_own > texts.query("language != @label")["peak"].abs().max()
        first, second, sets = page.content.lead
        assert f"in {label}, next" in first and f"the loss of {label} by +" in second
        assert label in sets


def test_a_decoy_shows_that_it_does_nothing(model, world, run, planted):
    label = "latin-1"
    page = lsn.show_neuron(model, world.corpora, run, *place(planted, "loud", label), **SMALL)
    effects = page.tables["effects"].set_index("language")
    assert effects["rise"].max() < 0.01
    assert effects["p"][label] > 1 / (1 + SMALL["random"])


# texts


def by_hand(planted, world, unit, texts):
    """Of each text the value of largest size, read from Hugging Face's own down projection."""
    hf_model, (_, layer, number), seen, found = plain(planted.folder), unit, [], []
    tokenizer = planted.load(device="cpu").tokenizer
    down = hf_model.get_submodule(f"model.layers.{layer}.mlp.down_proj")
    down.register_forward_pre_hook(lambda module, given: seen.append(given[0][0, 1:, number]))
    with torch.no_grad():
        for text in texts:
            hf_model(torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]]))
            found.append(float(max(seen[-1], key=abs)))
    return found


def test_the_strongest_texts_are_the_strongest(model, planted, world):
    unit = place(planted, "specific", "latin-2")
    found = inspection.top_texts(model, world.corpora, [unit], top=5, **QUIET)
    for label in ("latin-2", "cyrillic-1"):
        texts = list(world.corpora[label].find)
        peaks = by_hand(planted, world, unit, texts)
        order = sorted(range(len(texts)), key=lambda row: -abs(peaks[row]))[:5]
        some = found.top[unit][label]
        assert [each.peak for each in some] == pytest.approx([peaks[row] for row in order], rel=1e-3, abs=1e-6)
        for each in some:
            assert each.peak == pytest.approx(peaks[each.row], rel=1e-3, abs=1e-6)
            assert max(each.values, key=abs) == each.peak
            pieces, values = pieces_of(each, model.tokenizer)
            shown = "".join(pieces).removeprefix("<bos>").split()
            assert shown and " ".join(shown) in " ".join(texts[each.row].split())
            assert len(values) == len(pieces)


UNITS = [("mlp", 0, 1), ("mlp", 1, 3), ("resid", 1, 5), ("z", 0, 2)]


@pytest.mark.parametrize("kind", ["documents", "blocks"])
def test_parts_merge_to_the_whole(model, world, tmp_path, kind):
    layout = lsn.Layout(kind, {"documents": 64, "blocks": 32}[kind], max_tokens=500, batch_tokens=100, shards=7)
    options = {"top": 3, "random": 5, "layout": layout, **QUIET}
    whole = inspection.top_texts(model, world.corpora, UNITS, **options)
    assert whole.is_whole
    parts = [inspection.top_texts(model, world.corpora, UNITS, part=(i, 3), **options) for i in range(3)]
    assert not any(each.is_whole for each in parts)
    random.Random(0).shuffle(parts)
    stored = [inspection.TopTexts.load(each.save(tmp_path / f"{i}.json")) for i, each in enumerate(parts)]
    assert stored == parts
    assert inspection.merge_texts(parts) == whole
    assert inspection.merge_texts([inspection.merge_texts(stored[:2]), stored[2]]) == whole
    for each in (whole, *parts):  # never more is kept than asked for
        assert all(len(some) <= 3 for languages in each.top.values() for some in languages.values())
    rows = {tuple(each.row for each in languages["latin-1"]) for languages in whole.random.values()}
    assert len(rows) == 1 and len(next(iter(rows))) == 5
    with pytest.raises(ValueError, match="in several parts"):
        inspection.merge_texts([parts[0], parts[0]])
    other = inspection.top_texts(model, world.corpora, UNITS, part=(0, 3), **{**options, "top": 2})
    with pytest.raises(ValueError, match="parts differ in top"):
        inspection.merge_texts([parts[0], other])


def test_values_are_those_where_interventions_act(model, world):
    found = inspection.top_texts(model, world.corpora, UNITS, top=1, random=0, **QUIET)
    for unit in UNITS:
        (excerpt,) = found.top[unit]["cyrillic-2"]
        document = list(world.corpora["cyrillic-2"].find)[excerpt.row]
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(document, add_special_tokens=False)["input_ids"]]
        hook = f"blocks.{unit[1]}.{lsn.neurons.sites.SITES[WRITE_SITE[unit[0]]].hook}"
        _, cache = model.run_with_cache(torch.tensor([ids]), names_filter=[hook])
        values = cache[hook][0].flatten(1)[:, unit[2]]
        values[0] = 0
        expected = values[excerpt.first : excerpt.first + len(excerpt.ids)].tolist()
        assert excerpt.values == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_tokens_that_share_a_character_form_one_piece():
    model = lsn.load_model("demo", device="cpu")
    text = "日本 ☃𐍈é"
    ids = tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    values = tuple(float(-place) for place in range(len(ids)))
    pieces, shown = pieces_of(inspection.Excerpt(0, 1.0, 0, ids, values), model.tokenizer)
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)
    assert len(pieces) < len(ids) and min(shown) == min(values)


# weights


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_and_neighbours_are_those_of_plain_weights(planted, backend):
    model, hf_model = planted.load(backend=backend, device="cpu"), plain(planted.folder)
    layers, tokenizer = hf_model.model.layers, model.tokenizer
    _, layer, unit = place(planted, "specific", "latin-1")
    down = layers[layer].mlp.down_proj.weight[:, unit]
    logits = hf_model.lm_head.weight @ (hf_model.model.norm.weight * down)
    read = hf_model.model.embed_tokens.weight @ layers[layer].mlp.gate_proj.weight[unit]
    given = ((logits, inspection.written_tokens, "promoted"), (read, inspection.read_tokens, "raises"))
    for values, function, side in given:
        table = function(model, layer, unit, count=7)
        top = table.query("side == @side")
        assert top["id"].tolist() == values.topk(7).indices.tolist()
        assert table["weight"].tolist() == pytest.approx(values[table["id"].tolist()].tolist(), rel=1e-3)
        assert table["token"].tolist() == [tokenizer.decode([each]) for each in table["id"]]
        assert table["spread"][0] == pytest.approx(float(values.std()), rel=1e-3)
    similar = inspection.similar_neurons(model, layer, unit, count=5)
    cosines = {
        (each, other): float(torch.cosine_similarity(down, layers[each].mlp.down_proj.weight[:, other], dim=0))
        for each in range(2) for other in range(planted.shape[1])
    }  # fmt: skip
    del cosines[layer, unit]
    assert similar["cosine"].tolist() == pytest.approx(sorted(cosines.values(), reverse=True)[:5], rel=1e-4)
    for row in similar.to_dict("records"):
        assert row["cosine"] == pytest.approx(cosines[row["layer"], row["unit"]], rel=1e-4)


def test_a_norm_that_centres_is_passed_with_its_centring(ungated):
    _, planted = ungated
    model, hf_model = planted.load(device="cpu"), plain(planted.folder)
    down = hf_model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[:, 3]
    logits = hf_model.get_output_embeddings().weight @ (
        hf_model.gpt_neox.final_layer_norm.weight * (down - down.mean())
    )
    table = inspection.written_tokens(model, 1, 3, count=6)
    assert table["weight"].tolist() == pytest.approx(logits[table["id"].tolist()].tolist(), rel=1e-3, abs=1e-6)
    assert set(table["id"][:6]) == set(logits.topk(6).indices.tolist())


# numbers


def test_effects_are_those_of_the_loss_table_beside_different_units(model, world, run, planted):
    unit = place(planted, "specific", "cyrillic-1")
    held = lsn.evaluation.held_out(model, world.corpora, SMALL["evaluation"], **QUIET)
    effect = effect_of(held, run.statistics, unit, lsn.zero, 5, progress=False)
    assert effect.language == "cyrillic-1" and effect.random == 5
    own = lsn.NeuronSet.from_dict({"x": [unit[1:]]}, planted.shape)
    losses = lsn.perplexity_table(model, world.corpora, own, layout=SMALL["evaluation"], **QUIET)
    expected = losses.query("intervened == 'x'").set_index("evaluated")["nll_change"]
    table = effect.table.set_index("language")
    assert table["rise"].to_dict() == pytest.approx(expected.to_dict(), abs=1e-6)
    assert (table["low"] <= table["rise"]).all() and (table["rise"] <= table["high"]).all()
    assert (table["random_low"] <= table["random_mean"]).all() and (table["q"] >= table["p"]).all()
    assert table["p"].between(1 / 6, 1).all()


def test_intervals_of_means_are_those_of_shards(run):
    table = Activity(run).of("mlp", 1, 4).query("measure == 'mean'").set_index("language")
    for label in LABELS:
        sums, tokens = np.array([[float(x["mlp_post.sum"][1, 4]), float(x["tokens"][1])] for x in run.parts(label)]).T
        mean, number = sums.sum() / tokens.sum(), len(sums)
        error = np.sqrt(number * np.var(sums - mean * tokens, ddof=1)) / tokens.sum()
        half = t.ppf(0.975, number - 1) * error
        row = [table[name][label] for name in ("value", "low", "high")]
        assert row == pytest.approx([mean, mean - half, mean + half], rel=1e-6)


def test_ranks_count_the_units_above(run):
    scored = scored_by(run)
    assert set(scored.methods) >= {"lap"} and "plnd" in scored.left_out
    _, order, found = scored.methods["lap"]
    table = scored.of("mlp", 1, 4).query("method == 'lap'").set_index("language")
    for number, label in enumerate(LABELS):
        values = order["mlp"][number]
        ranked = sorted(values[values.isfinite()].tolist(), reverse=True)
        own = float(values[1, 4])
        assert table["of"][label] == len(ranked)
        assert np.isnan(table["rank"][label]) if own not in ranked else table["rank"][label] == 1 + ranked.index(own)
        assert table["found"][label] == bool(found.masks["mlp"][number, 1, 4])
    assert scored.without("resid").keys() >= {"lap"}


# pages on disk


def test_a_gallery_on_disk_asks_for_nothing_from_elsewhere(pages, tmp_path):
    index = pages.report(tmp_path / "g")
    files = sorted(path.name for path in index.parent.iterdir())
    assert files == sorted([MARKER, SCRIPT, "index.html", *(each.content.file for each in pages.pages)])
    for name in (each for each in files if each.endswith(".html")):
        text = (index.parent / name).read_text(encoding="utf-8")
        places = re.findall(r"""(?:src|href)=["']?([^"' >]+)""", text)
        assert set(places) <= set(files), places
        assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    text = index.read_text(encoding="utf-8")
    assert "4 of the 4 units of the set." in text
    assert text.count("<tbody data-languages") == 4
    page = pages[0]
    again = page.report(tmp_path / "g")  # one page in place of the gallery
    assert sorted(each.name for each in again.parent.iterdir()) == sorted(
        [MARKER, SCRIPT, "index.html", page.content.file]
    )


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_sorts_and_filters_the_index(pages, tmp_path):
    table, index = pages.to_frame(), pages.report(tmp_path / "g")
    head = [*table.columns].index("loss increase") + 1  # after the link
    language = table["found for"].iloc[0].split(", ")[0]
    acts = f'document.querySelectorAll("th button")[{head}].click(); const all = document.querySelector("#language");'
    acts += f'all.value = "{language}"; all.dispatchEvent(new Event("change"));'
    bodies = after(index, acts).split("<tbody")[1:]
    ranked = table.sort_values("loss increase", ascending=False)
    links = [re.findall(r'href="([^"]*)"', each)[0] for each in bodies]
    assert links == [
        "{}-{}-{}.html".format(*unit) for unit in ranked[["basis", "layer", "unit"]].itertuples(index=False)
    ]
    own = [language in each.split(", ") for each in ranked["found for"]]
    assert ["hidden" in each.split(">")[0] for each in bodies] == [not each for each in own] and len(set(own)) == 2


def test_texts_cannot_become_html(pages, tmp_path):
    evil = '<img/src=x/onerror=alert(1)></script>"'
    page = pages[0].content
    texts = tuple(replace(each, pieces=(evil,), values=(1.0,)) for each in page.texts)
    shown = replace(page, texts=texts, model=evil, notes={**page.notes, "effects": evil})
    text = fragment(shown)
    assert "<img" not in text and "</script" not in text
    data = json.loads(html.unescape(re.findall(r'data-text="([^"]*)"', text)[0]))
    assert html.unescape(data["tokens"][0]) == evil and "<" not in data["tokens"][0]  # CircuitsVis reads html
    write_pages(tmp_path / "g", [shown], evil, evil)
    assert "<img" not in (tmp_path / "g" / "index.html").read_text(encoding="utf-8")


def test_a_notebook_shows_the_page_and_the_index(pages):
    inside = pages[0]._repr_html_()
    assert inside.count('<script type="module">') == 1 and "CircuitsVis.ColoredTokens" in inside
    assert not re.search(r"<(script|link|img)[^>]* (src|href)=|unpkg|@import", inside)
    assert "4 of the 4 units" in pages._repr_html_()


def test_units_come_by_turns_and_by_score(planted):
    found = lsn.NeuronSet.from_dict({"a": [(0, 1), (0, 2), (1, 0)], "b": [(0, 2), (1, 3)]}, (2, 5))
    places = [(0, 1), (0, 2), (1, 3), (1, 0)]
    assert units_in_turn(found) == [("mlp", *each) for each in places]
    values = torch.full((2, 2, 5), -torch.inf)
    values[0, 1, 0], values[0, 0, 1], values[0, 0, 2] = 3.0, 2.0, 1.0
    values[1, 1, 3], values[1, 0, 2] = 9.0, 8.0
    scores = lsn.NeuronScores(("a", "b"), {"mlp": values}, "x")
    assert units_in_turn(found, scores) == [("mlp", *each) for each in [(1, 0), (1, 3), (0, 1), (0, 2)]]


# bad input


@pytest.mark.parametrize(
    ("unit", "said"),
    [(("mlp", 2, 0), "no unit 0 in layer 2 on basis 'mlp': the model has layers 0 to 1"),
     (("mlp", 0, 10**6), "with units 0 to"), (("mpl", 0, 0), "no basis 'mpl'; the bases are")],
)  # fmt: skip
def test_a_unit_that_is_not_there(model, world, run, unit, said):
    with pytest.raises(KeyError, match=said):
        lsn.show_neuron(model, world.corpora, run, *unit, **SMALL)


def test_other_bad_input(model, world, run, planted, tmp_path):
    with pytest.raises(ValueError, match="unit=-1: expected a whole number"):
        lsn.show_neuron(model, world.corpora, run, "mlp", 0, -1)
    with pytest.raises(ValueError, match="no units to show"):
        inspection.top_texts(model, world.corpora, [])
    with pytest.raises(ValueError, match="expected \\(i, n\\)"):
        inspection.top_texts(model, world.corpora, UNITS, part=(3, 3))
    with pytest.raises(ValueError, match=r"no (text|documents|usable)|empty|nothing"):
        lsn.show_neuron(model, {"en": [], "fr": []}, run, "mlp", 0, 0)
    with pytest.raises(ValueError, match="random=0"):
        lsn.show_neuron(model, world.corpora, run, "mlp", 0, 0, random=0, **QUIET)
    other = lsn.load_model(world.folder, device="cpu")
    with pytest.raises(ValueError, match="the run is from"):
        lsn.show_neuron(other, world.corpora, run, "mlp", 0, 0)
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match="expected \\('top texts', 1\\)"):
        inspection.TopTexts.load(path)


def test_a_folder_that_is_not_ours_is_left_alone(model, world, run, planted, pages, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "index.html").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("theirs", "file"):
        with pytest.raises(FileExistsError, match="give"):
            pages.report(tmp_path / place)
        with pytest.raises(FileExistsError, match="give"):
            lsn.neuron_gallery(model, world.corpora, run, planted.truth(), out=tmp_path / place)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["index.html"]
    (tmp_path / "theirs" / MARKER).write_text(json.dumps({"kind": "something else", "files": ["index.html"]}))
    with pytest.raises(FileExistsError, match="no folder of neuron pages"):
        pages.report(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "index.html").read_text() == "mine"
