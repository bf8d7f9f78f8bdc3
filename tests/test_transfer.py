"""Transfer neurons: the closed form against forward passes in which one neuron of a layer writes; refusals."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from conftest import BACKENDS, HOOKED_LOADS, LAYERS, SENTENCES, tiny_model, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.controls.contrasts import contrast_of, shard_values
from lsn_lens.controls.resampling import rearranged
from lsn_lens.methods.transfer import Transfer

LANGUAGES = ("de", "en", "fr")
TEXTS = {label: [f"{SENTENCES[k][: 6 + 3 * i]} {i}" for i in range(5)] for k, label in enumerate(LANGUAGES)}
LAYOUT = lsn.Layout(kind="documents", shards=5)
METHODS = (Transfer(), Transfer("type1"), Transfer("type1", anchor="en"))


def collect(model, texts=TEXTS, layout=LAYOUT):
    return lsn.collect(model, lsn.load_corpora(texts, hold_out=0.0), ["transfer"], layout=layout, progress=False)


def last_streams(model, ids, layer, units):
    """The last token's stream before the MLP, after the layer, and before it plus the write of each unit alone."""

    def look(rows, edit=None):
        seen = []
        hooks = [
            (f"blocks.{layer}.hook_{site}", lambda acts, hook: seen.append(acts[:, -1].double()))
            for site in ("resid_mid", "resid_post")
        ]
        hooks += [(f"blocks.{layer}.mlp.hook_post", edit)] if edit else []
        model.run_with_hooks(ids.expand(rows, -1), fwd_hooks=hooks)
        return seen

    def only(acts, hook):
        """Row i of the batch keeps one unit at the last token, row 0 none."""
        changed = acts.clone()
        changed[:, -1] = 0
        for row, unit in enumerate(units, 1):
            changed[row, -1, unit] = acts[row, -1, unit]
        return changed

    before, after = look(1)
    alone = look(1 + len(units), only)[1]
    return before, after, before + alone[1:] - alone[0]  # the bias of the MLP is in row 0, too


def expected(model, texts, layer, units, method):
    """`[language unit]`, from forward passes alone."""
    streams = {}
    for label, each in texts.items():
        ids = [[model.tokenizer.bos_token_id, *model.tokenizer(x, add_special_tokens=False)["input_ids"]] for x in each]
        streams[label] = [last_streams(model, torch.tensor([row]), layer, units) for row in ids]
    own = {label: torch.cat([after for _, after, _ in each]).mean(0) for label, each in streams.items()}
    means, rows = torch.stack(list(own.values())).mean(0), []
    for label, each in streams.items():
        shared = means if method.anchor is None else (own[label] + own[method.anchor]) / 2
        centroid = (own[label] if method.kind == "type2" else shared)[None]
        cosines = [[torch.cosine_similarity(x, centroid) for x in (moved, before)] for before, _, moved in each]
        rows.append(torch.stack([with_it - without for with_it, without in cosines]).mean(0))
    return torch.stack(rows)


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_those_of_forward_passes(architecture, backend, load):
    model = load(architecture, backend if architecture in HOOKED_LOADS else "bridge")
    run = collect(model)
    for method in METHODS:
        layer = LAYERS - 1 if method.kind == "type2" else 0
        units = range(run.statistics.constants["writes.last.squares"].shape[1])
        wanted = expected(model, TEXTS, layer, units, method)
        changes = method.changes(run.statistics)
        assert wanted.abs().max() > 0.01
        assert torch.allclose(changes[:, layer], wanted, atol=1e-5)
        assert not changes[:, [i for i in range(LAYERS) if i != layer]].any()
        scores = method.score(run.statistics).values["mlp"]
        assert torch.equal(scores, changes.where(changes > 0, -torch.inf))


