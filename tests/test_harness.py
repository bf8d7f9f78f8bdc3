"""The adapter to lm-evaluation-harness; needs the extra `tasks`."""

import json

import numpy as np
import pytest
import torch
from conftest import BACKENDS

pytest.importorskip("lm_eval")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from rouge_score.rouge_scorer import RougeScorer

import lsn_lens as lsn
from lsn_lens.generation.tasks.generated import rouge_l, units
from lsn_lens.generation.tasks.harness import HarnessModel

ARCHITECTURES = [(each, backend) for each in ("llama", "gpt2", "bloom") for backend in BACKENDS]
PAIRS = [
    ("The river is high after the", " rain, and the bridge"),
    ("Der Fluss ", "steht nach dem Regen hoch"),
    ("", "La rivière est haute"),
    ("雨后", "河水上涨桥已经关闭。"),
    ("The", " bridge"),
    ("<|endoftext|>The", " bridge"),
]


def requests(kind, arguments):
    return [Instance(kind, {}, each, place) for place, each in enumerate(arguments)]


@pytest.fixture
def both(load, tiny_model_folder):
    """`both(architecture, backend, bos)`: our adapter and the harness's own, of the same weights."""

    def build(architecture, backend, bos=True, **options):
        theirs = HFLM(str(tiny_model_folder(architecture)), device="cpu", batch_size=4, add_bos_token=bos)
        theirs.tokenizer.add_bos_token = bos
        return HarnessModel(load(architecture, backend), batch_size=4, add_bos=bos, progress=False, **options), theirs

    return build


@pytest.mark.parametrize(("architecture", "backend"), ARCHITECTURES)
def test_log_likelihoods_are_those_of_the_harness(both, architecture, backend):
    ours, theirs = both(architecture, backend, bos=False)
    for one, other in zip(*(m.loglikelihood(requests("loglikelihood", PAIRS)) for m in (ours, theirs)), strict=True):
        assert one[0] == pytest.approx(other[0], abs=2e-4)
        assert one[1] == other[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_likelihoods_by_hand(load, hugging_face, backend):
    """With a beginning token, on Hugging Face's own modules; and greedy continuations are called greedy."""
    model, original = HarnessModel(load("llama", backend), progress=False), hugging_face("llama").requires_grad_(False)
    tokenizer = model.tokenizer
    prompt = [0, *tokenizer("The river", add_special_tokens=False)["input_ids"]]
    best = int(original(torch.tensor([prompt])).logits[0, -1].argmax())
    for last in (best, 300):
        chances = original(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        (answer,) = model._loglikelihood_tokens([(("a", "b"), prompt, [last])])
        assert answer == (pytest.approx(float(chances[last]), abs=1e-4), last == best)
    assert model.tok_encode("The river") == prompt
    assert model.tok_encode("<|endoftext|>The river") == prompt


@pytest.mark.parametrize("backend", BACKENDS)
def test_rolling_log_likelihoods(both, backend):
    ours, theirs = both("llama", backend, bos=False)
    texts = [("The river is high after the rain, and the bridge is closed. " * 6,), ("雨后河水",), ("The",)]
    assert len(ours.tok_encode(texts[0][0])) > 2 * 64
    values = [m.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for m in (ours, theirs)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_generation_is_that_of_the_harness(both, backend):
    ours, theirs = both("llama", backend, bos=False)
    settings = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    asked = [("The river", settings), ("Der Fluss steht", settings), ("La", {**settings, "until": []})]
    written = [m.generate_until(requests("generate_until", asked)) for m in (ours, theirs)]
    assert written[0] == written[1]
    assert len(set(written[0])) > 1
    with pytest.raises(ValueError, match="top_k"):
        ours.generate_until(requests("generate_until", [("The", {**settings, "top_k": 3})]))


def test_contexts_that_are_too_long(both):
    pair = [("The river is high after the rain, and " * 12, " the bridge")]
    ours, theirs = both("llama", "bridge", bos=False)
    with pytest.raises(ValueError, match=r"request .*the context has 64"):
        ours.loglikelihood(requests("loglikelihood", pair))
    ours, _ = both("llama", "bridge", bos=False, truncate=True)
    values = [m.loglikelihood(requests("loglikelihood", pair))[0][0] for m in (ours, theirs)]
    assert values[0] == pytest.approx(values[1], abs=2e-4)


TASK = """
task: river
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task of the harness in a folder: the file, and a manager that knows it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    generator = np.random.default_rng(0)
    words = ["rain", "bridge", "river", "Regen", "pluie", "雨", "high", "closed"]
    rows = [
        {
            "question": f"The {words[i % 8]} is",
            "choices": list(generator.choice(words, 3, replace=False)),
            "answer": i % 3,
        }
        for i in range(30)
    ]
    (tmp_path / "river.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "river.yaml").write_text(TASK.format(file=tmp_path / "river.jsonl"))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def run(model, task):
    options = {"bootstrap_iters": 0, "log_samples": True, "random_seed": 0}
    found = lm_eval.simple_evaluate(model=model, tasks=["river"], task_manager=task, **options)
    scores = [[float(each[0][0]) for each in sample["resps"]] for sample in found["samples"]["river"]]
    return found["results"]["river"]["acc,none"], np.array(scores)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_with_and_without_an_intervention(both, hugging_face, task, backend):
    ours, theirs = both("llama", backend, bos=False)
    before, expected = run(ours, task), run(theirs, task)
    assert before[0] == expected[0]
    assert np.allclose(before[1], expected[1], atol=2e-4)
    units = torch.zeros(1, 2, 48, dtype=torch.bool)
    units[..., ::2] = True
    with lsn.intervene(ours.model, lsn.NeuronSet(("xx",), {"mlp": units})):
        during = run(ours, task)
    after = run(ours, task)
    with torch.no_grad():
        for layer, block in enumerate(theirs.model.model.layers):
            block.mlp.down_proj.weight[:, units[0, layer]] = 0
    edited = run(theirs, task)
    assert during[0] == edited[0]
    assert np.allclose(during[1], edited[1], atol=2e-4)
    assert not np.allclose(during[1], before[1], atol=0.1)
    assert np.array_equal(after[1], before[1])


def test_rouge_l_is_that_of_the_library_on_the_same_units():
    class Ours:
        def tokenize(self, text):
            return units(text)

    scorer = RougeScorer(["rougeL"], tokenizer=Ours())
    generator = np.random.default_rng(0)
    words = ["the", "river", "is", "high", "雨后", "河水", "est", "haute,"]
    for _ in range(50):
        first, second = (" ".join(generator.choice(words, generator.integers(1, 15))) for _ in range(2))
        assert rouge_l(first, second) == pytest.approx(scorer.score(second, first)["rougeL"].fmeasure)
