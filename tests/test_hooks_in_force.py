"""What is on a model when a public function is called is part of the model, in every pass."""

import ast
import contextlib
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import ARCHITECTURES, BACKENDS, D_MLP, SENTENCES, VOCABULARY, tiny_tokenizer
from tiny import redraw

import lsn_lens as lsn
from lsn_lens import analysis, applications, generation, inspection
from lsn_lens.analysis import contributions, experts, representations  # fmt: skip
from lsn_lens.controls import ablations, matched, neutral, redetection  # fmt: skip
from lsn_lens.evaluation import baseline, by_document, perplexity, stages, workflow  # fmt: skip
from lsn_lens.evaluation.stages import Stages
from lsn_lens.generation import continuations  # fmt: skip
from lsn_lens.generation.steering.trials import Trial, prompts_from, run_trials
from lsn_lens.methods.catalogue import METHODS
from lsn_lens.model import forward, hooks
from lsn_lens.planted.measuring import measure_roles
from lsn_lens.planted.reading import read_text
from lsn_lens.report.text_view import activations_on_text

PACKAGE = Path(lsn.__file__).parent
LAYERS = 4
QUIET = {"progress": False}
CUT = {**QUIET, "layout": lsn.Layout(length=32, max_tokens=64, shards=2)}
TEXTS = {
    label: [f"{number} {SENTENCES[place]} {SENTENCES[place]}" for number in range(6)]
    for label, place in (("en", 0), ("fr", 2))
}
IDS = torch.arange(40).view(2, 20) * 7 % VOCABULARY
NEUTRAL = lsn.load_corpora({"n": [f"{i} 2 3 4 5 6 7 8 9 1 2 3" for i in range(20)]})
PARALLEL = {
    label: [f"{number} {SENTENCES[place][: 20 + 5 * number]}" for number in range(5)]
    for label, place in (("en", 0), ("fr", 2))
}
PROMPTS = {"en": ["The river is high", "The bridge"], "fr": ["La rivière est", "Le pont"]}
HALF = list(range(0, D_MLP, 2))


def chosen(*places):
    """Units of one language: (layer, units) pairs."""
    mask = torch.zeros(1, LAYERS, D_MLP, dtype=torch.bool)
    for layer, units in places:
        mask[0, layer, units] = True
    return mask


FOUND = lsn.NeuronSet(
    ("en", "fr"),
    {
        "mlp": torch.cat(
            [chosen(*((i, [i, 20 + i]) for i in range(1, 4))), chosen(*((i, [8 + i]) for i in range(1, 4)))]
        )
    },
)
OUTER = lsn.NeuronSet(("x",), {"mlp": chosen((0, HALF))})  # what is off around every function of the table
LATE = lsn.zero.at(slice(8, None))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """`build(backend, dtype)`: a fresh model of four layers."""
    model_type, sizes = ARCHITECTURES["llama"]
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, **{**sizes, "num_hidden_layers": LAYERS},
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    )  # fmt: skip
    hf_model = redraw(transformers.AutoModelForCausalLM.from_config(config))
    folder = tmp_path_factory.mktemp("tiny") / "four"
    hf_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return lambda backend, dtype=torch.float32: lsn.load_model(folder, backend=backend, dtype=dtype, device="cpu")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def model(build, backend):
    return build(backend)


@pytest.fixture(scope="module")
def bridge(build):
    return build("bridge")


@pytest.fixture(scope="module")
def edited(build, backend):
    """The same model, the rows of the down projection that `OUTER` switches off set to zero."""
    return edit(build(backend))


@torch.no_grad()
def edit(model, units=OUTER, factor=0.0):
    for layer, unit in units.units("mlp").nonzero().tolist():
        down = model.blocks[layer].mlp
        if hasattr(model, "original_model"):
            down.out.original_component.weight[:, unit] *= factor
        else:
            down.W_out[unit] *= factor
    return model