@pytest.mark.usefixtures("no_gradients")
def test_scores_of_the_embedded_model_are_those_of_forward_passes(demo):
    corpora = lsn.load_corpora("demo", ("en", "zh"))
    texts = {label: list(corpus.find)[:4] for label, corpus in corpora.items()}
    run = collect(demo, texts, replace(LAYOUT, shards=1))
    for method, layer in ((Transfer(), 4), (Transfer(), 5), (Transfer("type1"), 3)):
        best = method.changes(run.statistics)[:, layer].abs().amax(0).argsort(descending=True)
        units = [*best[:6].tolist(), 0, 767]
        wanted = expected(demo, texts, layer, units, method)
        assert torch.allclose(method.changes(run.statistics)[:, layer, units], wanted, atol=1e-5)


@pytest.mark.usefixtures("no_gradients")
def test_a_neuron_that_writes_the_centroid_is_found(load):
    before = collect(load("llama", "bridge")).statistics
    fires = torch.stack(list(before.documents("mlp_post.last", 1).values()))
    steady = int(fires.sign().sum((0, 1)).abs().argmax())  # of one sign in most documents
    centroid = before.get("writes.last.stream")[1, 1].float()
    method = Transfer(count=1)
    assert not method.select(method.score(before)).masks["mlp"][1, 1, steady]
    hf_model = tiny_model("llama")
    down = hf_model.model.layers[1].mlp.down_proj.weight
    down[:, steady] = 20 * fires[..., steady].mean().sign() * centroid / centroid.norm()
    after = collect(lsn.load_model(hf_model, tiny_tokenizer())).statistics
    assert method.select(method.score(after)).masks["mlp"][1].nonzero().tolist() == [[1, steady]]


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("gemma2", "a norm or a scale follows"),  # the write passes a norm
        ("neox", "hook_resid_mid"),  # attention and MLP in parallel
        ("mixtral", "mixture of experts"),
    ],
)
def test_models_in_which_a_neuron_has_no_write_of_its_own_are_refused(architecture, why, load):
    with pytest.raises(lsn.DoesNotApply, match=f"transfer does not apply: .*{why}"):
        collect(load(architecture, "bridge"))


def test_blocks_are_refused(load):
    with pytest.raises(lsn.DoesNotApply, match="transfer does not apply: it needs single documents"):
        collect(load("llama"), layout=lsn.Layout(kind="blocks", length=8))


def test_the_parts_of_the_layers(demo):
    run = collect(demo, {label: texts[:2] for label, texts in TEXTS.items()}, replace(LAYOUT, shards=1))

    def layers(**parameters):
        finite = lsn.score(run, "transfer", **parameters).values["mlp"].isfinite()
        return finite.any(0).any(1).nonzero().flatten().tolist()

    assert (layers(), layers(kind="type1")) == ([4, 5], [0, 1, 2, 3])  # 0.625 of 6
    assert (layers(border=0.01), layers(kind="type1", border=1.0)) == ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4])
    assert (layers(border=0.5), layers(kind="type1", border=0.5)) == ([3, 4, 5], [0, 1, 2])
    assert lsn.detect(run, "transfer", count=7).counts().to_dict() == dict.fromkeys(LANGUAGES, 7)
    assert lsn.detect(run, "transfer").counts().to_dict() == dict.fromkeys(LANGUAGES, round(0.01 * 6 * 768 / 3))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_values_by_shard_are_scores_of_the_shard(method, load):
    run = collect(load("llama"))
    declared = contrast_of(method)
    assert declared is not None
    values = shard_values(run, method, declared[0])["mlp"]
    for place in (0, 4):
        alone = rearranged(run, {label: [(label, place)] for label in LANGUAGES}).statistics
        for label, own in zip(LANGUAGES, method.changes(alone), strict=True):
            assert torch.allclose(values[label][place], own, rtol=0, atol=1e-12)


def test_wrong_parameters_are_named(load, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked before
    for parameters, words in (
        ({"kind": "type3"}, "expected 'type1' or 'type2'"),
        ({"count": 0}, "1 or more"),
        ({"border": 0}, "border=0"),
        ({"anchor": "en"}, "give kind='type1'"),
    ):
        with pytest.raises(ValueError, match=words):
            Transfer(**parameters)
    with pytest.raises(KeyError, match="no language 'xx'"):
        lsn.detect(collect(load("llama")), "transfer", kind="type1", anchor="xx")
