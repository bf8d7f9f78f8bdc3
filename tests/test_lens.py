import json

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BACKENDS, D_MODEL, LAYERS, VOCABULARY, every_model, tiny_model, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.analysis.lens.layers import check_lens, logit_lens, working_language
from lsn_lens.analysis.lens.probes import WordProbe, first_tokens, read_probes, word_probes
from lsn_lens.analysis.lens.vocabulary import exclusive, token_languages
from lsn_lens.labels import COLUMNS
from lsn_lens.text.scripts import script_of

FINAL_NORM = {
    "gpt2": "transformer.ln_f", "bloom": "transformer.ln_f", "opt": "model.decoder.final_layer_norm",
    "neox": "gpt_neox.final_layer_norm",
}  # fmt: skip
TEXTS = {
    "en": ["the bridge is closed and the river is high", "the rain is high", "the bridge"],
    "fr": ["la rivière est haute et le pont est fermé", "la pluie est haute", "le pont"],
    "zh": ["雨后河水上涨桥已经关闭", "桥已经关闭", "河水上涨"],
}


def batch():
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return ids, mask


@pytest.fixture(scope="module")
def corpora():
    return lsn.load_corpora({label: texts * 3 for label, texts in TEXTS.items()}, hold_out=1 / 3)


@pytest.fixture(scope="module")
def labels(corpora):
    return token_languages(tiny_tokenizer(), corpora, at_least=2, ratio=5, vocabulary=VOCABULARY, progress=False)


def count_hooks(model):
    return sum(len(point._forward_hooks) for point in {id(p): p for p in model.hook_dict.values()}.values())


