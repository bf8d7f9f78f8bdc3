"""Each symptom on the page of errors is raised, with the message that the page quotes."""

import doctest
import re

import jaxtyping
import pandas as pd
from pages import ROOT

import lsn_lens as lsn

PAGE = ROOT / "docs/errors.md"


def test_symptoms_are_raised_as_quoted(load, hugging_face, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = lsn.load_model("demo", backend="bridge", device="cpu")  # a HookedTransformer has no dropout to refuse
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    texts = {label: list(each.find)[:8] for label, each in lsn.load_corpora("demo", ["en", "fr"]).items()}
    corpora = lsn.load_corpora(texts)
    run = lsn.collect(demo, corpora, "lape", out="run", layout=lsn.Layout(kind="blocks", length=128), progress=False)
    known = {
        "lsn": lsn, "model": demo, "corpora": corpora, "run": run, "found": lsn.detect(run, "lape"),
        "hf_model": hugging_face("llama"), "other_model": load("llama"), "table": pd.DataFrame({"review": ["Good."]}),
    }  # fmt: skip
    blocks = re.findall(r"```pycon\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    told: list[str] = []
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), known, PAGE.name, str(PAGE), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    try:
        runner.run(test, out=told.append)
    finally:
        demo.eval()
    assert not runner.failures, "".join(told)
    assert len(test.examples) == len(blocks) > 20 and all(each.exc_msg for each in test.examples)
