"""Sharing Matters against hand-made activations, simulations, and Hugging Face's own tensors."""

import math
import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKENDS, SENTENCES, parts

import lsn_lens as lsn
from lsn_lens.analysis import contributions, sharing
from lsn_lens.methods.sharing import TYPES, Sharing, check_lengths
from lsn_lens.statistics.sums import Statistics

LABELS = ("en", "fr", "vi", "zh")


def statistics_of(gate, product=None, lengths=None, maximum=None, languages=LABELS):
    """Statistics from values `[language item layer unit]`; lengths `[language item]`, by default all the same."""
    gate = torch.as_tensor(gate, dtype=torch.float32)
    languages = languages[: len(gate)]
    product = gate if product is None else torch.as_tensor(product, dtype=torch.float32)
    lengths = torch.ones(gate.shape[:2]) if lengths is None else torch.as_tensor(lengths, dtype=torch.float32)
    kept = {"mlp_act.last": gate, "mlp_post.last": product, "length": lengths[:, :, None, None]}
    if maximum is not None:
        kept["mlp_act.maximum.skip_bos"] = torch.as_tensor(maximum, dtype=torch.float32)

    def read(key, layer):
        return dict(zip(languages, kept[key][:, :, layer], strict=True))

    return Statistics(languages, {}, torch.ones(len(gate), gate.shape[2]).long(), read=read)


def random_values(seed, languages=4, items=7, layers=2, units=40):
    draw = np.random.default_rng(seed)
    liking = draw.normal(0, 1, (languages, 1, layers, units))
    return draw.normal(0, 1, (languages, items, layers, units)) + liking


def type_of(active):
    """The type of one neuron in one item, from the definition."""
    count = sum(active)
    if count == len(active):
        return "all-shared"
    return {0: "non-activated", 1: "specific"}.get(count, "partial-shared")


def types_of(values):
    """Types `[item layer unit]` of values `[language item layer unit]`, one by one."""
    active = np.moveaxis(np.asarray(values) > 0, 0, -1)
    return np.array([type_of(each) for each in active.reshape(-1, active.shape[-1])]).reshape(active.shape[:-1])


