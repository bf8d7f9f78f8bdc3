"""A method or a kind of unit that a model or a text cannot give is left out with its reason; nothing else is."""

import importlib
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from conftest import ARCHITECTURES, BACKENDS, GROUPED, LLAMA_LIKE, SENTENCES, experiment, tiny_model, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.analysis.lens.layers import logit_lens
from lsn_lens.comparison.page import facts
from lsn_lens.comparison.sections import ranking_section
from lsn_lens.evaluation.stages import Stages
from lsn_lens.evaluation.workflow import workflow_effects, workflow_grid
from lsn_lens.methods.lape import Lape
from lsn_lens.methods.plnd import Plnd
from lsn_lens.methods.sharing import Sharing
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.importance import BASES
from lsn_lens.statistics.needs import DocumentValues, Histogram, Statistic

TINY = {
    "qwen3": ("qwen3", {**LLAMA_LIKE, **GROUPED, "head_dim": 8}),
    "gemma3": ("gemma3_text", {**LLAMA_LIKE, **GROUPED, "head_dim": 8, "sliding_window": 6}),
    "olmo2": ("olmo2", {**LLAMA_LIKE, **GROUPED}),
    "experts": ("mixtral", {**LLAMA_LIKE, **GROUPED, "num_local_experts": 4, "num_hidden_layers": 3}),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
}
NO_SOFTMAX = "the attention pattern is not a softmax of scale * rotated q k"
RESIDUAL = {"plnd", "average_precision", "diffmean", "language_dimensions"}  # those that need no dense MLP
BLOCKS = lsn.Layout(length=16, max_tokens=48)
DOCUMENTS = lsn.Layout(kind="documents", max_tokens=64)
TEXTS = {
    label: [f"{place} {part}" for place in range(4) for part in (text[:38], text[:18], text[10:38])]
    for label, text in zip(("en", "de"), SENTENCES[:2], strict=True)
}


@pytest.fixture(scope="module")
def corpora():
    return lsn.load_corpora(TEXTS, hold_out=0.25)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, load):
    """A tiny model of `TINY`, or of those of all tests."""

    def build(name):
        if name in ARCHITECTURES:
            return load(name)
        folder = tmp_path_factory.mktemp("refusing") / f"model-{list(TINY).index(name)}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ARCHITECTURES, name, TINY[name])
            tiny_model(name).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return lsn.load_model(folder, device="cpu")

    return build


def left_out(run, method="plnd"):
    return run.left_out(lsn.METHODS[method]())


# TransformerLens 3.9 shows GPT-J's queries and keys as its pattern takes them
REFUSED = ["qwen3", "gemma3", "olmo2", *(["gptj"] if BACKENDS == ("bridge",) else [])]


@pytest.mark.parametrize("name", REFUSED)
def test_queries_and_keys_that_cannot_be_had_do_not_stop_the_others(name, tiny, corpora):
    model = tiny(name)
    run = lsn.collect(model, corpora, None, layout=DOCUMENTS, progress=False)
    assert set(left_out(run)) == {"q", "k"} and all(NO_SOFTMAX in why for why in left_out(run).values())
    found = lsn.detect(run, "plnd")
    assert list(found.masks) == ["mlp", "v", "z"] and found.notes["bases_left_out"] == ["q", "k"]
    # what is left is what asking for just these gives
    alone = Plnd(bases=("mlp", "v", "z"))
    expected = lsn.detect(lsn.collect(model, corpora, [alone], layout=DOCUMENTS, progress=False), alone)
    assert all(torch.equal(found.masks[basis], expected.masks[basis]) for basis in expected.masks)
    ablated = {"model": model, "corpora": corpora} if name == "qwen3" else {}
    made = lsn.compare(run, seeds=2, control_tokens=20, layout=BLOCKS, progress=False, **ablated)
    skipped = made.skipped.set_index("method")
    whole = skipped.index[skipped["bases"].eq("")]
    assert set(made.ranking["method"]) | set(whole) == set(lsn.METHODS) - {"random"}
    # 48 neurons are no experts of 32; where a norm follows the MLP, or attention is beside it, there are no writes
    assert set(whole) - {"expert_frequency"} == ({"transfer"} if name != "qwen3" else set())
    assert skipped.at["plnd", "bases"] == "q, k" and NO_SOFTMAX in skipped.at["plnd", "reason"]
    assert "left out: plnd on q, k, layer 0" in repr(made)


def test_what_was_asked_for_by_name_is_an_error(tiny, corpora):
    model = tiny("gemma2")
    for bases in (("q",), ("mlp", "k"), BASES):
        with pytest.raises(DoesNotApply, match=r"Plnd.*does not apply: .*soft cap.*methods that apply are \['lape'"):
            lsn.collect(model, corpora, ["lape", Plnd(bases=bases)], layout=DOCUMENTS, progress=False)
    # the stricter of two that share their sums decides
    with pytest.raises(DoesNotApply, match="soft cap"):
        lsn.collect(model, corpora, ["plnd", Plnd(bases=BASES)], layout=DOCUMENTS, progress=False)
    run = lsn.collect(model, corpora, ["plnd", "lape"], layout=DOCUMENTS, progress=False)
    assert set(left_out(run)) == {"q", "k"}
    with pytest.raises(KeyError, match=r"plnd\.paper\.pre\.exact1\.0\.q\.minimum"):
        lsn.detect(run, Plnd(bases=BASES))


