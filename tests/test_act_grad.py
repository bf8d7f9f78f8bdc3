"""Activation times gradient against Hugging Face's own autograd in 64 bits, and against finite differences."""

import pytest
import torch
from conftest import parts

import lsn_lens as lsn
from lsn_lens.methods.act_grad import ActGrad
from lsn_lens.methods.lape import Lape
from lsn_lens.statistics.sums import Statistics

TEXTS = {
    "en": ["The river is high after the rain.", "The bridge is closed.", "No."],
    "de": ["Der Fluss steht hoch.", "Die Brücke ist gesperrt, und wir warten.", "Nein, danke."],
}


def loss_and_activations(hf_model, name, ids, change=None):
    """Summed next-token loss, and the input of every layer's down projection, part of the graph."""
    seen = {}

    def hook(layer):
        def keep(module, inputs):
            value = inputs[0] if change is None else change(layer, inputs[0])
            value.requires_grad_()
            seen[layer] = value
            return (value,)

        return keep

    handles = [parts(name, hf_model, i).down.register_forward_pre_hook(hook(i)) for i in range(2)]
    try:
        logits = hf_model(ids[None]).logits[0, :-1]
    finally:
        for handle in handles:
            handle.remove()
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"), seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])  # the bridge shows OPT's MLP as views of its tensors
def test_equal_to_autograd_and_to_finite_differences(name, load, hugging_face):
    model, hf_model = load(name), hugging_face(name).double()
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    layout = lsn.Layout(kind="documents", batch_tokens=64)  # two or three documents at once, padded
    run = lsn.collect(model, corpora, ["act_grad"], layout=layout, progress=False)
    sums = run.statistics.get("mlp_post.act_grad")
    for place, texts in enumerate(TEXTS.values()):
        expected = torch.zeros(sums.shape[1:], dtype=torch.float64)
        for text in texts:
            tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([model.tokenizer.bos_token_id, *tokens])
            loss, seen = loss_and_activations(hf_model, name, ids)
            grads = torch.autograd.grad(loss, list(seen.values()))
            expected += torch.stack(
                [(a * g).detach().flatten(0, -2).abs().sum(0) for a, g in zip(seen.values(), grads, strict=True)]
            )
        assert torch.allclose(sums[place], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    product = (seen[1] * grads[1]).detach().flatten(0, -2)  # OPT has no axis of documents here
    small, where = 1e-2, (1, *divmod(int(product.abs().argmax()), product.shape[1]))  # layer, position, unit

    def shifted(layer, value, sign):
        value = value.detach().clone()
        if layer == where[0]:
            value.view(-1, value.shape[-1])[where[1], where[2]] *= 1 + sign * small
        return value

    up, down = (loss_and_activations(hf_model, name, ids, lambda i, v, s=s: shifted(i, v, s))[0] for s in (1, -1))
    slope = float((up - down).detach()) / (2 * small)  # of the loss in the relative size of the activation: a dL/da
    assert slope == pytest.approx(float(product[where[1:]]), rel=0.01)  # norms compute in 32 bits


def test_a_gradient_that_does_not_arrive_is_an_error(load):
    model, corpora = load("llama"), lsn.load_corpora(TEXTS, hold_out=0.0)
    cut = [("blocks.1.hook_mlp_out", lambda acts, hook: acts.detach())]
    with model.hooks(fwd_hooks=cut), pytest.raises(RuntimeError, match=r"did not reach mlp_post in the layers \[1\]"):
        lsn.collect(model, corpora, ["act_grad"], progress=False)


def test_other_statistics_are_the_same_with_and_without_gradients(load):
    model, corpora = load("llama"), lsn.load_corpora(TEXTS, hold_out=0.0)
    for layout in (lsn.Layout(kind="documents"), lsn.Layout(length=8)):
        with_gradient, without = (
            lsn.collect(model, corpora, methods, layout=layout, progress=False).statistics
            for methods in (["lape", "lave", "act_grad"], ["lape", "lave"])
        )
        assert torch.equal(with_gradient.get("mlp_pre.positive"), without.get("mlp_pre.positive"))
        for key in ("mlp_act.sum", "mlp_post.sum"):
            assert torch.allclose(with_gradient.get(key), without.get(key), rtol=1e-5, atol=1e-6)


def test_leaves_no_trace(load):
    model = load("llama")
    lsn.collect(model, lsn.load_corpora(TEXTS, hold_out=0.0), ["act_grad"], progress=False,
                layout=lsn.Layout(kind="documents"))  # fmt: skip
    assert all(each.grad is None and not each.requires_grad for each in model.parameters())
    assert torch.is_grad_enabled()
    assert not model(torch.tensor([[1, 2, 3]])).requires_grad


def made_up(values):
    labels = ("a", "b", "plain")
    return Statistics(labels, {"mlp_post.act_grad": torch.tensor(values).double()}, torch.full((3, 1), 10))


def test_a_control_is_subtracted_and_has_no_neurons():
    values = [[[9.0, 9.0, 1.0, 5.0]], [[1.0, 9.0, 1.0, 5.0]], [[1.0, 9.0, 1.0, 4.0]]]
    settings = {"rate": 1.0, "filter_share": 0.1, "bar_share": 0.1}
    method = ActGrad(control="plain", **settings)
    found = method.select(method.score(made_up(values)))
    assert found.languages == ("a", "b", "plain")
    assert found["plain"].counts().item() == 0
    assert found["a"].units("mlp")[0].tolist() == [True, False, False, True]
    assert found["b"].units("mlp")[0].tolist() == [False, False, False, True]
    with pytest.raises(KeyError, match=r"no control 'code'.*\['a', 'b', 'plain'\]"):
        ActGrad(control="code").score(made_up(values))


def test_it_is_lape_on_other_numbers():
    values = torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0)).double()
    counts = (values * 1000).round()
    tokens = torch.full((3, 2), 1000)
    one = Statistics(("a", "b", "c"), {"mlp_post.act_grad": counts}, tokens)
    other = Statistics(("a", "b", "c"), {"mlp_pre.positive": counts.long()}, tokens)
    settings = {"rate": 0.2, "filter_share": 0.5, "bar_share": 0.5}
    mine, lape = ActGrad(**settings), Lape(**settings)
    assert mine.select(mine.score(one)) == lape.select(lape.score(other))
