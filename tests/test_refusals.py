"""A method or a kind of unit that a model or a text cannot give is left out with its reason; nothing else is."""

import importlib
from dataclasses import dataclass

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, BACKENDS, GROUPED, LLAMA_LIKE, SENTENCES, tiny_model, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.analysis.lens.layers import logit_lens
from lsn_lens.command.comparing import names
from lsn_lens.command.settings import CompareConfig
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
from lsn_lens.text.documents import Documents
from lsn_lens.text.records import Records

TINY = {
    "stablelm": ("stablelm", {**LLAMA_LIKE, **GROUPED, "qk_layernorm": True}),
    "olmo2": ("olmo2", {**LLAMA_LIKE, **GROUPED}),
    "experts": ("mixtral", {**LLAMA_LIKE, **GROUPED, "num_local_experts": 4, "num_hidden_layers": 3}),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
}
NO_SOFTMAX = "the attention pattern is not a softmax of scale * rotated q k"
NO_RMS = "no RMS norm over the 8 dimensions"
WHY = {"gptj": NO_SOFTMAX, "olmo2": NO_RMS, "stablelm": NO_RMS}
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
REFUSED = ["stablelm", "olmo2", *(["gptj"] if BACKENDS == ("bridge",) else [])]


@pytest.mark.parametrize("name", REFUSED)
def test_queries_and_keys_that_cannot_be_had_do_not_stop_the_others(name, tiny, corpora):
    model = tiny(name)
    run = lsn.collect(model, corpora, None, layout=DOCUMENTS, progress=False)
    assert set(left_out(run)) == {"q", "k"} and all(WHY[name] in why for why in left_out(run).values())
    found = lsn.detect(run, "plnd")
    assert list(found.masks) == ["mlp", "v", "z"] and found.notes["bases_left_out"] == ["q", "k"]
    # what is left is what asking for just these gives
    alone = Plnd(bases=("mlp", "v", "z"))
    expected = lsn.detect(lsn.collect(model, corpora, [alone], layout=DOCUMENTS, progress=False), alone)
    assert all(torch.equal(found.masks[basis], expected.masks[basis]) for basis in expected.masks)
    ablated = {"model": model, "corpora": corpora} if name == "stablelm" else {}
    made = lsn.compare(run, seeds=2, control_tokens=20, layout=BLOCKS, progress=False, **ablated)
    skipped = made.skipped.set_index("method")
    whole = skipped.index[skipped["bases"].eq("")]
    assert set(made.ranking["method"]) | set(whole) == set(lsn.METHODS) - {"random"}
    # 48 neurons are no experts of 32; where a norm follows the MLP, or attention is beside it, there are no writes
    assert set(whole) - {"expert_frequency"} == ({"transfer"} if name != "stablelm" else set())
    assert skipped.at["plnd", "bases"] == "q, k" and WHY[name] in skipped.at["plnd", "reason"]
    assert "left out: plnd (q, k): layer 0" in repr(made)


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
    with pytest.raises(KeyError, match=r"plnd\.paper\.pre\.q\.minimum"):
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


def test_a_reason_is_said_once_for_all_methods_it_holds_for(mixture, compared, corpora):
    model, run = mixture
    every = [name for name in lsn.METHODS if name not in RESIDUAL]  # the control is one of them
    for refused in (
        lambda: lsn.collect(model, corpora, list(lsn.METHODS), layout=DOCUMENTS, progress=False),
        lambda: lsn.compare(run, list(lsn.METHODS), progress=False),
        lambda: lsn.compare(run, every, progress=False),
    ):
        with pytest.raises((DoesNotApply, KeyError)) as caught:
            refused()
        said = str(caught.value)
        assert said.count("mixture of experts") == 1 and ", ".join(every) in said
    (line,) = [line for line in repr(compared).splitlines() if "mixture of experts" in line]
    names = ", ".join(name for name in every if name != "random")
    assert line.startswith(f"left out: {names}, plnd (mlp), average_precision (mlp_pre, mlp_up): the MLP: ")
    few = lsn.collect(model, corpora, ["diffmean"], layout=DOCUMENTS, progress=False)
    expected = r"lape, random, lap: the run did not collect \['mlp_pre.positive'\]; lave: the run .*\]\. Collect again"
    with pytest.raises(KeyError, match=expected):
        lsn.compare(few, ["lape", "random", "lave", "lap"], progress=False)


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
    with pytest.raises(
        DoesNotApply, match=r"plnd does not apply: .*into blocks.*apply are \['lape', 'lap', 'lave'.*'random'\]"
    ):
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
    parameters, words = lsn.methods.common_rate(mixture[1], names(CompareConfig()))
    assert set(parameters) == RESIDUAL and parameters["diffmean"] == {"rate": 0.01} and "1.00%" in words
    assert facts(compared)["methods left out"] == "10"
    table = ranking_section(compared, "").tables["What was left out"]
    assert table["reason"].str.contains("mixture of experts").all()
    assert list(table["bases"]) == [""] * 10 + ["mlp", "mlp_pre, mlp_up"]  # one reason, so one row for both


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


