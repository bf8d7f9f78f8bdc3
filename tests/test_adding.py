"""A run that gets more methods is the run of all of them at once; a run in memory can be kept."""

import json

import pytest
import torch
from conftest import SENTENCES

import lsn_lens as lsn
from lsn_lens.collection import collecting
from lsn_lens.controls import resampling
from lsn_lens.runs.shards import read_shard
from lsn_lens.statistics.needs import Histogram

TEXTS = {f"l{k}": [f"{i} {text[: 8 + i % 9]} {i * i}" for i in range(12)] for k, text in enumerate(SENTENCES[:3])}
LAYOUT = lsn.Layout(kind="documents", shards=3)


@pytest.fixture
def collect(load):
    """`collect(methods, out)` on a tiny model."""

    def collect(methods, out=None, architecture="llama", texts=TEXTS, layout=LAYOUT, **more):
        corpora = lsn.load_corpora(texts, hold_out=0.0)
        return lsn.collect(load(architecture), corpora, methods, out, layout=layout, progress=False, **more)

    return collect


def tensors_of(run):
    """Every tensor of a run, shard by shard."""
    shards = [
        (kind, *each) for kind, every in (("sums", run.shards), ("rows", run.documents)) for each in every.items()
    ]
    tensors: dict[tuple, torch.Tensor] = {("constants", key): value for key, value in run.constants.items()}
    for kind, label, parts in shards:
        for place, part in enumerate(parts):
            whole = dict(read_shard(part) or {}) if hasattr(part, "is_file") else dict(part)
            tensors |= {(kind, label, place, key): value for key, value in whole.items()}
    return tensors


def assert_same_bits(one, other):
    first, second = tensors_of(one), tensors_of(other)
    assert set(first) == set(second)
    for place, value in first.items():
        assert value.dtype == second[place].dtype and torch.equal(value, second[place]), place
    assert set(one.settings["statistics"]) == set(other.settings["statistics"])


@pytest.mark.parametrize(
    "steps",
    [
        (["lape"], ["lave"], ["diffmean", "dln"]),
        (["average_precision"], ["lape"]),
        (["plnd", "act_grad"], ["lape", "average_precision"]),
        (["lape"], ["act_grad"]),
        (["lap"], ["expert_frequency"]),
        (["lape"], ["transfer"], ["sharing"]),
    ],
    ids=str,
)
def test_adding_is_collecting_at_once(collect, steps, tmp_path):
    sizes = {"expert_frequency": lsn.METHODS["expert_frequency"](size=16)}
    steps = [[sizes.get(name, name) for name in names] for names in steps]
    whole = collect([name for names in steps for name in names])
    run = [collect(names, tmp_path) for names in steps][-1]
    assert_same_bits(run, whole)
    assert_same_bits(lsn.load_run(tmp_path), whole)
    for method in (name for names in steps for name in names):
        assert lsn.detect(run, method) == lsn.detect(whole, method)
    assert collect(steps[0], tmp_path).settings == run.settings  # nothing is missing
    layers = run.settings["layers"]
    assert len(layers) == len(steps) and layers[-1]["forward"] == whole.settings["forward"]


def test_attention_that_is_looked_into_later_leaves_what_is_there(collect, tmp_path):
    """What is added has the bits of collecting all at once; what was there keeps those that it had."""
    first, whole = collect(["lape"], tmp_path), collect(["lape", "plnd"])
    before = tensors_of(first)
    run = collect(["plnd"], tmp_path)
    assert all(torch.equal(value, before[place]) for place, value in tensors_of(first).items())
    for place, value in tensors_of(run).items():
        expected = before.get(place, tensors_of(whole)[place])
        assert torch.equal(value, expected), place
    assert [each["forward"] for each in run.settings["layers"]][-1] == whole.settings["forward"]
    assert lsn.detect(run, "lape") == lsn.detect(whole, "lape")


def test_an_interrupted_addition_goes_on_and_is_no_part_of_the_run_before(collect, tmp_path, monkeypatch):
    collect(["lape"], tmp_path)
    write, calls = collecting.write_shard, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise OSError("no more")
        write(*arguments)

    monkeypatch.setattr(collecting, "write_shard", fails)
    with pytest.raises(OSError, match="no more"):
        collect(["lave", "diffmean"], tmp_path)
    monkeypatch.undo()
    assert_same_bits(lsn.load_run(tmp_path), collect(["lape"]))
    with pytest.raises(ValueError, match=r"unfinished addition of another call.*Repeat that call first"):
        collect(["lave"], tmp_path)
    done = sorted((tmp_path / "added-1" / "shards").iterdir())
    times = [path.stat().st_mtime_ns for path in done]
    assert done
    run = collect(["lave", "diffmean"], tmp_path)
    assert [path.stat().st_mtime_ns for path in done] == times
    assert_same_bits(run, collect(["lape", "lave", "diffmean"]))


