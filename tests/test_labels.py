"""One rule for labels, and bars that heed the environment."""

import subprocess
import sys

import jaxtyping
import pytest

from lsn_lens.generation.texts.identifiers import identifier
from lsn_lens.labels import label_list

BARS = """
from lsn_lens.bars import tqdm
for given in ({}, {"disable": False}, {"disable": True}):
    print(tqdm([1, 2], **given).disable)
"""


def test_a_lone_string_is_refused_and_repeats_go():
    assert label_list(["fr", "en", "fr"]) == ["fr", "en"]
    for call in (label_list, identifier):
        with pytest.raises(ValueError, match="languages='en' is one string"):
            call("en")


@pytest.mark.parametrize(
    "bad", [False, True, "", "  ", 3, None, "none", "en ", "\ten", "../up", "zh/Hant", "a\\b", "a\nb"]
)
def test_what_is_no_label(bad, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="languages: "):
        label_list(["en", bad])


@pytest.mark.parametrize(("variable", "shown"), [({}, "False False True"), ({"TQDM_DISABLE": "1"}, "True True True")])
def test_bars_heed_the_environment(variable, shown):
    done = subprocess.run(
        [sys.executable, "-c", BARS],
        env=variable | {"PYTHONPATH": ":".join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == shown.split(), done.stderr


def test_every_bar_of_the_package_is_that_one():
    from pathlib import Path

    import lsn_lens

    using = [path for path in Path(lsn_lens.__file__).parent.rglob("*.py") if "tqdm.auto" in path.read_text("utf-8")]
    assert [path.name for path in using] == ["bars.py"]