@pytest.fixture(scope="module")
def given(bridge):
    corpora = lsn.load_corpora(TEXTS, hold_out=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = lsn.collect(bridge, corpora, ["lape", "diffmean"], **CUT)
    units = {"layer": range(LAYERS), "unit": [3] * LAYERS, "role": ["language"] * LAYERS, "concept": [""] * LAYERS,
             "languages": [("en",)] * LAYERS, "script": [""] * LAYERS, "level": [0.0] * LAYERS,
             "truth": [True] * LAYERS}  # fmt: skip
    kinds = {
        "mlp": FOUND.masks["mlp"],
        "q": torch.rand(2, LAYERS, 32, generator=torch.Generator().manual_seed(1)) < 0.1,
    }
    return SimpleNamespace(
        corpora=corpora,
        run=run,
        units=pd.DataFrame(units),
        kinds=lsn.NeuronSet(("en", "fr"), kinds),
        text=read_text(bridge.tokenizer, corpora, "hold_out", 60, 64),
        labels=analysis.token_languages(bridge.tokenizer, corpora, vocabulary=VOCABULARY),
        items=generation.load_items([{"prompt": "The river is", "choices": [" high", " closed"], "answer": 0}]),
    )


def name_language(texts):
    return [("en" if len(text) % 2 else "fr", 0.9) for text in texts]


def wordy(name):
    return generation.instruction({"en": "Yes. ", "fr": "Oui. "}, name=name)


def run_sums(model, given, methods=("lape", "diffmean", "entropy_lambda"), **settings):
    """What a run keeps of the layers behind the one with edited units."""
    run = lsn.collect(model, given.corpora, methods, **{**CUT, **settings})
    return {key: value[:, 1:] for key, value in run.statistics.sums.items()}


def lensed(model, given):
    return torch.stack(analysis.logit_lens(model, IDS))[1:]  # layer 0, the embedding, is before all units


def only(model, given):
    frames = []
    for selection in ("per_layer", "cross_layer"):
        with experts.only_experts(model, EXPERTS, 1.0, selection=selection):
            frames.append(by_document.document_losses(model, given.corpora, **QUIET))
    return frames  # of all experts: units off and without weights are chosen differently


def inside(model, given):
    with lsn.intervene(model, FOUND["en"]):
        return forward.logits(model, IDS)


EXPERTS = experts.ExpertAssignment(torch.arange(D_MLP).expand(LAYERS, -1) // 12)


def trial():
    what = lsn.Intervention("off", ((FOUND["en"], lsn.zero),))
    return [Trial(what, PROMPTS["en"], [{"label": i} for i in range(2)], {})]


# every public function that runs a model -> how it is called; its result is compared
ROWS = {
    "interventions.values.resample": lambda m, g: lsn.resample(m, TEXTS["fr"], tokens=20, **QUIET).values["mlp"][1:],
    "collection.collecting.collect": run_sums,
    "controls.ablations.ablation_sensitivity": lambda m, g: ablations.ablation_sensitivity(
        m, g.corpora, g.run, FOUND, actions={"zero": lsn.zero, "half": lsn.scale(0.5)}, seeds=1, **CUT
    ),
    "controls.ablations.kinds_of_ablation": lambda m, g: (
        ablations.kinds_of_ablation(m, g.corpora, g.run, FOUND, tokens=20)["resample"]("en").values["mlp"][1:]
    ),
    "comparison.comparing.compare": lambda m, g: lsn.compare(
        g.run, ["lape"], model=m, corpora=g.corpora, action=lsn.zero, seeds=2, control_tokens=64,
        found={"lape": FOUND}, **CUT,
    ).losses,
    "generation.continuations.score": lambda m, g: pd.DataFrame(
        continuations.score(m, continuations.encode(m.tokenizer, "The river", [" is high", " is"]), **QUIET)
    ),
    "controls.matched.outlier_effects": lambda m, g: matched.outlier_effects(
        m, g.corpora, FOUND, pd.DataFrame({"basis": ["mlp"], "layer": [1], "unit": [1]}), **CUT
    ),
    "evaluation.by_document.document_losses": lambda m, g: by_document.document_losses(m, g.corpora, **QUIET),
    "analysis.experts.only_experts": only,
    "applications.prune_measuring.prune_losses": lambda m, g: applications.prune_losses(
        m, g.corpora, {"plan": FOUND}, **CUT
    ).table.drop(columns="kept_parameters"),
    "applications.prune_measuring.sparse_losses": lambda m, g: applications.sparse_losses(
        m, g.corpora, {"plan": PLAN}, EXPERTS, 0.75, **CUT
    ).table.query("plan == 'plan'"),
    "applications.type_effects.type_losses": lambda m, g: applications.type_losses(
        m, PARALLEL, types=["all-shared"], seeds=1, **QUIET
    ).table,
    "applications.type_effects.type_accuracy": lambda m, g: applications.type_accuracy(
        m, generation.ending_items(PARALLEL, choices=2), types=["all-shared"], seeds=1, **QUIET
    ).table,
    "applications.item_types.type_sets": lambda m, g: applications.type_sets(m, PARALLEL, **QUIET).contributions[:, 1:],
    "analysis.siblings.compare_sharing": lambda m, g: analysis.compare_sharing(
        m, m, PARALLEL, halvings=1, **QUIET
    ).profiles.query("layer > 0"),
    "generation.sampling.generate": lambda m, g: lsn.generate(m, PROMPTS["en"], tokens=4, **QUIET),
    "generation.sampling.generate_each": lambda m, g: lsn.generate_each(
        m, [lsn.Intervention("off", ((FOUND["en"], lsn.zero),))], PROMPTS["en"], tokens=4, **QUIET
    ),
    "evaluation.baseline.held_out": lambda m, g: baseline.held_out(
        m, g.corpora, CUT["layout"], **QUIET
    ).measure(FOUND, **QUIET).table,
    "analysis.lens.layers.logit_lens": lensed,
    "analysis.lens.layers.working_language": lambda m, g: analysis.working_language(m, TEXTS, g.labels, **QUIET),
    "analysis.lens.probes.word_probes": lambda m, g: analysis.word_probes(
        m, [analysis.WordProbe({"en": "The river is"}, {"en": "high", "fr": "pont"})], **QUIET
    ),
    "controls.neutral.measured_neutral": lambda m, g: neutral.measured_neutral(
        m, NEUTRAL, **QUIET
    ).unchanged,
    "controls.neutral.off_target": lambda m, g: neutral.off_target(
        m, g.corpora, FOUND, seeds=1, neutral=NEUTRAL, prompts=2, tokens=4, **CUT
    ).losses,
    "evaluation.perplexity.loss_table": lambda m, g: perplexity.loss_table(
        m, g.corpora, [lsn.Intervention("off", ((FOUND["en"], lsn.zero),))], **CUT
    ),
    "evaluation.perplexity.perplexity_matrix": lambda m, g: lsn.perplexity_matrix(
        m, g.corpora, FOUND, measure="nll", **CUT
    ),
    "evaluation.perplexity.perplexity_table": lambda m, g: lsn.perplexity_table(m, g.corpora, FOUND, **CUT),
    "analysis.representations.sentence_embeddings": lambda m, g: representations.sentence_embeddings(
        m, PROMPTS, **QUIET
    ).values[:, :, 1:],
    "evaluation.stages.search_stages": lambda m, g: stages.search_stages(
        m, g.corpora, g.kinds, understand=[1], generate=[1], **CUT
    )[1],
    "generation.steering.deactivation.deactivate": lambda m, g: generation.deactivate(
        m, {"a": FOUND}, PROMPTS, name_language, seeds=1, tokens=3, **QUIET
    ),
    "generation.steering.trials.run_trials": lambda m, g: run_trials(
        m, trial(), name_language, tokens=3, **QUIET
    ),
    "generation.steering.ways.steer": lambda m, g: generation.steer(
        m, [wordy("words")], PROMPTS, ["en", "fr"], name_language, samples=1, tokens=3, **QUIET
    ),
    "generation.steering.ways.steering_losses": lambda m, g: generation.steering_losses(
        m, g.corpora, [generation.Steering("off", lambda *_: trial()[0].intervention)], ["en", "fr"], **CUT
    ),
    "controls.redetection.survival": lambda m, g: redetection.survival(
        m, g.corpora, {"lape": METHODS["lape"](rate=0.2)}, {"same": dict}, **CUT
    ),
    "generation.tasks.scoring.evaluate_items": lambda m, g: generation.evaluate_items(m, g.items, **QUIET),
    "evaluation.workflow.workflow_grid": lambda m, g: workflow.workflow_grid(
        m, g.corpora, g.kinds, Stages(1, 1), switches=list(workflow.SWITCHES)[:1], seeds=1, **CUT
    ),
    "interventions.intervening.intervene": inside,
    "planted.measuring.measure_roles": lambda m, g: measure_roles(
        m, g.text, g.units, **QUIET
    ).query("layer > 0"),
    "inspection.reading.top_texts": lambda m, g: inspection.top_texts(
        m, g.corpora, [("mlp", 2, 3), ("resid", 3, 1)], **CUT
    ).to_frame(),
    "report.text_view.activations_on_text": lambda m, g: activations_on_text(
        m, TEXTS_OF_ONE, pd.DataFrame({"layer": [1, 2], "unit": [1, 3], "language": ["en", "fr"]})
    ),
}  # fmt: skip
TEXTS_OF_ONE = {language: texts[0] for language, texts in PROMPTS.items()}
ROWS_OF = {"mlp": chosen(*((i, range(12)) for i in range(LAYERS))).expand(2, -1, -1)}
PLAN = lsn.NeuronSet(("en", "fr"), ROWS_OF)
BLIND = {  # they take a model, and read its weights, its tokenizer or its sizes alone
    "generation.steering.trials.prompts_from": lambda m, g: prompts_from(m, g.corpora, count=1, tokens=2),
    "applications.prune.prune_scores": lambda m, g: applications.prune_scores(m, g.run.statistics),
    "applications.prune.prune_plan": lambda m, g: applications.prune_plan(m, g.run.statistics, 0.5),
    "analysis.contributions.down_norms": lambda m, g: contributions.down_norms(m),
    "analysis.contributions.effective_values": lambda m, g: contributions.effective_values(
        m, 1, torch.rand(2, D_MLP), torch.tensor([1, 2])
    ),
    "analysis.contributions.effective_score": lambda m, g: contributions.effective_score(g.run.statistics, m, 1),
    "analysis.lens.layers.check_lens": lambda m, g: analysis.check_lens(m),
    "inspection.words.written_tokens": lambda m, g: inspection.written_tokens(m, 1, 3),
    "inspection.words.read_tokens": lambda m, g: inspection.read_tokens(m, 1, 3),
    "inspection.words.similar_neurons": lambda m, g: inspection.similar_neurons(m, 1, 3),
}
STUDY = "calls functions that are tried by themselves, one after the other"
ELSEWHERE = {
    **dict.fromkeys(
        (
            "studies.auditing.audit",
            "studies.auditing.audit_run",
            "studies.workflow.workflow_run",
            "studies.workflow.workflow_study",
            "studies.prune.prune_run",
            "studies.prune.prune_study",
            "studies.sharing.sharing_study",
            "studies.steering.steering_run",
            "studies.steering.steering_study",
            "studies.text_dependence.text_dependence_run",
            "studies.text_dependence.text_dependence_study",
            "studies.working_language.working_language_study",
            "studies.working_language.working_language_labels",
            "studies.steering.ways",
            "studies.translation.translation_study",
            "report.text_view.highest_on_text",
            "generation.sampling.under",
            "inspection.showing.show_neuron",
            "inspection.showing.neuron_gallery",
        ),
        STUDY,
    ),
    **dict.fromkeys(
        (
            "applications.finetuning.delta.apply_delta",
            "applications.finetuning.delta.changed",
            "applications.finetuning.delta.save_checkpoint",
            "applications.finetuning.tuning.finetune",
            "studies.finetuning.finetuning_run",
            "studies.finetuning.finetuning_study",
        ),
        "refuses hooks: its tests are in test_finetuning.py",
    ),
    **dict.fromkeys(
        ("command.auditing.report", "command.comparing.report", "command.steering.report"),
        "calls functions of this table, on a model that it has just loaded",
    ),
    "applications.finetuning.places.all_units": "sizes, by a probe without hooks",
    "applications.finetuning.places.entries_of": "the same",
    "applications.finetuning.places.modules_of": "names of modules",
    "applications.finetuning.rows.rows_of": "reads the tokenizer and the context",
    "controls.causal.short_layout": "reads the context",
    "neurons.importing.plnd_set": "reads the numbers of heads",
    "neurons.hub.from_hub": "compares fingerprints",
    "generation.stopping.endings": "reads the tokenizer",
    "model.loading.labelled": "sets a name",
    "collection.wanted.Fits": "sizes, by a probe without hooks",
    "inspection.reading.check_units": "sizes, by a probe without hooks",
    "interventions.intervening.check_steps": "compares fingerprints",
    "interventions.intervening.step_hooks": "makes the hooks of intervene",
    "model.unembedding.has_parts": "asks whether the head can be run in parts",
    "model.unembedding.tokens_at_once": "reads the size of the vocabulary",
    "model.unembedding.bytes_for_gradient": "reads the size of the vocabulary",
    "model.unembedding.forward_for_gradient": "the gradient of collect",
    "model.unembedding.next_token_losses": "the losses of perplexity_table",
    "model.unembedding.token_losses": "the losses of perplexity_table",
    "collection.wanted.needs_of": "asks which hook points there are",
    "collection.wanted.widths_of": "sizes, by a probe without hooks",
    "analysis.lens.layers.unembedded": "the head, inside a hook of logit_lens",
    "generation.tasks.harness.HarnessModel": "needs lm_eval; its tests are in test_harness.py",
    "interventions.intervening.hooks_of": "makes hooks and runs nothing",
    "interventions.other_tools.recipe": "refuses hooks: its tests are in test_other_tools.py",
    "evaluation.jobs.jobs_of": "the same",
    "evaluation.jobs.jobs_for": "the same",
    "evaluation.scored.document_losses": "one pass of held_out",
    "evaluation.scored.document_sums": "the same",
    "evaluation.scored.at_once": "reads the size of the vocabulary",
    "interventions.intervening.intervention_hooks": "the same",
    "collection.planning.plan_run": "sizes, also of models without weights",
    "collection.planning.plan_of": "reads the tokenizer and the context",
    "model.entry.check_model": "the check itself",
    "model.entry.check_plain": "refuses hooks",
}
INNER = (
    "model.structure", "model.forward", "model.hooks", "model.weights", "model.mlps", "model.probing",
    "model.acceptance", "model.resuming", "collection.passes", "collection.recorders", "neurons.identity",
)  # fmt: skip
# what the public functions are made of


def takes_model(node):
    if isinstance(node, ast.ClassDef):
        return any(takes_model(each) for each in node.body if getattr(each, "name", "") == "__init__")
    arguments = getattr(node, "args", None)
    named = [*arguments.args, *arguments.kwonlyargs] if isinstance(node, ast.FunctionDef) else []
    return any(each.arg == "model" for each in named)


def test_the_table_has_every_public_function_that_takes_a_model():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not module.startswith(INNER):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            found |= {f"{module}.{each.name}" for each in body if takes_model(each) and not each.name.startswith("_")}
    assert found == {*ROWS, *BLIND, *ELSEWHERE}


def test_the_unchanged_losses_are_not_set_against_those_under_other_hooks(model, given):
    text = baseline.held_out(model, given.corpora, CUT["layout"], **QUIET)
    with lsn.intervene(model, OUTER), pytest.raises(ValueError, match=r"now they are on .*call held_out again"):
        text.measure(FOUND, **QUIET)
    assert len(text.measure(FOUND, **QUIET).table)
    with lsn.intervene(model, OUTER):
        under = baseline.held_out(model, given.corpora, CUT["layout"], **QUIET)
        assert len(under.measure(FOUND, **QUIET).table)
    with pytest.raises(ValueError, match="now they are on nothing"):
        under.measure(FOUND, **QUIET)


def plain(result):
    """Numbers and texts of any result, in order."""
    if isinstance(result, pd.DataFrame):
        result = result.to_dict("list")
    if isinstance(result, torch.Tensor):
        return np.nan_to_num(result.detach().double().numpy().ravel()), []
    if isinstance(result, (list, tuple, dict)):
        parts = [plain(each) for each in (result.values() if isinstance(result, dict) else result)]
        return np.concatenate([each[0] for each in parts] or [np.zeros(0)]), [x for each in parts for x in each[1]]
    if isinstance(result, (bool, int, float, np.number)):
        return np.nan_to_num(np.array([float(result)])), []
    return np.zeros(0), [str(result)]


def difference(one, other):
    """Largest difference of numbers, relative where they are large; infinite where texts or sizes differ."""
    (a, texts), (b, others) = plain(one), plain(other)
    if a.shape != b.shape or texts != others:
        return np.inf
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max(initial=0))


PASSES = (  # those with a forward pass of their own; the others call them
    "values.resample", "collecting.collect", "continuations.score", "document_losses", "sampling.generate",
    "logit_lens", "word_probes", "perplexity_table", "loss_table", "sentence_embeddings", "intervene", "measure_roles",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
def test_units_off_around_a_function_are_units_without_weights(model, edited, given, name):
    own = name.endswith(PASSES)
    if not own and not hasattr(model, "original_model"):
        pytest.skip("calls functions that are tried by themselves, and a HookedTransformer has one way to run")
    with lsn.intervene(model, OUTER):
        inside = ROWS[name](model, given)
    assert difference(inside, ROWS[name](edited, given)) < 2e-4
    if own:
        assert difference(inside, ROWS[name](model, given)) > 2e-3  # or nothing would be tried


@pytest.mark.parametrize("name", [*ROWS, *BLIND])
def test_every_function_refuses_a_model_in_training_mode(bridge, given, name):
    bridge.train()
    try:
        with pytest.raises(ValueError, match=r"is in training mode .* Call model.eval\(\) first"):
            {**ROWS, **BLIND}[name](bridge, given)
    finally:
        bridge.eval()


# --- everything that can be on a model ---


def torch_hook(place, hook, kind="register_forward_hook"):
    @contextlib.contextmanager
    def put(module):
        handle = getattr(module, kind)(hook)
        try:
            yield
        finally:
            handle.remove()

    return lambda model: put(place(model))


@contextlib.contextmanager
def nested(model):
    with lsn.intervene(model, OUTER, LATE), lsn.intervene(model, lsn.NeuronSet(("x",), {"mlp": chosen((2, HALF))})):
        yield


def attention(model):
    heads = torch.zeros(1, LAYERS, 32, dtype=torch.bool)
    heads[0, 1, :16] = True
    return lsn.intervene(model, lsn.NeuronSet(("x",), {"z": heads}), LATE)


@contextlib.contextmanager
def permanent(model):
    point = model.hook_dict["blocks.1.hook_resid_post"]
    point.add_perma_hook(lambda acts, hook: acts * (torch.arange(acts.shape[1]) < 9)[:, None])
    try:
        yield
    finally:
        point.remove_hooks(including_permanent=True)


@contextlib.contextmanager
def replaced(model):
    part = model.blocks[1].mlp._modules.get("_original_component", model.blocks[1].mlp)  # a component hands it on
    part.forward = lambda *given, **more: type(part).forward(part, *given, **more) * 0.5
    try:
        yield
    finally:
        del part.forward


@contextlib.contextmanager
def everywhere(model):
    part = model.blocks[1].mlp
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, made: made * 0.5 if module is part else None
    )
    try:
        yield
    finally:
        handle.remove()


def halved(module, given, made):
    return made * 0.5


def halved_input(module, given):
    return (given[0] * 0.5, *given[1:])


PUT_ON = {
    "late": lambda m: lsn.intervene(m, OUTER, LATE),
    "weak": lambda m: lsn.intervene(m, OUTER, lsn.scale(0.998)),
    "nested": nested,
    "attention": attention,
    "hook": lambda m: m.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda acts, hook: acts * 0.5)]),
    "permanent": permanent,
    "torch hook on a component": torch_hook(lambda m: m.blocks[1].mlp, halved),
    "torch hook on a hook point": torch_hook(lambda m: m.hook_dict["blocks.1.mlp.hook_post"], halved),
    "torch hook before a component": torch_hook(lambda m: m.blocks[1].mlp, halved_input, "register_forward_pre_hook"),
    "replaced forward": replaced,
    "torch hook on all modules": everywhere,
}
ON_A_BRIDGE = {
    "torch hook on a wrapped module": torch_hook(lambda m: m.blocks[1].mlp.out.original_component, halved),
    "torch hook on a wrapped block": torch_hook(lambda m: m.blocks[1].mlp.original_component, halved),
}