def test_known_categories():
    active = [  # one row a language, one column a neuron
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    found = sharing.categories(statistics_of(np.array(active)[:, None, None]), 0)
    assert found.count.tolist() == [[4, 2, 1, 0, 2, 1]]
    assert found.owner.tolist() == [[-1, -1, 2, -1, -1, 3]]
    assert found.members.tolist() == [
        [[True, False, False, False, False, False]],
        [[False, True, False, False, True, False]],
        [[False, False, True, False, False, True]],
        [[False, False, False, True, False, False]],
    ]


@pytest.mark.parametrize("languages", [2, 3, 4])
def test_profiles_and_scores_follow_the_definition(languages):
    values = random_values(languages, languages)
    types, statistics = types_of(values), statistics_of(values)
    table = sharing.profile(statistics).set_index(["layer", "type"])
    for layer in range(2):
        for name in TYPES:
            shares = (types[:, layer] == name).mean(-1)
            expected = [shares.mean(), shares.min(), shares.max()]
            assert table.loc[(layer, name), ["mean", "minimum", "maximum"]].tolist() == pytest.approx(expected)
    specific = (types == "specific") & (values > 0)
    scores = Sharing().score(statistics).values["mlp"].numpy()
    share = specific.mean(1)
    assert np.array_equal(scores, np.where(share > 0, share, -np.inf))
    assert np.allclose(sharing.activity(statistics)["mean"].to_numpy(), (values > 0).mean((1, 3)).T.ravel())


def test_types_are_a_partition_and_two_languages_have_no_partial():
    for languages in (2, 3, 4):
        statistics = statistics_of(random_values(0, languages))
        assert (sharing.categories(statistics, 1).members.sum(0) == 1).all()
        table = sharing.profile(statistics)
        for column in ("mean", "chance", "chance_unrelated"):
            assert np.allclose(table.groupby("layer")[column].sum(), 1)
        partial = table[table["type"] == "partial-shared"]
        assert (partial[["mean", "maximum", "chance"]] == 0).all(axis=None) == (languages == 2)


def test_the_order_of_languages_does_not_matter():
    values = random_values(1)
    norms = torch.rand(2, 40)
    expected = statistics_of(values)
    frames = [sharing.profile(expected), sharing.repeatability(expected)]
    added = contributions.contribution(expected, norms).set_index(["layer", "language", "type"])
    for order in list(permutations(range(4)))[::5]:
        statistics = statistics_of(values[list(order)], languages=tuple(LABELS[i] for i in order))
        for frame, again in zip(frames, [sharing.profile(statistics), sharing.repeatability(statistics)], strict=True):
            pd.testing.assert_frame_equal(frame, again)
        again = contributions.contribution(statistics, norms).set_index(["layer", "language", "type"])
        pd.testing.assert_frame_equal(added, again.loc[added.index])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_text_in_all_languages_is_shared_or_not_activated(load, backend):
    model = load("llama", backend)
    corpora = lsn.load_corpora({label: list(SENTENCES) for label in LABELS}, hold_out=0.0)
    run = lsn.collect(model, corpora, ["sharing"], progress=False)
    means = sharing.profile(run.statistics).groupby("type")["mean"].mean()
    assert means["partial-shared"] == means["specific"] == 0
    assert means["all-shared"] > 0.1 < means["non-activated"]
    assert len(lsn.detect(run, "sharing", rate=1.0)) == 0


def test_the_definition_of_active():
    gate, up = random_values(2, 3), random_values(3, 3)
    statistics = statistics_of(gate, gate * up)
    for active, values in (("gate", gate), ("product", gate * up), ("abs", np.abs(gate * up))):
        for threshold in (0.0, 0.3):
            found = sharing.categories(statistics, 1, Sharing(active=active, threshold=threshold))
            assert np.array_equal(found.count.numpy(), (values[:, :, 1].astype(np.float32) > threshold).sum(0))
    assert [each.key for each in Sharing().statistics()] == ["mlp_act.last", "mlp_post.last"]
    assert [each.key for each in Sharing(active="abs").statistics()] == ["mlp_post.last"]


def test_active_at_any_token_looks_at_the_maximum():
    values, maximum = -np.ones((3, 2, 1, 4)), -np.ones((3, 2, 1, 4))
    maximum[0, :, 0, 1] = 5
    found = sharing.categories(statistics_of(values, maximum=maximum), 0, Sharing(position="any"))
    assert found.owner.tolist() == [[-1, 0, -1, -1]] * 2
    keys = [each.key for each in Sharing(position="any").statistics()]
    assert keys == ["mlp_act.maximum.skip_bos", "mlp_post.last"]


def test_the_threshold_is_strict_and_higher_ones_leave_fewer_active():
    assert sharing.categories(statistics_of(np.zeros((2, 1, 1, 3))), 0).count.sum() == 0
    exact = statistics_of(np.full((2, 1, 1, 3), 0.5))
    assert sharing.categories(exact, 0, Sharing(threshold=0.5)).count.sum() == 0
    assert sharing.categories(exact, 0, Sharing(threshold=0.25)).count.sum() == 6
    statistics = statistics_of(random_values(4))
    table = sharing.threshold_sweep(statistics).pivot_table(index="threshold", columns=["layer", "type"], values="mean")
    assert table.index.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    for layer in range(2):
        assert (np.diff(table[layer, "all-shared"]) <= 0).all()
        assert (np.diff(table[layer, "non-activated"]) >= 0).all()
    assert (table.iloc[-1] != table.iloc[0]).all()


@pytest.mark.parametrize("languages", [2, 3, 6])
def test_chance_agrees_with_a_simulation(languages):
    draw = np.random.default_rng(languages)
    rates = draw.uniform(0.1, 0.9, languages)
    drawn = draw.random((languages, 200_000)) < rates[:, None]
    counts = np.bincount(drawn.sum(0), minlength=languages + 1) / drawn.shape[1]
    expected = [counts[-1], counts[2:-1].sum(), counts[1], counts[0]]
    chance = sharing.chance_of_types(torch.tensor(rates)[:, None])[:, 0]
    assert np.allclose(chance.numpy(), expected, atol=0.005)
    assert float(chance.sum()) == pytest.approx(1)


def test_both_levels_of_chance_agree_with_shuffling():
    """Neurons shuffled in each language and item; items shuffled in each language."""
    values = random_values(5, 3, items=60, layers=1, units=200)
    draw = np.random.default_rng(0)
    values += draw.normal(0, 1.5, (1, 60, 1, 200))  # content that all languages share
    values += draw.normal(0, 2, (1, 1, 1, 200))  # neurons that are busy everywhere
    table = sharing.profile(statistics_of(values)).set_index("type")
    draw = np.random.default_rng(1)
    for column, axis in (("chance", -1), ("chance_unrelated", 1)):
        shuffled = [sharing.profile(statistics_of(draw.permuted(values, axis=axis))) for _ in range(30)]
        means = pd.concat(shuffled).groupby("type")["mean"].mean()
        assert np.allclose(table[column], means[list(TYPES)], atol=0.004)
    assert table.loc["all-shared", "mean"] > table.loc["all-shared", "chance_unrelated"] + 0.05
    assert table.loc["all-shared", "chance_unrelated"] > table.loc["all-shared", "chance"] + 0.02


def test_repeatability():
    active = np.zeros((2, 4, 1, 10))
    active[:, :, 0, :2] = 1  # all-shared in every item
    active[:, ::2, 0, 2:4] = 1  # in two items of four
    table = sharing.repeatability(statistics_of(active)).set_index("type")
    row = table.loc["all-shared"]
    assert (row["mean"], row["always"], row["items"]) == pytest.approx((0.3, 0.2, 4))
    assert row["chance"] == pytest.approx(0.4 * 0.2 * 0.4 * 0.2)
    assert row["chance_of_rates"] == pytest.approx((2 * 1 + 2 * 0.5**4) / 10)
    assert row["jaccard"] == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)  # four mixed pairs, two equal ones
    assert row["jaccard_chance"] == pytest.approx((4 * 0.08 / 0.52 + 0.16 / 0.64 + 0.04 / 0.36) / 6)
    assert table.loc["specific"][["mean", "always", "chance", "chance_of_rates"]].tolist() == [0, 0, 0, 0]
    assert math.isnan(table.loc["specific", "jaccard"])


