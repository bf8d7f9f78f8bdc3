"""The Python blocks of each page run, in order and in one namespace, on the embedded model and little text."""

import shutil
from functools import reduce

import datasets
import pytest
import torch
from oracles import plain
from pages import PAGES, ROOT, blocks

import lsn_lens as lsn
from lsn_lens.model.checkpoints import DEMO_MODEL
from lsn_lens.text import corpora as sources

WITH_BLOCKS = [path.relative_to(ROOT).as_posix() for path in PAGES if path.suffix == ".md" and blocks(path)]
LABELS, FIND, HOLD_OUT = ("en", "fr", "es", "de", "ja"), 6, 8
# page -> what its blocks ask for, and what is enough here
SMALLER = {
    "docs/audit.md": {"model, corpora)": "model, corpora, lsn.studies.AuditSettings(seeds=19, side_seeds=1, prompts=1, "
                      "tokens=2, max_tokens=200, evaluation_tokens=100, length=32), progress=False)"},
    "docs/comparison.md": {"run, model=model": "run, ['lape'], seeds=2, more_seeds=0, control_tokens=64, model=model",
                           "lsn.Checks()": "lsn.Checks(0, 0)", "lsn.Checks(extra": "lsn.Checks(0, 0, extra"},
    "docs/controls.md": {"found, 39": "found, 3", "seeds=5": "seeds=1", "seeds=3": "seeds=1, prompts=2, tokens=4",
                         '["lape", "plnd"]': '["lape"]', "max_tokens=1024": "max_tokens=64, length=32"},
    "docs/exchange.md": {'neurons.push_to_hub(found, "me/lape")': 'NeuronSet.save(found, "sent")',
                         'neurons.from_hub("me/lape")': 'NeuronSet.load("sent")'},
    "docs/generation.md": {"tokens=32": "tokens=4", "generate(model)": "generate(model, samples=2, tokens=4)",
                           "samples=10": "samples=2, tokens=4", "samples=50": "samples=2, tokens=4",
                           "    ],\n)\nidentify": "    ], samples=2, tokens=8,\n)\nidentify"},
    "docs/growth.md": {
        'checkpoints_in("runs/growth-model")': "{'checkpoint-800': 'demo', 'checkpoint-816': DEMO_MODEL}",
        'out="runs/growth/checkpoints"': (
            "layout=lsn.Layout(length=32, max_tokens=100), evaluation=lsn.Layout(length=32, max_tokens=64), seeds=2, "
            "replicates=0"
        ),
        "corpora = lsn": "from lsn_lens.model.checkpoints import DEMO_MODEL\n\ncorpora = lsn",
    },
    "docs/methods/language_dimensions.md": {"layer=18": "layer=3", "count=400": "count=40"},
    "docs/methods/transfer.md": {"more_seeds=0": "seeds=2, more_seeds=0, control_tokens=64, sizes=()",
                                 "count=100": "count=20"},
    "docs/neuron_pages.md": {"unit=12)": "unit=12, random=2)", 'out="gallery"': 'out="gallery", random=2',
                             "units=30": "units=2", 'out="truth"': 'out="truth", random=2'},
    "docs/pruning.md": {"max_tokens=4096": "length=32, max_tokens=100", "max_tokens=1024": "length=32, max_tokens=100"},
    "docs/runs.md": {'runs.push_to_hub(run, "me/run")': 'Run.save(run, "sent")',
                     'runs.from_hub("me/run")': 'load_run("sent")'},
    "docs/sharing_study.md": {"choices=4, items=5": "choices=2, items=2", "items=5": "items=2",
                              "1.25, 1.5, 2.0": "1.5", "halvings=2": "halvings=1"},
    "docs/significance.md": {"replicates=1000": "replicates=5", "permutations=99": "permutations=3"},
    "docs/tasks.md": {"tokens=512": "tokens=4"},
    "docs/texts.md": {"samples=100": "samples=4, tokens=8"},
    "docs/workflow.md": {"first, found)": "first, found, understand=[1], generate=[1])",
                         "found, stages)": "found, stages, seeds=1)"},
}  # fmt: skip
HUB = {  # data set -> its rows here
    "wikimedia/wikipedia": [{"text": f"The bridge is closed, {place}."} for place in range(6)],
    "facebook/belebele": [
        {"flores_passage": "It rains.", "question": "Does it?", "correct_answer_num": "1"}
        | {f"mc_answer{number}": f"answer {number}" for number in (1, 2, 3, 4)}
    ],
    "openlanguagedata/flores_plus": [{"id": 1, "text": "It rains."}],
    "juletxara/mgsm": [{"question": "One and one?", "answer_number": 2}],
}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """The first lines of the embedded text."""
    folder = tmp_path_factory.mktemp("text")
    for part, lines in (("find", FIND), ("hold-out", HOLD_OUT)):
        (folder / part).mkdir()
        for label in LABELS:
            kept = (sources.DEMO_TEXT / part / f"{label}.jsonl").read_text(encoding="utf-8").splitlines()[:lines]
            (folder / part / f"{label}.jsonl").write_text("\n".join(kept), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def given(text_folder, tmp_path_factory):
    """What pages take for granted: a model, text, a run of every method and the units of one."""
    model, corpora = lsn.load_model("demo", device="cpu"), lsn.load_corpora(text_folder, ["en", "fr", "es", "ja"])
    out = tmp_path_factory.mktemp("run") / "run"
    run = lsn.collect(model, corpora, None, out, layout=lsn.Layout(kind="documents", shards=5), progress=False)
    return {"lsn": lsn, "model": model, "corpora": corpora, "run": run, "found": lsn.detect(run, "lape")}


@pytest.fixture
def elsewhere(request, given, text_folder, tmp_path, monkeypatch):
    """An empty folder to work in; what is loaded by name is here already, and the Hub is `HUB`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "DEMO_TEXT", text_folder)
    load = lsn.load_model

    def load_model(*what, **options):
        return given["model"] if what == ("demo",) and not options else load(*what, **options)

    monkeypatch.setattr(lsn, "load_model", load_model)
    monkeypatch.setattr(lsn.planted, "make_world", lambda folder: request.getfixturevalue("world"))
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, *_, **__: datasets.Dataset.from_list(HUB[hub]))
    return tmp_path


def files_of_the_reader(folder, text_folder):
    """Files that pages speak of."""
    shutil.copytree(text_folder / "find", folder / "my_text")
    shutil.copytree(DEMO_MODEL, folder / "some" / "model", ignore=shutil.ignore_patterns("text"))
    for name in ("en", "fr", "numbers_and_code"):
        (folder / f"{name}.txt").write_text("\n".join(f"{name} {place}" for place in range(9)))
    (folder / "neurons.csv").write_text("language,layer,unit\nfr,5,12\n")
    (folder / "reviews.csv").write_text("lang,review\n" + "en,Good.\nen,Bad.\nfr,Bon.\nfr,Mauvais.\n")
    (folder / "questions.jsonl").write_text(
        '{"prompt": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0, "language": "en"}\n'
    )
    (folder / "populations.json").write_text(
        '{"model": "m", "languages": ["en", "fr"], "pct": 1.0, "tau": 0.1, "neurons": '
        '[{"layer": 31, "neuron": 14335, "cluster": ["fr"], "cost": 0.05}]}'
    )
    torch.save([[torch.tensor([layer]) for layer in range(32)] for _ in range(7)], folder / "LLaMA-2-7B.neuron.pth")


def names_of_the_reader(page, given):
    """Names that single pages take for granted besides."""
    model, parallel = (
        given["model"],
        {"english": ["One.", "Two."], "french": ["Un.", "Deux."], "chinese": ["一。", "二。"]},
    )
    return {
        "docs/models.md": {"hf_model": plain(DEMO_MODEL), "tokenizer": model.tokenizer},
        "docs/representations.md": parallel,
        "docs/interventions.md": {"later": model},
        "docs/methods/frozen_lape.md": {"checkpoints": {"1000": model, "2000": model}},
    }.get(page, {})


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_blocks_run(page, given, elsewhere, text_folder):
    files_of_the_reader(elsewhere, text_folder)
    if page == "docs/significance.md":
        shutil.copytree(given["run"].path, elsewhere / "run")
    names = {**given, **names_of_the_reader(page, given)}
    asked = SMALLER.get(page, {})
    assert not [each for each in asked if not any(each in source for _, source in blocks(ROOT / page))]
    for line, source in blocks(ROOT / page):
        less = reduce(lambda text, pair: text.replace(*pair), asked.items(), source)
        exec(compile("\n" * (line - 1) + less, page, "exec"), names)  # so that errors name the page and the line
