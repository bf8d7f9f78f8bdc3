"""The script on a synthetic world: the folder is whole, its words follow from its tables, plantings are used again."""

import dataclasses
import json

import pandas as pd
import pytest
from conftest import experiment, page_of, refused

import lsn_lens as lsn
from lsn_lens.labels import COLUMNS
from lsn_lens.planted.roles import ROLES
from lsn_lens.studies import ground_truth as study
from lsn_lens.studies.pages import ground_truth as section

PLANTED = ("specific", "loud", "silent")


@pytest.fixture(scope="module")
def script():
    return experiment("ground_truth")


@pytest.fixture(scope="module")
def config(script, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground_truth")
    (folder / "text").mkdir()
    for label, corpus in world.corpora.items():
        lines = [json.dumps({"text": text}) for text in (*corpus.find, *corpus.hold_out)]
        (folder / "text" / f"{label}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return script.Config(
        model=str(world.folder), corpus=str(folder / "text"), out=folder / "out",
        methods=("lape", "plnd", "diffmean"), roles=PLANTED, plantings=1, tokens=1000, less_text=(500,),
        fewer_languages=(2,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(script, config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsn_lens.report.page.save", lambda *_, **__: None)  # drawing is slow
        return script.report(config, *script.prepare(config)).parent


def test_the_folder_is_whole(written):
    names = {"methods", "by-language", "roles", "planted", "damage", "sensitivity", "refused"}
    assert {path.stem for path in (written / "tables").glob("*.parquet")} == names
    damage = pd.read_parquet(written / "tables" / "damage.parquet")
    assert {each for each in damage if "-" not in each} <= COLUMNS  # the languages are latin-1, ...
    origin = json.loads((written / "provenance.json").read_text())
    assert origin["settings"]["plantings"] == 1
    assert origin["corpus"]["languages"].keys() == {"latin-1", "latin-2", "cyrillic-1", "cyrillic-2"}
    page = (written / "report.md").read_text()
    assert "Left out: diffmean (mlp)" in page
    assert "Left out: lape (attention)" in page
    assert all(role.says in page for role in ROLES.values())


def test_what_came_out_is_what_was_planted(written):
    roles = pd.read_parquet(written / "tables" / "roles.parquet").set_index(["part", "method", "role"])
    assert roles.loc[("mlp", "lape", "silent"), "any"] == 0
    assert roles.loc[("mlp", "lape", "specific"), "units"] == 4
    assert roles.loc[("attention", "plnd", "specific"), "units"] == 4
    assert ("attention", "lape", "specific") not in roles.index
    sensitivity = pd.read_parquet(written / "tables" / "sensitivity.parquet")
    for part in ("mlp", "attention"):
        rows = sensitivity.loc[sensitivity["part"].eq(part)]
        assert list(dict.fromkeys(rows["text"])) == ["all", "500 tokens", "2 languages"]


def test_plantings_are_used_again_and_other_settings_refused(script, config, written, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("planted again")

    monkeypatch.setattr(study, "plant", refuse)
    plantings, left_out = planted(config)
    assert left_out.empty
    assert [each.folder.name for each in plantings] == ["mlp-0", "attention-0"]
    assert "other settings" in refused(script, **{**vars(config), "effect": 0.1})


def test_the_study_in_a_notebook(config, written):
    corpora = lsn.load_corpora(config.corpus)
    settings = lsn.studies.GroundTruthSettings(
        methods=config.methods, roles=PLANTED, plantings=1, tokens=1000, less_text=(500,), fewer_languages=(2,)
    )
    found = lsn.studies.ground_truth_study(config.model, corpora, config.out / "planted", settings, progress=False)
    for name in ("methods", "sensitivity", "planted"):
        before = pd.read_parquet(written / "tables" / f"{name}.parquet")
        pd.testing.assert_frame_equal(found[name], before, check_dtype=False)
    assert [each.part for each in found.plantings] == ["mlp", "attention"] and "diffmean (mlp)" in found.skipped
    assert f"2 plantings into {config.model} (mlp, attention)" in str(page_of(found))


def planted(config):
    return study.plant_parts(config.model, lsn.load_corpora(config.corpus), config.out / "planted", config)


def test_a_seed_whose_roles_do_not_hold_is_left_out_and_remembered(config, tmp_path, monkeypatch):
    tried = []

    def sometimes(source, corpora, folder, *, part, seed, **_):
        tried.append((part, seed))
        if seed == 0:
            raise study.RoleError("1 of 9 planted units are not what they were made to be")
        return study.Planted(folder, part, (2, 9), tuple(corpora), pd.DataFrame(), pd.DataFrame(), pd.Series())

    monkeypatch.setattr(study, "plant", sometimes)
    monkeypatch.setattr(study, "load_planted", lambda folder: sometimes(None, {}, folder, part="mlp", seed=1))
    some = dataclasses.replace(config, out=tmp_path, parts=("mlp",))
    for _ in range(2):  # the second time nothing is planted
        tried.clear()
        plantings, left_out = planted(some)
        assert [each.folder.name for each in plantings] == ["mlp-1"]
        assert left_out.to_dict("records")[0]["seed"] == 0
        assert "not what they were made" in left_out["why"][0]
    assert tried == [("mlp", 1)]  # opened
    monkeypatch.setattr(study, "_planting", lambda *_: "no")
    with pytest.raises(ValueError, match="too many seeds"):
        planted(some)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": ("lapp",)}, "unknown methods"),
        ({"plantings": 0}, "at least one"),
        ({"parts": ()}, "at least one"),
        ({"fewer_languages": (1,)}, "2 to 4"),
        ({"roles": ("loudest",)}, "no role"),
    ],
)
def test_bad_settings_end_in_one_clear_line(script, config, tmp_path, changed, said):
    assert said in refused(script, **{**vars(config), "out": tmp_path, **changed})


def test_the_lead_says_who_finds_and_who_is_fooled():
    methods = pd.DataFrame(
        [(part, method, value, value - 0.1, value + 0.1, 0.1) for part, method, value in
         (("mlp", "a", 0.9), ("mlp", "b", 0.5), ("attention", "b", 0.4))],
        columns=["part", "method", "average_precision", "average_precision_low", "average_precision_high", "chance"],
    )  # fmt: skip
    roles = pd.DataFrame(
        [("mlp", "a", "specific", True, 1.0, 1.0), ("mlp", "b", "specific", True, 0.25, 1.0),
         ("mlp", "a", "loud", False, 0.0, 0.5), ("mlp", "b", "loud", False, 0.75, 0.25),
         ("attention", "b", "loud", False, 0.0, 0.0)],
        columns=["part", "method", "role", "truth", "own", "any"],
    )  # fmt: skip
    assert section.lead({"methods": methods, "roles": roles}) == (
        "MLPs: a ranks the planted units best, average precision 0.90 (0.80 to 1.00; chance 0.10). specific is found "
        "by a. loud fools a. Attention: b ranks the planted units best, average precision 0.40 (0.30 to 0.50; chance "
        "0.10). loud fools no method."
    )