def test_repeatability_of_a_draw_afresh_is_its_chance():
    draw = np.random.default_rng(0)
    table = sharing.repeatability(statistics_of(draw.normal(0, 1, (2, 4, 1, 40_000)))).set_index("type")
    assert np.allclose(table["always"], table["chance"], atol=0.003)
    assert (table["chance_of_rates"] >= table["always"]).all()
    present = [name for name in TYPES if name != "partial-shared"]
    assert np.allclose(table.loc[present, "jaccard"], table.loc[present, "jaccard_chance"], atol=0.01)


def test_contribution_follows_the_definition():
    gate, product = random_values(6, 3, units=60), random_values(7, 3, units=60)
    norms = np.random.default_rng(8).uniform(0.5, 2, (2, 60))
    table = contributions.contribution(statistics_of(gate, product), torch.from_numpy(norms))
    types, sizes = types_of(gate), np.abs(product.astype(np.float32).astype(float)) * norms
    for row in table.itertuples():
        each = sizes[LABELS.index(row.language), :, row.layer]
        has = types[:, row.layer] == row.type
        top = [set(np.argsort(-item)[:3].tolist()) for item in each]  # round(0.0488 * 60) = 3
        shares = [sum(has[item, unit] for unit in top[item]) / 3 for item in range(len(each))]
        assert row.top_share == pytest.approx(np.mean(shares))
        assert row.chance == pytest.approx(has.mean())
        assert row.sum_share == pytest.approx(((each * has).sum(1) / each.sum(1)).mean())
        assert row.mean == pytest.approx(np.mean([a[h].mean() for a, h in zip(each, has, strict=True) if h.any()]))
        assert row.maximum == pytest.approx(np.mean([a[h].max() for a, h in zip(each, has, strict=True) if h.any()]))
        assert row.minimum == pytest.approx(np.mean([a[h].min() for a, h in zip(each, has, strict=True) if h.any()]))
        assert row.coverage == pytest.approx(has.any(1).mean())
    for column in ("top_share", "chance", "sum_share"):
        assert np.allclose(table.groupby(["layer", "language"])[column].sum(), 1)


