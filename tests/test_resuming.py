"""Passes that begin at a later layer: the same numbers as whole passes for every kind of model, or no such pass."""

import pytest
import tiny
import torch
from conftest import ARCHITECTURES, BACKENDS, HOOKED_LOADS, LLAMA_LIKE, VOCABULARY
from tiny import GROUPED

import lsn_lens as lsn
from lsn_lens.evaluation import baseline, scored
from lsn_lens.model import forward, resuming

KINDS = {
    **ARCHITECTURES,
    "gemma3": ("gemma3_text", {**LLAMA_LIKE, **GROUPED, "head_dim": 8}),
    **{name: tiny.SIZES[name] for name in ("phi3", "olmoe", "mamba", "modernbert")},
}
BRIDGES = [(name, "bridge") for name in KINDS]
HOOKED = [(name, "hooked") for name in HOOKED_LOADS if "hooked" in BACKENDS]
WHOLE = [("bloom", "bridge")]  # its layers keep something of the last tokens they have seen
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name, backend)`: a model of `KINDS` with three layers."""
    folders = {}

    def build(name, backend="bridge"):
        if name not in folders:
            kind, sizes = KINDS[name]
            layers = next(each for each in ("num_hidden_layers", "n_layer", "num_layers") if each in sizes)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(tiny.SIZES, name, (kind, {**sizes, layers: 3}))
                folders[name] = tiny.checkpoint(name, tmp_path_factory.mktemp("kinds"))
        return lsn.load_model(folders[name], backend=backend, device="cpu")

    return build


def halved(acts, hook):
    return torch.cat([acts[..., :16], 0 * acts[..., 16:]], dim=-1)  # norms undo a common factor


@torch.no_grad()
@pytest.mark.parametrize(("name", "backend"), BRIDGES + HOOKED)
def test_a_pass_from_any_layer_equals_a_whole_pass(name, backend, made):
    model = made(name, backend)
    assert resuming.can_resume(model) == ((name, backend) not in WHOLE)
    ids, mask = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1)), torch.ones(2, 12).long()
    mask[1, 7:] = 0
    many, fired = (ids.repeat(3, 1), mask.repeat(3, 1)), []
    with resuming.recorded(model, range(3)) as outputs:
        clean = forward.hidden_states(model, ids, mask)
    for layer in range(3) if resuming.can_resume(model) else ():
        seen = [
            (f"blocks.{each}.hook_resid_pre", lambda acts, hook, each=each: fired.append(each)) for each in range(3)
        ]
        hooks = [(f"blocks.{layer}.hook_resid_post", halved), *seen]
        with model.hooks(fwd_hooks=hooks):
            whole = forward.hidden_states(model, *many)
            fired.clear()
            with resuming.resumed(model, layer, outputs, 3):
                short = forward.hidden_states(model, *many)
        assert fired == list(range(layer, 3))  # layers before did not run
        torch.testing.assert_close(short[many[1].bool()], whole[many[1].bool()], rtol=1e-5, atol=1e-5)
        assert (short - clean.repeat(3, 1, 1)).abs().max() > 0.1
    torch.testing.assert_close(forward.hidden_states(model, ids, mask), clean)  # nothing stays


def test_the_first_layer_of_hooks():
    assert resuming.first_layer(["blocks.11.mlp.hook_post", "blocks.7.hook_resid_post"]) == 7
    assert resuming.first_layer(["blocks.3.hook_resid_pre", "hook_embed"]) == resuming.first_layer([]) == 0


def test_a_model_with_hooks_or_with_something_between_its_layers_runs_whole(made):
    model = made("llama")
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", halved)]):
        assert not resuming.can_resume(model)
    assert resuming.can_resume(model)
    kept, model = {}, made("llama")  # its last layer reads what its first one left
    changes = {0: lambda out: kept.update(out=out) or out, 2: lambda out: out + kept["out"]}
    for layer, change in changes.items():
        inside = model.blocks[layer]._modules
        inside["_original_component"] = Around(inside["_original_component"], change)
    assert not resuming.can_resume(model)


class Around(torch.nn.Module):
    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args, **settings):
        return self.change(self.inner(*args, **settings))


def test_losses_are_those_of_whole_passes(demo, monkeypatch):
    """Sets that begin in different layers, in one measurement: the same numbers in the same order."""
    corpora = lsn.load_corpora("demo", ["en", "fr"])
    text = baseline.held_out(demo, corpora, lsn.Layout(max_tokens=200), **QUIET)
    shape = (demo.cfg.n_layers, 768)
    sets = {
        f"from {layer}": lsn.NeuronSet.from_dict(
            {"en": [(layer, u) for u in range(40)] + [(5, 99)], "fr": [(5, 3)]}, shape
        )
        for layer in (5, 0, 3)
    }
    found = text.measure(sets, **QUIET)
    monkeypatch.setattr(resuming, "can_resume", lambda model: False)
    expected = text.measure(sets, **QUIET)
    assert found.table["nll_change"].abs().max() > 1e-3
    assert found.rises.keys() == expected.rises.keys()
    for key, rise in expected.rises.items():
        assert abs(found.rises[key] - rise).max() < 1e-4


def test_layers_before_the_first_hook_run_once(demo):
    corpora = lsn.load_corpora("demo", ["en", "fr"])
    text = baseline.held_out(demo, corpora, lsn.Layout(max_tokens=200), **QUIET)
    rows, whole = {0: 0, 5: 0}, {layer: demo.blocks[layer].forward for layer in (0, 5)}

    def counted(layer):
        def run(*args, **settings):
            rows[layer] += len(args[0])
            return whole[layer](*args, **settings)

        return run

    hooks = [[("blocks.5.hook_resid_post", lambda acts, hook: acts * 1.0)]] * 4
    batches = sum(len(batch.ids) for shard in text.plan.shards for batch in text.plan.batches(shard))
    resuming.can_resume(demo)
    with resuming._replaced(demo, {layer: counted(layer) for layer in rows}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "can_resume", lambda model: True)
        scored.document_sums(demo, text.plan, None, tuple(corpora), [hooks[:2], hooks[2:]], lambda done: None)
    assert rows == {0: batches, 5: 5 * batches}  # once to see what reaches layer 5, then once for each hook