def measured(model, given):
    return [
        *run_sums(model, given, ("lape", "diffmean")).values(),
        perplexity.loss_table(model, given.corpora, [lsn.Intervention("off", ((FOUND["en"], lsn.zero),))], **CUT),
        representations.sentence_embeddings(model, PROMPTS, **QUIET).values,
    ]


@pytest.fixture(scope="module")
def bare(bridge, given):
    return measured(bridge, given)


@pytest.mark.parametrize("name", [*PUT_ON, *ON_A_BRIDGE])
def test_whatever_is_on_a_model_is_kept_where_components_are_swapped(bridge, given, bare, name, monkeypatch):
    with {**PUT_ON, **ON_A_BRIDGE}[name](bridge):
        lean = measured(bridge, given)
        monkeypatch.setattr(forward, "lean_is_exact", lambda *_: False)  # all components, and so all hooks
        full = measured(bridge, given)
    assert difference(lean, full) < 2e-4
    assert difference(bare, full) > 5 * difference(lean, full)


def test_the_swapping_itself_takes_place(bridge):
    """Otherwise the tests above try nothing."""
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(LAYERS)]
    assert forward.lean_is_exact(bridge, names)
    attention = bridge.blocks[0].attn
    with forward.lean(bridge, names):
        assert attention in {child for _, _, child in hooks.swaps[bridge].swapped}
        assert bridge.original_model.config._attn_implementation == "sdpa"
    assert bridge.blocks[0].original_component.self_attn is attention
    assert bridge.original_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", [*PUT_ON, *ON_A_BRIDGE])