def test_an_unfinished_run_is_not_added_to_blindly(collect, tmp_path):
    collect(["lape"], tmp_path)
    next((tmp_path / "shards").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"1 shards .*unfinished.*mlp_pre\.positive"):
        collect(["diffmean"], tmp_path)
    assert not (tmp_path / "added-1" / "shards").exists()
    assert_same_bits(collect(["lape", "diffmean"], tmp_path), collect(["lape", "diffmean"]))


def test_a_damaged_file_of_an_addition_is_noticed_and_redone(collect, tmp_path):
    collect(["lape"], tmp_path)
    run = collect(["diffmean"], tmp_path)
    next((tmp_path / "added-1" / "shards").iterdir()).write_bytes(b"")
    with pytest.raises(ValueError, match="missing or damaged"):
        _ = lsn.load_run(tmp_path).statistics
    assert_same_bits(collect(["lape", "diffmean"], tmp_path), collect(["lape", "diffmean"]))
    assert run.statistics.languages == tuple(TEXTS)


def test_what_differs_is_one_short_sentence(collect, tmp_path):
    collect(["lape"], tmp_path)
    other = {**TEXTS, "l1": TEXTS["l1"][1:]}
    calls = {
        r"layout separator was 'bos', now 'none'": {"layout": lsn.Layout("documents", separator="none", shards=3)},
        r"l1: another text\.": {"texts": other},
        r"languages were \['l0', 'l1', 'l2'\], now \['l0', 'l1'\]\.": {
            "texts": {key: TEXTS[key] for key in ("l0", "l1")}
        },
        "the model has other weights": {"architecture": "llama_mha"},
    }
    for said, changes in calls.items():
        with pytest.raises(ValueError, match=said) as caught:
            collect(["lape", "lave"], tmp_path, **changes)
        assert len(str(caught.value)) < 320 + len(str(tmp_path)), str(caught.value)
    assert list(json.loads((tmp_path / "run.json").read_text())["settings"]["text"]["languages"]) == list(TEXTS)


def test_a_run_in_memory_can_be_kept_and_added_to(collect, tmp_path):
    run = collect(["average_precision"], extra=[Histogram("mlp_act", 8)])
    assert run.save(tmp_path / "kept") == tmp_path / "kept"
    loaded = lsn.load_run(tmp_path / "kept")
    assert_same_bits(loaded, run)
    assert (loaded.languages, loaded.costs) == (run.languages, run.costs)
    assert lsn.detect(loaded, "average_precision") == lsn.detect(run, "average_precision")
    with pytest.raises(FileExistsError, match="Give a new folder"):
        run.save(tmp_path / "kept")
    more = collect(["lape"], tmp_path / "kept")
    assert_same_bits(more, collect(["average_precision", "lape"], extra=[Histogram("mlp_act", 8)]))
    more.save(tmp_path / "copy")  # of a run on disk, in one layer
    assert_same_bits(lsn.load_run(tmp_path / "copy"), more)


def test_a_kept_run_redoes_a_shard_by_the_forward_pass_that_made_it(collect, tmp_path):
    collect(["lape"], tmp_path / "run")
    run = collect(["plnd"], tmp_path / "run")
    run.save(tmp_path / "copy")
    kept = lsn.load_run(tmp_path / "copy")
    assert kept.settings == run.settings and len(kept.settings["layers"]) == 2
    assert_same_bits(kept, run)
    for folder in ("shards", "added-1/shards"):
        next((tmp_path / "copy" / folder).iterdir()).unlink()
    assert_same_bits(collect(["lape", "plnd"], tmp_path / "copy"), run)


DRAWS = {
    "permuted": lambda run: resampling.permuted(run, 0),
    "resampled": lambda run: resampling.resampled(run, 0),
    "halves": lambda run: resampling.halves(run)[0],
    "rearranged": lambda run: resampling.rearranged(run, {label: [(label, 1)] * 6 for label in run.languages}),
    "load_shards": lambda run: resampling.load_shards(run, [lsn.METHODS["lave"]()]),  # settings name more statistics
    "subset of a draw": lambda run: resampling.subset(resampling.permuted(run, 0), run.languages),
    "by hand": lambda run: lsn.Run(run.shards, {}),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
def test_a_draw_of_a_run_cannot_be_kept_as_the_run(collect, tmp_path, draw):
    run = collect(["lape", "lave"], layout=lsn.Layout(kind="documents", shards=6))
    with pytest.raises(ValueError, match=r"drawn from another run's shards, or made by hand.*Save the run that"):
        draw(run).save(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_some_languages_of_a_run_are_kept_as_a_run_of_these(collect, tmp_path):
    run = resampling.subset(collect(["lape"]), ["l2", "l0"])
    kept = lsn.load_run(run.save(tmp_path / "kept"))
    assert_same_bits(kept, run)
    assert kept.languages == ("l2", "l0") and list(kept.settings["text"]["languages"]) == ["l2", "l0"]


def test_methods_as_people_write_them(collect):
    run = collect("LAPE")
    assert_same_bits(run, collect(["lape"]))
    assert_same_bits(collect(lsn.METHODS["lape"]()), run)
