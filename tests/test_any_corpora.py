"""Every public function that takes corpora takes what `load_corpora` takes, and refuses the rest at once."""

import importlib
import inspect
from pathlib import Path

import jaxtyping
import pandas as pd
import pytest
import torch
from conftest import D_MLP, LAYERS, SENTENCES

import lsn_lens as lsn
from lsn_lens import controls, evaluation, generation

ROOMS = sorted(path.parent.name for path in Path(lsn.__file__).parent.glob("*/__init__.pyi"))
RAW = {"en": [f"{i} {SENTENCES[0]}" for i in range(8)], "de": [f"{i} {SENTENCES[1]}" for i in range(8)]}
FOUND = lsn.NeuronSet(("en", "de"), {"mlp": torch.ones(2, LAYERS, D_MLP, dtype=torch.bool)})
DEEP = lsn.NeuronSet(("en", "de"), {"mlp": torch.ones(2, 3, D_MLP, dtype=torch.bool)})  # three stages take three layers
QUIET = {"layout": lsn.Layout(length=16, max_tokens=32), "progress": False}


def takers():
    """Each public function with an argument `corpora`; that of `workflow_grid` is called `measure`."""
    for room in ROOMS:
        module = importlib.import_module(f"lsn_lens.{room}")
        for name in dir(module):
            value = getattr(module, name)
            if inspect.isfunction(value) and (
                name == "workflow_grid" or "corpora" in inspect.signature(value).parameters
            ):
                yield f"{room}.{name}", value


TAKERS = dict(takers())


@pytest.fixture(scope="module")
def given(load):
    """What the functions' other arguments can be, by their names."""
    model, corpora = load("llama"), lsn.load_corpora(RAW)
    run = lsn.collect(model, corpora, ["lape"], layout=lsn.Layout(length=16, shards=2), progress=False)
    steering = generation.Steering("off", lambda *_: lsn.Intervention("off", ((FOUND["en"], lsn.zero),)))
    return {
        "model": model, "run": run, "found": DEEP, "scores": lsn.score(run), "tokenizer": model.tokenizer,
        "units": pd.DataFrame({"basis": ["mlp"], "layer": [0], "unit": [1]}), "source": "demo",
        "stages": evaluation.Stages(1, 1), "steerings": [steering], "targets": ["en", "de"], "plantings": [object()],
        "sets": FOUND, "interventions": [], "layout": lsn.Layout(), "share": 0.5,
        "checkpoints": {"a": "demo", "b": "demo"}, "dominant": "en", "sibling": model,
        "basis": "mlp", "layer": 0, "unit": 1,
        "experts": lsn.statistics.ExpertAssignment(torch.arange(D_MLP).expand(LAYERS, -1) // 4),
    }  # fmt: skip


@pytest.mark.parametrize("name", TAKERS)
def test_what_is_no_text_is_refused_by_its_words(name, given, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    every = {**given, "folder": tmp_path / "new"}
    needed = [
        each for each in inspect.signature(TAKERS[name]).parameters.values()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD and each.name not in ("corpora", "measure")
    ]  # fmt: skip
    values = {each.name: every[each.name] for each in needed}
    values |= {"model": given["model"]} if name == "comparison.compare" else {}
    values["measure" if name == "evaluation.workflow_grid" else "corpora"] = 3
    with pytest.raises(ValueError, match=r"the source is a int\. Expected 'demo', a folder, a preset, a mapping"):
        TAKERS[name](**values)


def test_the_list_of_functions_is_whole():
    assert len(TAKERS) >= 25 and "controls.off_target" in TAKERS and "evaluation.workflow_grid" in TAKERS


PAIRED = {
    "split_hold_out": lambda text, _: [
        {label: list(each.hold_out) for label, each in half.items()} for half in evaluation.split_hold_out(text)
    ],
    "off_target": lambda text, given: controls.off_target(
        given["model"], text, FOUND, seeds=1, prompts=1, tokens=2, neutral=NEUTRAL, **QUIET
    ).table,
    "ablation_sensitivity": lambda text, given: controls.ablation_sensitivity(
        given["model"], text, given["run"], FOUND, actions={"zero": lsn.zero}, seeds=1, **QUIET
    ),
    "shuffled_words": lambda text, _: {
        label: list(each.find) for label, each in controls.shuffled_words(text).items()
    },
}  # fmt: skip
CORPORA, NEUTRAL = (
    lsn.load_corpora(RAW),
    lsn.load_corpora({"numbers": [f"{i} 2 3 4 5 6 7 8 9" for i in range(30)]}, hold_out=0.9),
)


@pytest.mark.parametrize("call", PAIRED.values(), ids=list(PAIRED))
def test_texts_in_lists_are_the_corpora_of_them(call, given):
    raw, loaded = call(RAW, given), call(CORPORA, given)
    assert raw.equals(loaded) if isinstance(raw, pd.DataFrame) else raw == loaded