def test_contribution_does_not_see_signs_and_an_empty_type_is_not_zero():
    gate, norms = random_values(9, 2), torch.ones(2, 40)
    signs = np.where(np.random.default_rng(0).random(gate.shape) < 0.5, -1, 1)
    one = contributions.contribution(statistics_of(gate, gate), norms)
    other = contributions.contribution(statistics_of(gate, gate * signs), norms)
    pd.testing.assert_frame_equal(one, other)
    partial = one[one["type"] == "partial-shared"]
    assert partial[["mean", "maximum", "minimum"]].isna().all(axis=None)
    assert (partial[["coverage", "top_share"]] == 0).all(axis=None)
    gate[:, 1:], gate[:, 0] = -np.abs(gate[:, 1:]), 2.0  # the first item alone has all-shared neurons
    row = contributions.contribution(statistics_of(gate), norms).iloc[0]
    assert (row["type"], row["mean"], row["coverage"]) == ("all-shared", 2.0, pytest.approx(1 / 7))


def test_the_top_is_800_neurons_at_the_papers_width():
    assert contributions._highest(torch.rand(2, 16384)).sum(-1).tolist() == [800, 800]
    assert contributions._highest(torch.ones(1, 5))[0].tolist() == [True, False, False, False, False]
    with pytest.raises(ValueError, match=r"norms \(2, 39\).*\(2, 40\).*down_norms"):
        contributions.contribution(statistics_of(random_values(0)), torch.ones(2, 39))


@pytest.fixture(scope="module")
def runs(load):
    """A run on real text, by architecture and backend."""
    kept = {}

    def collected(architecture, backend):
        if (architecture, backend) not in kept:
            texts = {label: [SENTENCES[i], SENTENCES[i][:9], SENTENCES[i][:20]] for i, label in enumerate(LABELS)}
            corpora = lsn.load_corpora(texts, hold_out=0.0)
            methods = [Sharing(), Sharing(position="any")]
            run = lsn.collect(load(architecture, backend), corpora, methods, progress=False)
            kept[architecture, backend] = (texts, run.statistics)
        return kept[architecture, backend]

    return collected


def hugging_face_tensors(model, architecture, ids, layer):
    """Input and output of the down projection, and act(gate), at every token of one text."""
    seen, each = {}, parts(architecture, model, layer)
    hooks = [each.down.register_forward_hook(lambda _, given, out: seen.update(m=given[0], out=out))]
    if hasattr(each, "act"):
        hooks.append(each.act.register_forward_hook(lambda _, given, out: seen.update(act=out)))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return {"act": seen["m"], **seen}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_values_are_hugging_faces_at_the_last_real_token(runs, load, hugging_face, architecture, backend):
    model, tokenizer = hugging_face(architecture), load(architecture, backend).tokenizer
    texts, statistics = runs(architecture, backend)
    for layer in range(2):
        act, m, most = (
            statistics.documents(key, layer) for key in ("mlp_act.last", "mlp_post.last", "mlp_act.maximum.skip_bos")
        )
        for label in LABELS:
            rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[label]]
            assert len(set(map(len, rows))) > 1  # so some rows are padded
            for item, ids in enumerate(rows):
                expected = hugging_face_tensors(model, architecture, [tokenizer.bos_token_id, *ids], layer)
                assert torch.allclose(m[label][item], expected["m"].reshape(-1, m[label].shape[1])[-1], atol=1e-5)
                acts = expected["act"].reshape(-1, m[label].shape[1])
                assert torch.allclose(act[label][item], acts[-1], atol=1e-5)
                assert torch.allclose(most[label][item], acts[1:].amax(0), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_contributions_add_up_to_what_the_mlp_adds(runs, load, hugging_face, architecture, backend):
    original, model = hugging_face(architecture), load(architecture, backend)
    texts, statistics = runs(architecture, backend)
    unembedding = original.get_output_embeddings().weight.double()
    for layer in range(2):
        down = parts(architecture, original, layer).down
        bias = torch.zeros(32) if down.bias is None else down.bias
        products = statistics.documents("mlp_post.last", layer)["fr"]
        for item, text in enumerate(texts["fr"]):
            ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
            out = hugging_face_tensors(original, architecture, ids, layer)["out"].reshape(-1, 32)[-1]
            rows = contributions._down(model, layer)
            assert torch.allclose(products[item].double() @ rows + bias.double(), out.double(), atol=1e-5)
            for token in (5, 17):
                scores = contributions.effective_values(model, layer, products[item : item + 1], torch.tensor([token]))
                total = scores.sum() + unembedding[token] @ bias.double()
                assert float(total.detach()) == pytest.approx(
                    float((unembedding[token] @ out.double()).detach()), abs=1e-4
                )
        rows = down.weight if down.weight.shape[1] == 32 else down.weight.T
        assert torch.allclose(contributions.down_norms(model)[layer].float(), rows.norm(dim=1))


def test_effective_scores_by_type(runs, load):
    model, (_, statistics) = load("gpt2", BACKENDS[-1]), runs("gpt2", BACKENDS[-1])
    tokens = {label: [7, 8, 9 + i] for i, label in enumerate(LABELS)}
    table = contributions.effective_score(statistics, model, tokens)
    for row in table.itertuples():
        products = statistics.documents("mlp_post.last", row.layer)[row.language]
        scores = contributions.effective_values(model, row.layer, products, torch.tensor(tokens[row.language]))
        has = sharing.categories(statistics, row.layer).members[TYPES.index(row.type)]
        kept = [each[mask] for each, mask in zip(scores, has, strict=True) if mask.any()]
        for name in ("mean", "max", "min"):
            value = getattr(row, {"max": "maximum", "min": "minimum"}.get(name, name))
            assert value == pytest.approx(np.mean([float(getattr(each, name)()) for each in kept]))
    assert table["minimum"].min() < 0 < table["maximum"].max()
    same = contributions.effective_score(statistics, model, 7)
    pd.testing.assert_frame_equal(
        same, contributions.effective_score(statistics, model, {label: [7] * 3 for label in LABELS})
    )
    with pytest.raises(ValueError, match="zh: 2 reference tokens for 3 items"):
        contributions.effective_score(statistics, model, {**tokens, "zh": [1, 2]})


def test_the_answers_first_token_follows_the_prompts(load):
    tokenizer = load("llama", BACKENDS[-1]).tokenizer
    prompt, answer = "The river is", " high"
    before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer))
    assert contributions.answer_token(tokenizer, prompt, answer) == whole[len(before)]
    for bad in (("The river is hi", "gh"), (prompt, "")):
        with pytest.raises(ValueError, match="answer has no first token"):
            contributions.answer_token(tokenizer, *bad)