def test_what_is_put_on_while_components_are_swapped_is_kept(bridge, name):
    put = {**PUT_ON, **ON_A_BRIDGE}[name](bridge)
    with forward.lean(bridge, ["blocks.3.mlp.hook_post"]):
        before = forward.hidden_states(bridge, IDS, None)
        with put:
            inside = forward.hidden_states(bridge, IDS, None)
        after = forward.hidden_states(bridge, IDS, None)
    with {**PUT_ON, **ON_A_BRIDGE}[name](bridge):
        expected = forward.hidden_states(bridge, IDS, None)
    assert difference(inside, expected) < 2e-5 < difference(inside, before)
    assert difference(after, before) < 2e-5


def test_a_recording_hook_sees_the_passes_over_the_text_and_no_probe(model, given):
    seen = Counter()

    def record(name):
        return name, lambda acts, hook: seen.update({name: acts.shape[0] * acts.shape[1]})

    names = ("blocks.0.hook_attn_out", "blocks.2.attn.hook_z", "blocks.3.hook_resid_post")
    layout = lsn.Layout(length=16, max_tokens=64)
    with model.hooks(fwd_hooks=[record(name) for name in names]):
        run = lsn.collect(model, given.corpora, ["lape"], layout=layout, **QUIET)
        tokens = int(run.statistics.tokens[:, 0].sum())
        assert seen == dict.fromkeys(names, tokens)
        lsn.perplexity_table(model, given.corpora, FOUND, layout=layout, **QUIET)
        assert seen == dict.fromkeys(names, 4 * tokens)  # without, and with the units of two languages off
        representations.sentence_embeddings(model, {"en": ["The river"]}, **QUIET)
        more = 1 + len(model.tokenizer("The river", add_special_tokens=False)["input_ids"])
        assert seen == dict.fromkeys(names, 4 * tokens + more)