def test_a_run_keeps_what_was_left_out(tiny, corpora, tmp_path):
    model = tiny("gemma2")
    made = [lsn.collect(model, corpora, ["plnd"], tmp_path / "run", layout=DOCUMENTS, progress=False) for _ in range(2)]
    assert left_out(made[0]) == left_out(made[1]) == left_out(lsn.load_run(tmp_path / "run"))
    assert "soft cap" in left_out(made[0])["q"]


def test_where_nothing_is_left_out_nothing_is_said(tiny, corpora):
    run = lsn.collect(tiny("llama"), corpora, ["plnd", "average_precision"], layout=DOCUMENTS, progress=False)
    assert run.settings["left_out"] == {"methods": {}, "bases": {}}
    assert "bases_left_out" not in lsn.detect(run, "plnd").notes


# mixtures of experts


@pytest.fixture(scope="module")
def mixture(tiny, corpora):
    model = tiny("experts")
    return model, lsn.collect(model, corpora, None, layout=DOCUMENTS, progress=False)


@pytest.fixture(scope="module")
def compared(mixture, corpora):
    model, run = mixture
    return lsn.compare(run, model=model, corpora=corpora, seeds=2, control_tokens=20, layout=BLOCKS, progress=False)


def test_a_mixture_of_experts_has_methods_of_the_residual_stream_and_of_attention(mixture, compared, corpora):
    model, made = mixture[0], compared
    assert set(made.ranking["method"]) == RESIDUAL
    skipped = made.skipped.loc[made.skipped["bases"].eq("")].set_index("method")["reason"]
    assert set(skipped.index) == set(lsn.METHODS) - RESIDUAL - {"random"}
    assert skipped.str.contains("mixture of experts").all()
    partly = made.skipped.loc[made.skipped["bases"].ne("")].groupby("method")["bases"].agg(", ".join)
    assert partly.to_dict() == {"plnd": "mlp", "average_precision": "mlp_pre, mlp_up"}
    assert list(made.found["plnd"].masks) == ["q", "k", "v", "z"]
    for name in RESIDUAL:  # each alone, and by name
        alone = lsn.collect(model, corpora, [name], layout=DOCUMENTS, progress=False)
        assert "mlp_post.sum" not in alone.statistics.sums
        assert lsn.detect(alone, name) == made.found[name]


def test_a_method_that_needs_an_mlp_is_refused_and_the_others_are_named(mixture, corpora):
    model, run = mixture
    expected = r"lape does not apply: .*mixture of experts.*methods that apply are \['plnd', 'average_precision', 'dif"
    with pytest.raises(DoesNotApply, match=expected):
        lsn.collect(model, corpora, ["diffmean", "lape"], layout=DOCUMENTS, progress=False)
    with pytest.raises(KeyError, match=r"lape needs.*lape did not apply: .*mixture of experts"):
        lsn.detect(run, "lape")


def test_a_mixture_of_experts_is_ablated_to_means_and_written_with(mixture, corpora):
    model, run = mixture
    found = lsn.detect(run, "diffmean", rate=0.2)
    table = lsn.perplexity_table(
        model, corpora, found, lsn.mean_ablation(run.statistics), layout=BLOCKS, progress=False
    )  # fmt: skip
    assert table["nll_change"].iloc[2:].abs().min() > 0
    attention = lsn.detect(run, "plnd")
    grid = workflow_grid(model, corpora, attention, Stages(1, 1), seeds=1, layout=BLOCKS, progress=False)
    effects = workflow_effects(grid).set_index(["switch", "deactivated"])
    assert effects["own_rise"].notna().all()
    with lsn.intervene(model, found["en"], lsn.mean_ablation(run.statistics)):
        assert len(lsn.generate(model, ["The river"], tokens=4, progress=False)) == 1
    assert logit_lens(model, torch.tensor([[1, 2, 3]])) is not None


# what a text cannot give


def test_methods_of_single_documents_are_not_had_from_blocks(tiny, corpora):
    model = tiny("llama")
    run = lsn.collect(model, corpora, None, layout=BLOCKS, progress=False)
    why = run.settings["left_out"]["methods"]
    assert {"plnd", "average_precision", "sharing"} <= set(why) and "into blocks" in why["plnd"]
    skipped = lsn.compare(run, progress=False).skipped.set_index("method")["reason"]
    assert all(why[name] == skipped[name] for name in why)
    with pytest.raises(DoesNotApply, match=r"plnd does not apply: .*into blocks.*apply are \['lape', 'lap', 'lave'"):
        lsn.collect(model, corpora, ["plnd"], layout=BLOCKS, progress=False)