def test_each_language_gets_its_most_specific_neurons():
    values = random_values(10, 3, items=20)
    method = Sharing(rate=0.3)
    found = method.select(method.score(statistics_of(values)))
    specific = ((types_of(values) == "specific") & (values > 0)).mean(1)
    for language, each in enumerate(specific):
        ordered = sorted((-each[layer, unit], layer, unit) for layer, unit in np.argwhere(each > 0).tolist())
        assert found.masks["mlp"][language].nonzero().tolist() == sorted([a, b] for _, a, b in ordered[:8])


def test_a_neuron_that_is_never_alone_is_never_chosen():
    values = np.ones((3, 4, 1, 5))
    values[1:, :, :, 2] = 0  # the first language's own
    values[:, :, :, 4] = 0
    found = Sharing(rate=1.0).select(Sharing().score(statistics_of(values)))
    assert found.counts().to_dict() == {"en": 1, "fr": 0, "vi": 0}
    assert found["en"].units("mlp").nonzero().tolist() == [[0, 2]]


def demo_run(model, change=None, **settings):
    corpora = lsn.load_corpora("demo", languages=("en", "de", "zh"))
    texts = {label: list(corpus.find)[:60] for label, corpus in corpora.items()}
    if change:
        change(texts)
    corpora = lsn.load_corpora(texts, hold_out=0.0)
    method = Sharing(**settings)
    return lsn.collect(model, corpora, [method], layout=lsn.Layout(kind="documents", equal=False), progress=False)


def test_parallel_text_is_taken_and_shuffled_text_refused(demo):
    run = demo_run(demo)
    assert (lsn.detect(run, "sharing").counts() > 0).all()

    def shuffle(texts):
        np.random.default_rng(0).shuffle(texts["de"])

    shuffled = demo_run(demo, shuffle, check_parallel=False)
    for act in (
        lambda: demo_run(demo, shuffle),
        lambda: lsn.detect(shuffled, "sharing"),
        lambda: sharing.profile(shuffled.statistics),
    ):
        with pytest.raises(ValueError, match=r"60 items do not look parallel.*'de'.*check_parallel=False"):
            act()
    assert len(lsn.detect(shuffled, "sharing", check_parallel=False)) > 0
    with pytest.raises(ValueError, match=r"numbers of documents differ: \{'en': 60, 'de': 59, 'zh': 60\}"):
        demo_run(demo, lambda texts: texts["de"].pop())


