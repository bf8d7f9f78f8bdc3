"""One rule for labels, and bars that heed the environment."""

import subprocess
import sys

import jaxtyping
import pytest

import lsn_lens as lsn
from lsn_lens.applications.finetuning import bench
from lsn_lens.comparison.sizes import layers_table, sizes_table
from lsn_lens.generation.texts.identifiers import identifier
from lsn_lens.labels import COLUMNS, RESERVED, label_list


class HeldOut:
    """Neutral text, as far as its names."""

    clean = ("numbers",)


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


def beside(table, languages):
    """The columns of a table that are not those of the languages."""
    return set(table.columns) - set(languages)


def test_every_column_beside_the_languages_is_reserved():
    found = {"lape": lsn.NeuronSet.from_dict({"en": [(0, 1)], "fr": [(1, 2)]}, (2, 4))}
    assert beside(sizes_table(found), ("en", "fr")) | beside(layers_table(found), ("en", "fr")) <= COLUMNS


@pytest.mark.parametrize("label", sorted(RESERVED))
def test_no_language_is_labelled_as_a_column_or_row_of_tables(label):
    with pytest.raises(ValueError, match="tables use this name for a row or column"):
        lsn.load_corpora({"en": ["a", "b"], label: ["c", "d"]})


@pytest.mark.parametrize("table", [sizes_table, layers_table])
def test_a_set_by_hand_overwrites_no_column(table):
    found = {"lape": lsn.NeuronSet.from_dict({"en": [(0, 1)], "method": [(1, 2)]}, (2, 4))}
    with pytest.raises(ValueError, match=r"\['method'\] are labelled as rows or columns"):
        table(found)


def test_a_language_is_no_neutral_text(monkeypatch):
    corpora = lsn.load_corpora({"fr": ["un", "deux"], "numbers": ["1", "2"]})
    monkeypatch.setattr(bench, "held_out", lambda *given, **options: None)
    monkeypatch.setattr(bench, "measured_neutral", lambda *given, **options: HeldOut)
    given = object.__new__(bench.Bench)
    monkeypatch.setattr(bench.Bench, "_layout", lambda self: None)
    with pytest.raises(ValueError, match=r"\['numbers'\] are labelled as rows"):
        given._measure(None, corpora)


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