@every_model
@torch.no_grad()
def test_layers_are_those_of_hugging_face(load, hugging_face, architecture, backend):
    model, original = load(architecture, backend), hugging_face(architecture)
    ids, mask = batch()
    out = original(ids, attention_mask=mask, output_hidden_states=True)
    norm = original.get_submodule(FINAL_NORM.get(architecture, "model.norm"))
    cap = getattr(original.config, "final_logit_softcapping", None)

    def head(hidden):
        logits = original.lm_head(hidden)
        return cap * torch.tanh(logits / cap) if cap else logits

    kept, before = mask.bool(), count_hooks(model)
    normed, raw = (logit_lens(model, ids, mask, norm=norm) for norm in (True, False))
    assert len(normed) == len(raw) == LAYERS + 1
    for layer in range(LAYERS):
        hidden = out.hidden_states[layer]
        torch.testing.assert_close(normed[layer][kept], head(norm(hidden))[kept], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(raw[layer][kept], head(hidden)[kept], rtol=1e-4, atol=1e-4)
    for each in (normed, raw):  # the last is the model's own, with its norm, either way
        torch.testing.assert_close(each[-1][kept], out.logits[kept], rtol=1e-4, atol=1e-4)
    check_lens(model)
    assert count_hooks(model) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lens_reduces_layer_by_layer_and_picks_positions(load, backend):
    model, (ids, mask) = load("llama", backend), batch()
    whole, seen = logit_lens(model, ids, mask), []

    def reduce(logits):
        seen.append(tuple(logits.shape))
        return logits.sum()

    at = torch.tensor([8, 5])
    sums = logit_lens(model, ids, mask, at=at, reduce=reduce)
    assert seen == [(2, 1, VOCABULARY)] * (LAYERS + 1)
    for each, total in zip(whole, sums, strict=True):
        torch.testing.assert_close(each[[0, 1], at].sum(), total)


def test_a_lens_that_is_not_the_model_is_refused(load, monkeypatch):
    model = load("gemma2", "bridge")
    monkeypatch.setattr(model.cfg, "output_logits_soft_cap", -1.0)  # as if the cap were not known
    with pytest.raises(ValueError, match="not the model's output"):
        check_lens(model)
    with pytest.raises(ValueError, match="padding before tokens"):
        logit_lens(load("llama"), batch()[0], torch.tensor([[0] + [1] * 8] * 2))


@pytest.fixture(scope="module", params=BACKENDS)
def identity(request, tmp_path_factory):
    """A model whose blocks write nothing: every layer is the embedding."""
    hf_model = tiny_model("llama")
    for name, weight in hf_model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data.zero_()
    folder = tmp_path_factory.mktemp("identity")
    hf_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return lsn.load_model(folder, backend=request.param, device="cpu"), hf_model


@torch.no_grad()
def test_a_model_that_does_nothing_has_a_flat_curve(identity, corpora, labels):
    model, hf_model = identity
    ids, mask = batch()
    expected = hf_model.lm_head(hf_model.model.norm(hf_model.model.embed_tokens(ids)))
    for each in logit_lens(model, ids, mask):
        torch.testing.assert_close(each[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    table = working_language(model, corpora, labels, progress=False)
    for value in ("share", "probability", "coverage"):
        wide = table.pivot(index=["text", "language"], columns="layer", values=value)
        assert np.allclose(wide.sub(wide[0], axis=0), 0, atol=1e-6)


def slow(model, documents, labels, top_k):
    """Share, probability and coverage by layer and language, token by token."""
    found = []
    for text in documents:
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        layers = []
        for logits in logit_lens(model, torch.tensor([ids])):
            counts, mass = np.zeros(len(labels.languages)), np.zeros(len(labels.languages))
            for row in logits[0, 1:]:
                for token in row.argsort(descending=True)[:top_k].tolist():
                    if labels.labels[token] >= 0:
                        counts[labels.labels[token]] += 1
                mass += [float(row.softmax(-1)[labels.labels == place].sum()) for place in range(len(mass))]
            n = len(ids) - 1
            layers.append(
                [counts / counts.sum() if counts.sum() else counts * np.nan, mass / n, [counts.sum() / n / top_k]]
            )
        found.append(layers)
    return tuple(np.nanmean([[each[i] for each in layers] for layers in found], 0) for i in range(3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_are_those_of_a_slow_count(load, labels, backend):
    model = load("llama", backend)
    table = working_language(model, TEXTS, labels, top_k=4, progress=False)
    for text, documents in TEXTS.items():
        share, mass, coverage = slow(model, documents, labels, 4)
        rows = table[table["text"] == text]
        for value, expected in (("share", share), ("probability", mass)):
            assert np.allclose(
                rows.pivot(index="layer", columns="language", values=value)[list(TEXTS)], expected, atol=1e-6
            )
        assert np.allclose(rows.groupby("layer")["coverage"].first(), coverage[:, 0])
        ids = [model.tokenizer(each, add_special_tokens=False)["input_ids"] for each in documents]
        real = [
            [np.mean([labels.labels[i] == k for i in row if labels.labels[i] >= 0]) for k in range(3)] for row in ids
        ]
        assert np.allclose(rows[rows["layer"] == 0]["text_share"], np.nanmean(real, 0))
    assert (table["documents"] + table["empty"] == 3).all()
    assert set(table["text"]) == set(TEXTS) and table["layer"].max() == LAYERS


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_layer_is_the_models_own_distribution(load, labels, backend):
    model = load("llama", backend)
    ids = torch.tensor([[0, *model.tokenizer(TEXTS["fr"][0], add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        probability = model(ids, return_type="logits")[0, 1:].softmax(-1).mean(0) @ labels.indicator
    table = working_language(model, {"fr": TEXTS["fr"][:1]}, labels, norm=False, progress=False)
    assert np.allclose(table[table["layer"] == LAYERS]["probability"], probability, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_works_under_an_intervention(load, labels, backend):
    model = load("llama", backend)
    mask = torch.zeros(1, LAYERS, 48, dtype=torch.bool)
    mask[:, 0] = True
    neurons, probes = lsn.NeuronSet(("fr",), {"mlp": mask}, "all of the first block"), [PROBE]
    before, hooks = working_language(model, TEXTS, labels, progress=False), count_hooks(model)
    words = word_probes(model, probes, progress=False)
    with lsn.intervene(model, neurons, lsn.zero):
        after = working_language(model, TEXTS, labels, progress=False)
        changed = word_probes(model, probes, progress=False)
    for one, two, value in ((before, after, "probability"), (words, changed, "log_odds")):
        old, new = (each.dropna(subset=[value]) for each in (one, two))  # pairs of words that cannot be compared
        same = np.isclose(old[value], new[value])
        assert same[old["layer"] == 0].all()  # what enters the first block does not know
        assert not same[old["layer"] > 0].any()
    assert count_hooks(model) == hooks
    pd.testing.assert_frame_equal(working_language(model, TEXTS, labels, progress=False), before)


def test_a_token_is_exclusive_by_count_and_rate():
    counts = torch.tensor([[30, 10, 2, 10, 0, 48], [0, 1, 0, 2, 5, 192]])  # 100 and 200 tokens of text
    assert exclusive(counts, 3, 10).tolist() == [0, 0, -1, 0, 1, -1]
    assert exclusive(counts, 3, 21).tolist() == [0, -1, -1, -1, 1, -1]  # rates 0.1 and 0.005, 0.1 and 0.01
    assert exclusive(counts, 1, 4.1).tolist() == [0, 0, 0, 0, 1, -1]
    assert exclusive(torch.zeros(2, 3, dtype=torch.long), 1, 10).tolist() == [-1, -1, -1]


def test_scripts_of_letters():
    expected = {
        "a": "LATIN", "é": "LATIN", "ệ": "LATIN", "A": "LATIN", "桥": "HAN", "々": "HAN", "か": "HIRAGANA",
        "カ": "KATAKANA", "\uff76": "KATAKANA", "ー": "KATAKANA", "я": "CYRILLIC", "한": "HANGUL", "ि": "DEVANAGARI",
        "3": None, " ": None, ".": None, "\ufffd": None, "ʰ": "LATIN", "\u0301": None,
    }  # fmt: skip
    assert {letter: script_of(letter) for letter in expected} == expected


def test_labels_and_their_bias_on_the_demo():
    tokenizer = transformers.AutoTokenizer.from_pretrained(lsn.model.checkpoints.DEMO_MODEL)
    corpora = lsn.load_corpora("demo", ["en", "fr", "zh", "ja"])
    labels = token_languages(tokenizer, corpora, max_tokens=2000, progress=False)
    place = labels.languages.index

    def label(text):
        (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        return labels.labels[token]

    assert label(" the") == place("en") and label(" les") == place("fr") and label("の") == place("ja")
    assert label(".") == -1 and labels.labels[tokenizer.all_special_ids].eq(-1).all()
    owner = labels.scripts.set_index("script")["owner"].to_dict()
    assert owner["HIRAGANA"] == "ja" and owner["HAN"] == "none" and owner["LATIN"] == "none"
    # a token seen in no text is told by its kana, not by its Han
    unseen = [i for i in range(len(tokenizer)) if labels.by_script[i]]
    assert unseen and all(any(script_of(c) in ("HIRAGANA", "KATAKANA") for c in tokenizer.decode([i])) for i in unseen)
    confusion, coverage = labels.confusion(), labels.coverage().set_index("language")
    ids = [i for text in corpora["fr"].hold_out for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = ids[: int(labels.held_out[1].sum())]
    assert {confusion.index.name, *labels.scripts} - set(confusion) <= COLUMNS
    assert confusion.loc["fr", "fr"] == pytest.approx(np.mean([int(labels.labels[i]) == 1 for i in ids]))
    assert np.allclose(confusion.sum(axis=1), 1)
    assert np.allclose(coverage[["own", "other", "none"]].sum(axis=1), 1)
    assert coverage.loc["ja", "precision"] == pytest.approx(confusion.loc["ja", "ja"] / confusion["ja"].sum())
    assert (coverage["precision"] > 0.9).all() and coverage.loc["fr", "none"] > coverage.loc["ja", "none"]
    chance = labels.chance().set_index("language")
    assert np.allclose(chance.sum(), 1)
    assert chance.loc["fr", "vocabulary_share"] == pytest.approx(
        int((labels.labels == 1).sum()) / int((labels.labels >= 0).sum())
    )
    by_text = token_languages(tokenizer, corpora, by="text", max_tokens=2000, progress=False)
    assert torch.equal(by_text.labels, torch.where(labels.by_script, -1, labels.labels)) and not by_text.by_script.any()
    only = token_languages(tokenizer, corpora, by="script", max_tokens=2000, progress=False)
    assert set(only.labels.unique().tolist()) == {-1, place("ja")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1}, "ratio=1"), ({"at_least": 0}, "at_least=0"), ({"at_least": 10**6}, "no token belongs"),
        ({"corpora": {}}, "two languages"), ({"vocabulary": 5}, "do not belong together"),
    ],
)  # fmt: skip
def test_bad_settings_of_labels(corpora, change, message):
    settings = {"corpora": corpora, "by": "text", **change}
    with pytest.raises(ValueError, match=message):
        token_languages(tiny_tokenizer(), progress=False, **settings)


def test_bad_settings_of_the_curve(load, labels, corpora):
    with pytest.raises(ValueError, match="top_k=0"):
        working_language(load("llama"), TEXTS, labels, top_k=0, progress=False)
    with pytest.raises(ValueError, match="labels are for 300 token ids"):
        short = token_languages(tiny_tokenizer(), {k: corpora[k] for k in ("en", "zh")}, at_least=1, progress=False)
        object.__setattr__(short, "labels", short.labels[:300])
        working_language(load("llama"), TEXTS, short, progress=False)
    with pytest.raises(ValueError, match="more than 64"):
        working_language(load("llama"), {"en": ["the rain " * 60]}, labels, progress=False)
    mask = torch.ones(1, LAYERS, D_MODEL, dtype=torch.bool)
    broken = lsn.intervene(load("llama"), lsn.NeuronSet(("en",), {"resid": mask}, ""), lsn.scale(1e38))
    with broken, pytest.raises(ValueError, match="too strong"):
        working_language(load("llama"), TEXTS, labels, progress=False)


PROBE = WordProbe(
    {"en": "the river", "fr": "la"}, {"en": "bridge", "fr": "pont", "zh": "桥", "xx": "bridges"}, "bridge"
)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_word_probes_by_hand(load, backend):
    model = load("llama", backend)
    table = word_probes(
        model, [PROBE, WordProbe({"en": "and the"}, {"fr": "pont", "en": "river"})], top_k=30, progress=False
    )
    prompts, differences, kept = ["the river", "and the"], [], []
    for prompt, word in zip(prompts, ("bridge", "river"), strict=True):
        ids = [0, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        p = model(torch.tensor([ids]), return_type="logits")[0, -1].double().softmax(-1)
        one, two = (first_tokens(model.tokenizer, prompt, each) for each in (word, "pont"))
        differences.append(float(p[one].sum().log() - p[two].sum().log()))
        kept.append(bool(set(p.argsort(descending=True)[:30].tolist()) & {*one, *two}))
    row = table.query("text == 'en' and layer == @LAYERS and language == 'en' and other == 'fr'").squeeze()
    assert row["log_odds"] == pytest.approx(np.mean(differences), abs=1e-4)
    assert row["probes"] == 2 and row["excluded"] == 0 and row["kept"] == np.mean(kept)
    ahead = [d > 0 for d, k in zip(differences, kept, strict=True) if k]
    assert row["share"] == pytest.approx(np.mean(ahead) if ahead else np.nan, nan_ok=True)
    back = table.query("text == 'en' and layer == @LAYERS and language == 'fr' and other == 'en'").squeeze()
    assert back["log_odds"] == -row["log_odds"]


def test_words_with_a_common_first_token_are_left_out_and_counted(load):
    model = load("llama")
    table = word_probes(model, [PROBE], progress=False)
    left_out = pd.DataFrame(table.attrs["excluded"])
    assert (left_out["reason"] == "the same first token").any()
    same = [tuple(sorted(pair)) for pair in left_out[["language", "other"]].to_numpy()]
    for text in PROBE.prompts:
        first = {k: set(first_tokens(model.tokenizer, PROBE.prompts[text], w)) for k, w in PROBE.words.items()}
        for pair in (("en", "fr"), ("en", "xx"), ("fr", "zh")):
            shared = bool(first[pair[0]] & first[pair[1]])
            rows = table.query("text == @text and language == @pair[0] and other == @pair[1]")
            assert (rows["excluded"] == shared).all() and (rows["probes"] == (not shared)).all() and len(rows)
            assert rows["log_odds"].isna().all() == shared
            assert (pair in same) or not shared
    spelled = pd.DataFrame(table.attrs["first_tokens"]).set_index(["text", "language"])["tokens"]
    assert all(PROBE.words["fr"].startswith(each.strip()) for each in spelled["en", "fr"])


def test_first_tokens_are_read_in_place():
    tokenizer = transformers.AutoTokenizer.from_pretrained(lsn.model.checkpoints.DEMO_MODEL)
    spelled = {
        (prompt, word): [tokenizer.decode([i]) for i in first_tokens(tokenizer, prompt, word)]
        for prompt, word in (("Ouvrez d'abord le", "fichier"), ("首先打开", "文件"))
    }
    assert spelled["Ouvrez d'abord le", "fichier"] == [" fichier"]  # "f" without a space spells less
    assert spelled["首先打开", "文件"] == ["文件", " 文件"]


def test_probes_from_files(tmp_path, load):
    probes = read_probes("demo")
    assert len(probes) == 12 and all(set(p.words) == set(p.prompts) and len(p.words) == 8 for p in probes)
    path = tmp_path / "probes.jsonl"
    path.write_text(
        json.dumps({"prompts": {"fr": "la"}, "words": {"fr": "pont", "en": "bridge"}}) + "\n\n", encoding="utf-8"
    )
    assert read_probes(path) == [WordProbe({"fr": "la"}, {"fr": "pont", "en": "bridge"})]
    for line in ('{"prompts": {"fr": "la"}}', "[]", "{", '{"prompts": {"fr": "la"}, "words": {"fr": "pont"}}'):
        path.write_text(line, encoding="utf-8")
        with pytest.raises(ValueError, match="line 1: expected"):
            read_probes(path)
    with pytest.raises(ValueError, match="ends with a space"):
        word_probes(load("llama"), [WordProbe({"fr": "le "}, {"fr": "pont", "en": "bridge"})], progress=False)
    with pytest.raises(ValueError, match="no probes"):
        word_probes(load("llama"), [], progress=False)
    with pytest.raises(ValueError, match="no two words"):
        word_probes(load("llama"), [WordProbe({"en": "the"}, {"en": "rain", "xx": "rain"})], progress=False)
    with pytest.raises(ValueError, match="the model's context is 64"):
        word_probes(load("llama"), [WordProbe({"en": "the" * 70}, {"en": "rain", "fr": "pont"})], progress=False)