@pytest.mark.parametrize(
    ("gaps", "refused"),
    [
        ({"de": [5]}, True),
        ({"de": [15], "en": [18], "zh": [18]}, True),  # as many of each, and only three are apart
        ({"de": [19]}, False),
        ({"de": [7, 12], "en": [7, 12], "zh": [7, 12]}, False),
    ],
)
def test_a_record_that_one_language_lacks_does_not_move_the_documents_behind_it(demo, gaps, refused):
    corpora = lsn.load_corpora("demo", ["en", "de", "zh"])
    texts = {label: list(corpora[label].find)[:20] for label in corpora}
    for label, places in gaps.items():
        for place in places:
            texts[label][place] = None if place % 2 else "  "
    layout = lsn.Layout(kind="documents")  # takes as many of each language as the smallest has

    def collected(**settings):
        given = lsn.load_corpora(texts, hold_out=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lsn.collect(demo, given, [Sharing(**settings)], layout=layout, progress=False)

    first = min(place for places in gaps.values() for place in places)
    if not refused:
        kept = [place for place in range(20) if place not in gaps["de"]]
        found = lsn.score(collected(), Sharing())
        texts = {label: [each[place] for place in kept] for label, each in texts.items()}
        assert torch.equal(found.values["mlp"], lsn.score(collected(), Sharing()).values["mlp"])
        return
    with pytest.raises(lsn.DoesNotApply, match=rf"document {first} is not the same record.*'de': {first + 1}.*=False"):
        collected()
    assert collected(check_parallel=False).statistics.tokens.sum()


def test_lengths_that_say_nothing_are_not_judged():
    draw = np.random.default_rng(0)
    few, constant = draw.integers(5, 90, (2, 29)), np.full((2, 100), 7)  # few may be judged, and then warned of
    for lengths in (few, constant):
        statistics = statistics_of(draw.normal(0, 1, (2, lengths.shape[1], 1, 5)), lengths=lengths)
        assert len(sharing.profile(statistics)) == 4
    many = statistics_of(draw.normal(0, 1, (2, 30, 1, 5)), lengths=np.stack([np.arange(30), np.arange(30)[::-1]]))
    with pytest.raises(ValueError, match=r"30 items do not look parallel.*'en': -1.0, 'fr': -1.0"):
        sharing.profile(many)


def test_how_often_parallel_and_other_text_is_refused():
    """Lengths of short parallel sentences: none refused; shuffled or moved: refused or warned of."""
    draw = np.random.default_rng(0)
    seen = {name: [] for name in ("parallel", "shuffled", "moved")}
    for number in range(60):
        items = (30, 50, 160)[number % 3]
        common, own = draw.normal(0, 1, items), draw.normal(0, 1, (4, items))
        lengths = np.round(12 + 3 * (0.67 * common + 0.74 * own))  # a correlation of 0.45, as the embedded text has
        other = lengths.copy()
        other[0] = draw.permutation(other[0])
        texts = {"parallel": lengths, "shuffled": other, "moved": np.stack([np.roll(lengths[0], 1), *lengths[1:]])}
        for name, each in texts.items():
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    check_lengths({str(label): row.astype(int) for label, row in enumerate(each)})
                    seen[name].append((items, "warned" if told else "taken"))
                except ValueError:
                    seen[name].append((items, "refused"))
    assert [each for each in seen["parallel"] if each[1] == "refused"] == []
    assert all(each[1] == "taken" for each in seen["parallel"] if each[0] == 160)
    for name in ("shuffled", "moved"):
        assert sum(each[1] == "taken" for each in seen[name]) <= 2
        assert sum(each == (160, "refused") for each in seen[name]) >= 18
    assert sum(each[1] == "refused" for each in seen["shuffled"]) > 30


def test_fewer_than_two_languages_are_refused():
    with pytest.raises(ValueError, match=r"\['en'\].*at least two"):
        sharing.profile(statistics_of(random_values(0, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, "rate"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"threshold": math.inf}, "threshold=inf"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"active": "abs", "position": "any"}, "largest absolute value"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sharing(**settings)