STEP = r"expected lsn\.Intervention\('off', \[\(found\['fr'\], lsn\.zero\)\]\)"
DEEP = lsn.NeuronSet(("en", "de"), {"mlp": torch.ones(2, 3, 48, dtype=torch.bool)})
FIRST_STEPS = {
    "another package's keyword": (
        lambda m, c, r, f: lsn.generate(m, ["a"], max_new_tokens=3),
        TypeError, r"generate\(\) has no parameter max_new_tokens; it has model, prompts, samples, tokens, ",
    ),
    "another package's keyword, each": (
        lambda m, c, r, f: lsn.generate_each(m, [], ["a"], max_new_tokens=3), TypeError, "has no parameter max_new",
    ),
    "a keyword of compare": (
        lambda m, c, r, f: lsn.collect(m, c, found=f), TypeError, r"collect\(\) has no parameter found; it has",
    ),
    "a layout of collect": (
        lambda m, c, r, f: lsn.collect(m, c, layout={"length": 16}), ValueError, "layout is a dict: expected a lay",
    ),
    "a layout to measure": (
        lambda m, c, r, f: lsn.perplexity_table(m, c, f, layout={"length": 16}), ValueError, "layout is a dict",
    ),
    "a layout to compare": (
        lambda m, c, r, f: lsn.compare(r, model=m, corpora=c, layout={}), ValueError, "layout is a dict",
    ),
    "a layout to plan": (
        lambda m, c, r, f: lsn.collection.plan_run(m, layout={"length": 16}), ValueError, "layout is a dict",
    ),
    "a layout for the lens": (
        lambda m, c, r, f: lsn.analysis.working_language(
            m, {"en": ["a"]}, lsn.analysis.token_languages(m.tokenizer, c, vocabulary=m.cfg.d_vocab), layout={}
        ), ValueError, "layout is a dict",
    ),
    "a folder to detect in": (
        lambda m, c, r, f: lsn.detect("folder"), ValueError, r"run is 'folder', a str: .*lsn\.load_run\(folder\)",
    ),
    "a folder to compare": (
        lambda m, c, r, f: lsn.compare("folder"), ValueError, r"run is 'folder', a str: .*lsn\.load_run\(folder\)",
    ),
    "a model for methods": (
        lambda m, c, r, f: lsn.compare(r, m), ValueError, r"methods is a \w+: expected names.*model=model",
    ),
    "a run for methods": (lambda m, c, r, f: lsn.compare(r, r), ValueError, "methods is a Run: expected names"),
    "no methods": (lambda m, c, r, f: lsn.compare(r, []), ValueError, r"no methods: name at least one of \['lape'"),
    "a set for sets": (
        lambda m, c, r, f: lsn.compare(r, found=f), ValueError, r"found is a NeuronSet: .*\{'lape': found\}",
    ),
    "a name for parameters": (
        lambda m, c, r, f: lsn.compare(r, parameters="lape"), ValueError, "parameters is 'lape', a str: expected",
    ),
    "text that is corpora": (
        lambda m, c, r, f: lsn.perplexity_table(m, c, f, text=c), ValueError, r"text is a Corpora: .*held_out",
    ),
    "steps that are one step": (
        lambda m, c, r, f: lsn.Intervention("a", (f, lsn.zero)), ValueError, "steps of 'a': expected pairs, as",
    ),
    "steps that are a set": (
        lambda m, c, r, f: lsn.Intervention("a", f), ValueError, "steps of 'a': expected pairs, as",
    ),
    "sets to measure": (
        lambda m, c, r, f: lsn.evaluation.loss_table(m, c, [f]), ValueError, f"is a NeuronSet: {STEP}",
    ),
    "one intervention to measure": (
        lambda m, c, r, f: lsn.evaluation.loss_table(m, c, lsn.Intervention("a")), ValueError, "expected a list, as",
    ),
    "sets to write under": (
        lambda m, c, r, f: lsn.generate_each(m, [f], ["a"]), ValueError, f"is a NeuronSet: {STEP}",
    ),
    "a run for a figure": (
        lambda m, c, r, f: lsn.plots.layer_counts(r), ValueError, r"frame is a Run: expected a set, as lsn\.detect",
    ),
    "a run for statistics": (
        lambda m, c, r, f: lsn.mean_ablation(r), ValueError, r"statistics is a Run: .*run\.statistics",
    ),
    "a run for statistics, later": (
        lambda m, c, r, f: lsn.other_mean_ablation(r), ValueError, r"statistics is a Run: .*run\.statistics",
    ),
    "units without layers": (
        lambda m, c, r, f: lsn.NeuronSet.from_dict({"fr": [5, 49]}, (2, 48)),
        ValueError, r"\[5, 49\]: expected pairs \(layer, unit\), as \{\"fr\": \[\(5, 49\)\]\}",
    ),
    "no device": (
        lambda m, c, r, f: lsn.load_model("demo", device="gpu"), ValueError, "device='gpu': expected a device of Py",
    ),
    "corpora to load": (
        lambda m, c, r, f: lsn.load_corpora(c), ValueError, "the source is corpora already: use it as it is",
    ),
    "one column for two": (
        lambda m, c, r, f: lsn.load_corpora(pd.DataFrame({"language": ["en"], "text": ["a"]}), column="language"),
        ValueError, r"column='language' is also language_column: .*\['language', 'text'\]",
    ),
    "rows without a label": (
        lambda m, c, r, f: lsn.load_corpora(pd.DataFrame({"language": ["en", np.nan, None], "text": ["a"] * 3})),
        ValueError, r"rows \[1, 2\] of the table \(from 0; 2 in all\) have no label in 'language'.*dropna",
    ),
    "a label with a space": (
        lambda m, c, r, f: lsn.load_corpora({"en ": ["a"]}), ValueError, "'en ' begins or ends with a space",
    ),
    "nothing to measure on": (
        lambda m, c, r, f: lsn.perplexity_table(m, c, f, evaluate=lambda _: []), ValueError,
        r"evaluate\('en'\) is empty: expected one or more of \['en', 'de'\]",
    ),
    "one language to measure on": (
        lambda m, c, r, f: lsn.perplexity_table(m, c, f, evaluate=lambda own: own), ValueError, "is one string",
    ),
    "a function with text of its own": (
        lambda m, c, r, f: workflow_grid(m, len, DEEP, Stages(1, 1), text=c), ValueError,
        r"measure is a function, which reads its own text: leave out text= and layout=",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def asked(tiny, corpora):
    model = tiny("llama")
    run = lsn.collect(model, corpora, ["lape"], layout=BLOCKS, progress=False)
    return model, corpora, run, lsn.NeuronSet(("en", "de"), {"mlp": DEEP.masks["mlp"][:, :2]})


def never(*_, **__):
    raise AssertionError("this runs the model")


@pytest.mark.parametrize(("call", "kind", "said"), FIRST_STEPS.values(), ids=list(FIRST_STEPS))
def test_a_wrong_first_step_is_refused_in_words_before_anything_runs(call, kind, said, asked, as_a_user, monkeypatch):
    for module in (
        "collection.collecting._run_shards",
        "evaluation.baseline.document_losses",
        "generation.sampling._write",
    ):
        monkeypatch.setattr(f"lsn_lens.{module}", never)
    with pytest.raises(kind, match=said):
        call(*asked)


@pytest.mark.parametrize("name", ["mean_ablation", "other_mean_ablation", "language_mean", "resample", "set_to", "add"])
def test_what_makes_an_action_is_no_action(name, asked, as_a_user):
    model, corpora, run, found = asked
    for call in (lsn.perplexity_matrix, lsn.perplexity_table):
        with pytest.raises(
            ValueError, match=rf"action={name} makes an action: call it\. Expected an action: lsn\.zero"
        ):
            call(model, corpora, found, getattr(lsn, name), progress=False)
    with pytest.raises(ValueError, match=f"action={name} makes an action"):
        lsn.compare(run, model=model, corpora=corpora, action=getattr(lsn, name), progress=False)


def test_texts_and_sums_are_shown_in_short(asked):
    _, corpora, run, _ = asked
    find = corpora["en"].find
    assert repr(find) == "Documents(find of texts:en: 9)" and len(find) == 9
    assert repr(corpora["en"].hold_out) == "Documents(hold_out of texts:en: 3)"
    assert len(repr(find.records)) < 150
    assert repr(run.statistics) == "Statistics(en, de; 2 layers; mlp_pre.positive, mlp_post.sum, mlp_post.squares)"


def test_slices_of_documents(corpora):
    every = list(corpora["en"].find)
    for place in (
        slice(2),
        slice(1, 5, 2),
        slice(None),
        slice(3, None),
        slice(-2, None),
        slice(None, None, -1),
        slice(0),
    ):
        assert corpora["en"].find[place] == every[place]
    read = []

    def told():
        for text in TEXTS["en"]:
            read.append(text)
            yield text

    stream = Documents(Records("s", told))
    assert stream[:2] == TEXTS["en"][:2] and len(read) == 2, "no further than needed"
    with pytest.raises(TypeError, match="is a stream"):
        stream[-1:]
    assert list(stream) and repr(stream) == "Documents(find of s)"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": 2}, "layer 2: the model has the layers 0 to 1"),
        ({"mode": "monolingual", "anchor_layer": -3}, "layer -3: the model has the layers 0 to 1"),
        ({"exclude": (10_000,)}, r"exclude=\[10000\]: the residual stream has the dimensions 0 to"),
    ],
)
def test_a_methods_layers_and_units_are_checked_before_a_pass(settings, words, tiny, corpora, monkeypatch):
    monkeypatch.setattr("lsn_lens.collection.collecting.plan_of", None)
    with pytest.raises(ValueError, match=words):
        lsn.collect(tiny("llama"), corpora, [lsn.methods.LanguageDimensions(**settings)], progress=False)