def test_a_backward_hook_in_force_sees_the_backward_pass(bridge, given):
    seen = []
    with bridge.hooks(bwd_hooks=[("blocks.1.hook_attn_out", lambda grad, hook: seen.append(tuple(grad.shape)))]):
        lsn.collect(bridge, given.corpora, ["act_grad"], layout=lsn.Layout(length=32, max_tokens=64, shards=1), **QUIET)
    assert len(seen) > 0
    assert all(shape[1:] == (32, 32) for shape in seen)


def test_a_gradient_inside_inference_mode_is_the_same(model, given):
    outside = run_sums(model, given, ["act_grad"])
    with torch.inference_mode():
        inside = run_sums(model, given, ["act_grad"])
    assert difference(list(inside.values()), list(outside.values())) == 0


def test_sums_do_not_depend_on_the_default_dtype(model, given):
    expected = run_sums(model, given)
    torch.set_default_dtype(torch.float64)
    try:
        if not hasattr(model, "original_model"):
            with pytest.raises(ValueError, match=r"torch.float32, and torch's default dtype is torch.float64"):
                run_sums(model, given)
            return
        found = run_sums(model, given)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# --- setting aside, and saying what was there ---


@pytest.mark.parametrize("name", PUT_ON)
def test_hooks_are_set_aside_and_come_back_as_they_were(model, name):
    bare = model(IDS)
    with PUT_ON[name](model):
        inside = model(IDS)
        with hooks.set_aside(model):
            assert torch.equal(model(IDS), bare)
            assert not hooks.in_force(model)
        assert torch.equal(model(IDS), inside)
        assert not torch.equal(inside, bare)
    assert torch.equal(model(IDS), bare)