def test_sharing_is_not_had_from_text_that_is_not_parallel(tiny, monkeypatch):
    model = tiny("llama")
    apart = {"en": ["a" * (1 + place) for place in range(40)], "de": ["b" * (40 - place) for place in range(40)]}
    corpora = lsn.load_corpora(apart, hold_out=0.0)
    run = lsn.collect(model, corpora, None, layout=lsn.Layout(kind="documents"), progress=False)
    assert "do not look parallel" in run.settings["left_out"]["methods"]["sharing"]
    skipped = lsn.compare(run, progress=False).skipped.set_index("method")["reason"]
    assert "do not look parallel" in skipped["sharing"] and "plnd" not in skipped.index
    seen = []
    monkeypatch.setattr(
        importlib.import_module("lsn_lens.collection.collecting"), "_run_shards", lambda *args: seen.append(args)
    )
    with pytest.raises(DoesNotApply, match="sharing does not apply: the 40 items do not look parallel"):
        lsn.collect(model, corpora, ["lape", "sharing"], progress=False)
    assert not seen  # refused before the pass
    with pytest.raises(TypeError):  # of the stub: this one would be collected
        lsn.collect(model, corpora, [Sharing(check_parallel=False)], progress=False).statistics


@pytest.mark.parametrize("layout", [lsn.Layout(length=1), lsn.Layout(kind="documents", separator="none")], ids=str)
def test_gradients_of_a_loss_of_nothing_are_no_zeros(layout, tiny):
    model, corpora = tiny("llama"), lsn.load_corpora({"en": list("abc"), "de": list("xyz")}, hold_out=0.0)
    with pytest.raises(DoesNotApply, match=r"act_grad .*no token of \['en', 'de'\] has a token before it"):
        lsn.collect(model, corpora, ["lape", "act_grad"], layout=layout, progress=False)
    assert "act_grad" not in lsn.collect(model, corpora, ["lape"], layout=layout, progress=False).settings["left_out"]


def test_a_mistake_is_no_refusal(tiny, corpora):
    @dataclass(frozen=True)
    class Broken(Lape):
        def score(self, statistics):
            return {}["a typo"]

    run = lsn.collect(tiny("llama"), corpora, ["lape"], layout=BLOCKS, progress=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError, match="a typo"):
        patch.setitem(lsn.METHODS, "lave", Broken)
        lsn.compare(run, progress=False)


def test_the_experiment_and_its_report_leave_out_what_does_not_apply(mixture, compared):
    script = experiment("compare_methods")
    parameters, words = lsn.methods.common_rate(mixture[1], script.names(script.Config()))
    assert set(parameters) == RESIDUAL and parameters["diffmean"] == {"rate": 0.01} and "1.00%" in words
    assert facts(compared)["methods left out"] == "10"
    table = ranking_section(compared, "").tables["What was left out"]
    assert table["reason"].str.contains("mixture of experts").all() and len(table) == 10 + 1 + 2


# what cannot be meant


@pytest.fixture
def as_a_user(monkeypatch):
    """Types are not checked before."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Statistic("pattern", "sum"), r"site='pattern'.*'mlp_post'"),
        (lambda: Statistic("mlp", "sum"), r"site='mlp'.*'mlp_post'"),
        (lambda: Statistic("mlp_post", "mean"), r"reduction='mean'.*'positive', 'sum', 'squares'"),
        (lambda: DocumentValues("pattern", "mean"), r"site='pattern'"),
        (lambda: DocumentValues("mlp_post", "median"), r"reduction='median'.*'mean', 'last', 'maximum'"),
        (lambda: Histogram("pattern"), r"site='pattern'"),
        (lambda: Histogram("mlp_post", bins=0), r"bins=0"),
    ],
)
def test_statistics_that_there_are_not(make, said, as_a_user):
    with pytest.raises(ValueError, match=said):
        make()


def test_wrong_use_of_a_run_is_said_at_once(tiny, corpora, as_a_user):
    model = tiny("llama")
    run = lsn.collect(model, corpora, ["lape"], layout=BLOCKS, progress=False)
    for given in (["lape"], Lape, None, 3):
        with pytest.raises(ValueError, match=r"expected one method.*'lape'.*lsn\.compare"):
            lsn.detect(run, given)
    with pytest.raises(KeyError, match=r"plnd needs.*methods=\['plnd'\]"):
        lsn.detect(run, "plnd")
    with pytest.raises(KeyError, match=r"average_precision needs.*methods=\['average_precision'\]"):
        lsn.detect(run, "average_precision")
    with pytest.raises(ValueError, match=r"trust='all'.*Checks"):
        lsn.compare(run, trust="all", progress=False)
    with pytest.raises(ValueError, match=r"action='zeros'.*'zero', 'mean', 'other mean'.*lsn\.zero"):
        lsn.compare(run, model=model, corpora=corpora, action="zeros", progress=False)
    with pytest.raises(ValueError, match="expected one method"):
        lsn.collect(model, corpora, [["lape"]], progress=False)
    assert lsn.collect(model, corpora, Lape(), layout=BLOCKS, progress=False).settings["statistics"][0]