def test_the_order_of_hooks_survives(model):
    point, order = model.hook_dict["blocks.0.mlp.hook_post"], []
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda acts, hook: order.append("first"))]):
        handle = point.register_forward_hook(lambda *_: order.append("second"))
        with hooks.set_aside(model), contextlib.suppress(KeyError), model.hooks():
            raise KeyError
        model(IDS)
        handle.remove()
    model(IDS)
    assert order == ["first", "second"]


def test_other_interventions_have_other_descriptions(model):
    def said(what, action=lsn.zero):
        with lsn.intervene(model, what, action):
            return hooks.describe_hooks(model)

    other = lsn.NeuronSet(("x",), {"mlp": chosen((0, [0, 2]))})
    values = {"mlp": torch.ones(LAYERS, D_MLP)}
    each = [said(OUTER), said(other), said(OUTER, lsn.scale(0.5)), said(OUTER, LATE), said(OUTER, lsn.set_to(values)),
            said(OUTER, lsn.set_to({"mlp": 2 * values["mlp"]})), hooks.describe_hooks(model)]  # fmt: skip
    assert len({str(one) for one in each}) == len(each)
    assert said(OUTER) == each[0]
    assert list(each[0]) == ["blocks.0.mlp.hook_post"]
    assert " zero" in each[0]["blocks.0.mlp.hook_post"][0]
    assert each[-1] == {}


def test_a_run_is_not_resumed_under_other_hooks(model, given, tmp_path):
    def collect():
        return lsn.collect(model, given.corpora, out=tmp_path, **CUT)

    with lsn.intervene(model, OUTER):
        run = collect()
        assert list(run.settings["hooks"]) == ["blocks.0.mlp.hook_post"]
        collect()  # the same again
    with pytest.raises(ValueError, match=r"other settings: other hooks are on blocks\.0\.mlp\.hook_post\."):
        collect()
    with lsn.intervene(model, OUTER, lsn.scale(0.5)), pytest.raises(ValueError, match="other settings"):
        collect()


def test_a_run_says_whose_modules_it_ran(model, given):
    way = lsn.collect(model, given.corpora, ["lape"], **CUT).settings["forward"]
    plnd = lsn.collect(model, given.corpora, ["plnd"], **QUIET).settings["forward"]
    if hasattr(model, "original_model"):
        assert (way, plnd) == (
            {"modules": "lean", "attention": "sdpa"}, {"modules": "lean", "attention": "eager"},
        )  # fmt: skip
    else:
        assert way == plnd == {"modules": "HookedTransformer", "attention": "eager"}
