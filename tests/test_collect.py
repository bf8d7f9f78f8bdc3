"""One pass, shards, resume: the same bits however a run comes about."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import SENTENCES
from filelock import FileLock
from transformers import AutoModelForCausalLM

import lsn_lens as lsn
from lsn_lens.methods.catalogue import get_method
from lsn_lens.model import checkpoints, forward, structure
from lsn_lens.runs.run import Run

LANGUAGES = ["en", "fr", "zh"]
SMALL = lsn.Layout(length=32, max_tokens=640, shards=4, batch_tokens=128)
ROUNDING = 1e-5  # a HookedTransformer computes the same in another order: the sign of smaller values is open
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


@pytest.fixture(scope="module")
def model():
    return lsn.load_model("demo")


@pytest.fixture(scope="module")
def corpora():
    return lsn.load_corpora("demo", LANGUAGES)


@pytest.fixture(scope="module")
def whole(model, corpora) -> Run:
    return lsn.collect(model, corpora, ["lape", "lave"], layout=SMALL, progress=False)


def assert_same_bits(one: Run, other: Run) -> None:
    assert one.languages == other.languages
    assert set(one.statistics.sums) == set(other.statistics.sums)
    for key, value in one.statistics.sums.items():
        assert value.dtype == other.statistics.sums[key].dtype
        assert torch.equal(value, other.statistics.sums[key]), key
    assert torch.equal(one.statistics.tokens, other.statistics.tokens)


def run_script(text: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    done = subprocess.run(  # noqa: PLW1510 (checked below, with its output)
        [sys.executable, *launcher, "-c" if not launcher else text, *([text] if not launcher else []), *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@torch.no_grad()
def test_counts_and_sums_equal_plain_hugging_face(model, corpora, whole):
    hf = AutoModelForCausalLM.from_pretrained(checkpoints.DEMO_MODEL, dtype=torch.float32).eval()
    seen: dict[str, list[torch.Tensor]] = {"gate": [], "down": []}
    for layer in hf.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda m, i, o: seen["gate"].append(o[0]))
        layer.mlp.down_proj.register_forward_hook(lambda m, i, o: seen["down"].append(i[0][0]))
    for index, label in enumerate(LANGUAGES):
        ids: list[int] = []
        for text in corpora[label].find:
            ids += [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        used = int(whole.statistics.tokens[index, 0])
        assert used == 640
        surely, perhaps, act_sums, post_sums = (torch.zeros(6, 768, dtype=torch.float64) for _ in range(4))
        for start in range(0, used, 32):
            seen["gate"].clear(), seen["down"].clear()
            hf(torch.tensor([ids[start : start + 32]]))
            gate = torch.stack(seen["gate"])
            act = torch.nn.functional.silu(gate)
            surely += (act > 0).sum(1) if structure.is_bridge(model) else (gate > ROUNDING).sum(1)
            perhaps += (act > 0).sum(1) if structure.is_bridge(model) else (gate > -ROUNDING).sum(1)
            act_sums += act.double().sum(1)
            post_sums += torch.stack(seen["down"]).double().sum(1)
        sums = whole.statistics.sums
        counts = sums["mlp_pre.positive"][index].double()
        assert ((surely <= counts) & (counts <= perhaps)).all()  # on a bridge the two are equal
        assert (perhaps - surely).sum() <= 1e-5 * used * counts.numel()  # next to nothing is open
        torch.testing.assert_close(sums["mlp_act.sum"][index], act_sums, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(sums["mlp_post.sum"][index], post_sums, rtol=1e-4, atol=1e-3)


def test_padded_documents_equal_one_by_one(model):
    texts = {
        "en": ["One.", "A longer sentence about rivers.", "Two words and a comma, so to say."],
        "fr": ["Oui.", "Une phrase plus longue sur les rivières."],
    }
    corpora = lsn.load_corpora(texts, hold_out=0.0)
    layout = lsn.Layout(kind="documents", equal=False, shards=1)
    together = lsn.collect(model, corpora, ["lape", "lave"], layout=layout, progress=False)
    alone = lsn.collect(
        model,
        corpora,
        ["lape", "lave"],
        layout=lsn.Layout(kind="documents", equal=False, batch_tokens=1),
        progress=False,
    )
    assert torch.equal(together.statistics.tokens, alone.statistics.tokens)
    assert torch.equal(together.statistics.sums["mlp_pre.positive"], alone.statistics.sums["mlp_pre.positive"])
    torch.testing.assert_close(
        together.statistics.sums["mlp_act.sum"], alone.statistics.sums["mlp_act.sum"], rtol=1e-5, atol=1e-4
    )


def test_folder_equals_memory_and_reopens(model, corpora, whole, tmp_path):
    run = lsn.collect(model, corpora, ["lape", "lave"], tmp_path / "run", layout=SMALL, progress=False)
    assert_same_bits(run, whole)
    assert_same_bits(lsn.load_run(tmp_path / "run"), whole)
    assert run.to_frame()["tokens_used"].tolist() == [640] * 3
    assert "mlp_pre.positive" in repr(run) and "<table" in run._repr_html_()
    assert not list(tmp_path.rglob("*.partial"))
    for points in model.hook_dict.values():
        assert not points.fwd_hooks


KILLED = """
import os, random, signal, sys, time, torch
import lsn_lens as lsn
torch.set_num_threads(1)  # a forked child cannot use the parent's thread pool
model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo", ["en", "fr", "zh"])
layout = lsn.Layout(length=32, max_tokens=640, shards=4, batch_tokens=128)
def go(out):
    lsn.collect(model, corpora, ["lape", "lave"], out, layout=layout, progress=False)
go(sys.argv[1] + "/first")  # imports, and what is worked out once for a model, take time, too
start = time.perf_counter(); go(sys.argv[1] + "/whole"); duration = time.perf_counter() - start
random.seed(0)
killed = 0
while killed < 5:
    child = os.fork()
    if child == 0:
        go(sys.argv[1] + "/killed"); os._exit(0)
    time.sleep(random.uniform(0.3, 0.8) * duration)  # before the end even of what is left
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += 1
    print(os.WIFSIGNALED(status))
go(sys.argv[1] + "/killed")
"""


def test_killed_five_times_and_resumed_gives_the_same_bits(tmp_path):
    done = run_script(KILLED, str(tmp_path))
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("True", "False"))]
    assert len(lines) == 5 and lines[0][0] == "True"  # the first kill hit a run at work
    assert_same_bits(lsn.load_run(tmp_path / "whole"), lsn.load_run(tmp_path / "killed"))
    shards = sorted(path.name for path in (tmp_path / "whole" / "shards").iterdir())
    for name in shards:
        first, second = ((tmp_path / kind / "shards" / name).read_bytes() for kind in ("whole", "killed"))
        assert first == second


def test_damaged_shards_are_noticed_and_redone(model, corpora, whole, tmp_path):
    folder = tmp_path / "run"
    arguments = (model, corpora, ["lape", "lave"], folder)
    lsn.collect(*arguments, layout=SMALL, progress=False)
    files = sorted((folder / "shards").iterdir())
    good = [path.read_bytes() for path in files]
    files[0].write_bytes(good[0][: len(good[0]) // 2])  # truncated
    changed = bytearray(good[1])
    changed[-3] ^= 1  # one bit of one sum
    files[1].write_bytes(changed)
    files[2].unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        _ = lsn.load_run(folder).statistics
    assert_same_bits(lsn.collect(*arguments, layout=SMALL, progress=False), whole)
    assert [path.read_bytes() for path in files] == good


TORCHRUN = """
import sys
import lsn_lens as lsn
model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo", ["en", "fr", "zh"])
layout = lsn.Layout(length=32, max_tokens=640, shards=4, batch_tokens=128)
run = lsn.collect(model, corpora, ["lape", "lave"], sys.argv[1], layout=layout, progress=False)
assert run.statistics.tokens.sum() > 0
"""


def test_two_processes_give_the_bits_of_one(whole, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_script(str(script), str(tmp_path / "run"), launcher=launcher)
    assert_same_bits(lsn.load_run(tmp_path / "run"), whole)


MEMORY = """
import resource, sys
import torch
torch.set_num_threads(1)
import lsn_lens as lsn
model, times = lsn.load_model("demo"), int(sys.argv[1])
sentence = {"en": "The river rose all night and the bridge was closed.", "fr": "La rivière a monté toute la nuit."}
def texts(label):
    for i in range(150 * times):
        yield {"text": f"{sentence[label]} {i}"}
from datasets import IterableDataset
data = {label: IterableDataset.from_generator(texts, gen_kwargs={"label": label}) for label in sentence}
layout = lsn.Layout(length=64, batch_tokens=512, shards=4)
lsn.collect(model, lsn.load_corpora(data, hold_out=0.0), ["lape"], layout=layout, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_does_not_grow_with_the_text():
    small, large = (int(run_script(MEMORY, times).stdout.split()[-1]) for times in ("1", "10"))
    assert large <= 1.05 * small, (small, large)


def test_lock_against_a_second_writer(model, corpora, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RuntimeError, match="another process is collecting"):
        lsn.collect(model, corpora, out=tmp_path / "run", layout=SMALL, progress=False)


ODD = {"expert_frequency": {"size": 16}, "sharing": {"check_parallel": False}}


@pytest.fixture(scope="module")
def every_method():
    """Each method by name, with settings for a tiny model and sets that are not nearly empty."""
    rates = {name: {"rate": 0.2} for name, each in lsn.METHODS.items() if "rate" in vars(each())}
    return {name: get_method(name, **{**rates.get(name, {}), **ODD.get(name, {})}) for name in lsn.METHODS}


@pytest.fixture(scope="module")
def short_texts():
    """Documents that fit into a tiny model, of different length."""
    return {f"l{k}": [f"{i} {text[: 8 + i % 9]} {i * i}" for i in range(12)] for k, text in enumerate(SENTENCES)}


def test_a_set_does_not_depend_on_the_other_methods(load, every_method, short_texts):
    """With no layout named: alone or beside all others, the same text, sums and set."""
    model, corpora = load("llama"), lsn.load_corpora(short_texts, hold_out=0.0)
    every = lsn.collect(model, corpora, every_method.values(), progress=False)
    assert every.settings["text"]["layout"]["kind"] == "documents" and "documents of" in repr(every)
    compared = lsn.compare(every, every_method)
    for name, method in every_method.items():
        alone = lsn.collect(model, corpora, [method], progress=False)
        assert alone.settings["text"] == every.settings["text"]
        for key, value in alone.statistics.sums.items():  # attention that nobody looks into is rounded otherwise
            torch.testing.assert_close(value, every.statistics.sums[key], rtol=1e-4, atol=1e-4)
        found = lsn.detect(alone, method)
        assert found == lsn.detect(every, method) == compared.found[name]
        assert len(found) or name in ("dln", "expert_frequency")  # whose rules may find none


def test_long_documents_make_blocks_for_every_method(load, every_method, short_texts):
    """One document that does not fit: packed blocks, and the reason why methods of single documents cannot be had."""
    long = {**short_texts, "l1": [*short_texts["l1"], "river " * 60]}
    model, corpora = load("llama"), lsn.load_corpora(long, hold_out=0.0)
    for name, method in every_method.items():
        if any(need.by_document for need in method.statistics()):
            with pytest.raises(ValueError, match=r"single documents.*l1: document 12 has \d+ tokens, more than 64"):
                lsn.collect(model, corpora, [method, "lap"], progress=False)
        else:
            run = lsn.collect(model, corpora, [method], progress=False)
            assert run.settings["text"]["layout"]["kind"] == "blocks"
    with pytest.raises(ValueError, match="the layout cuts them into blocks"):
        lsn.collect(model, lsn.load_corpora(short_texts), ["plnd"], layout=lsn.Layout(), progress=False)


def test_what_is_odd_about_text_is_shown(load, short_texts):
    texts = {**short_texts, "l2": [*short_texts["l2"][:-1], "an old <|endoftext|> inside"]}
    with pytest.warns(UserWarning, match="l2: 1 control tokens"):
        run = lsn.collect(load("llama"), lsn.load_corpora(texts, hold_out=0.0), ["lap"], progress=False)
    assert run.to_frame()["control_tokens"].tolist() == [0, 0, 1, 0]
    assert not run.to_frame()[["repeated", "unknown", "skipped"]].to_numpy().any()


def test_settings_saved_by_an_editor_with_a_byte_order_mark(load, short_texts, tmp_path):
    arguments = (load("llama"), lsn.load_corpora(short_texts, hold_out=0.0), ["lap"], tmp_path)
    run = lsn.collect(*arguments, progress=False)
    path = tmp_path / "run.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert lsn.load_run(tmp_path).settings == run.settings
    assert_same_bits(lsn.collect(*arguments, progress=False), run)


def test_other_settings_are_refused_and_named(model, corpora, tmp_path):
    lsn.collect(model, corpora, out=tmp_path / "run", layout=SMALL, progress=False)
    before = (tmp_path / "run" / "run.json").read_bytes()
    other = lsn.Layout(length=16, max_tokens=640, shards=4, batch_tokens=128)
    with pytest.raises(ValueError, match="length was 32, now 16"):
        lsn.collect(model, corpora, out=tmp_path / "run", layout=other, progress=False)
    texts = {label: [*corpora[label].find][1:] for label in LANGUAGES}
    with pytest.raises(ValueError, match=r"settings: en, fr, zh: another text\."):
        lsn.collect(model, lsn.load_corpora(texts, hold_out=0.0), out=tmp_path / "run", layout=SMALL, progress=False)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_shards_without_a_description_are_nobodys(model, corpora, tmp_path):
    """They may be of another model: they are never taken for this one's."""
    lsn.collect(model, corpora, ["lape"], tmp_path, layout=SMALL, progress=False)
    (tmp_path / "run.json").unlink()
    for left in ("shards", "constants.safetensors"):
        with pytest.raises(ValueError, match=r"has shards, but no run.json that says of which model"):
            lsn.collect(model, corpora, ["lape"], tmp_path, layout=SMALL, progress=False)
        assert not (tmp_path / "run.json").exists()
        if left == "shards":
            shutil.rmtree(tmp_path / "shards")
    (tmp_path / "constants.safetensors").unlink()
    assert lsn.collect(model, corpora, ["lape"], tmp_path, layout=SMALL, progress=False).path == tmp_path


def test_full_disk_loses_nothing(model, corpora, whole, tmp_path, monkeypatch):
    folder, calls, sync = tmp_path / "run", [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="Make room and run the same call again") as caught:
        lsn.collect(model, corpora, ["lape", "lave"], folder, layout=SMALL, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert len(list((folder / "shards").iterdir())) == 2  # run.json, constants and two shards, nothing half
    monkeypatch.undo()
    assert_same_bits(lsn.collect(model, corpora, ["lape", "lave"], folder, layout=SMALL, progress=False), whole)


def test_a_disk_too_small_is_refused_before_starting(model, corpora, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="1,000 are free"):
        lsn.collect(model, corpora, out=tmp_path / "run", layout=SMALL, progress=False)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_named(corpora, bad):
    model = lsn.load_model("demo")
    with torch.no_grad():
        parameter = model.blocks[3].mlp.W_out if not structure.is_bridge(model) else _down(model, 3)
        parameter[0, 7] = bad
    with pytest.raises(FloatingPointError, match=r"demo, layer 3, language en, documents? 0"):
        lsn.collect(model, corpora, layout=SMALL, progress=False)


def _down(model, layer):
    return model.original_model.model.layers[layer].mlp.down_proj.original_component.weight


def test_a_hook_that_fires_twice_is_an_error(model, corpora, monkeypatch):
    once = forward.hidden_states
    monkeypatch.setattr(forward, "hidden_states", lambda *arguments: (once(*arguments), once(*arguments))[1])
    with pytest.raises(RuntimeError, match="once per batch"):
        lsn.collect(model, corpora, layout=SMALL, progress=False)


def test_bad_input(model, corpora, tmp_path):
    with pytest.raises(ValueError, match="at least two"):
        lsn.collect(model, {"en": corpora["en"]}, layout=SMALL)
    with pytest.raises(KeyError, match="the methods are"):
        lsn.collect(model, corpora, ["laep"], layout=SMALL)
    with pytest.raises(ValueError, match="name at least one"):
        lsn.collect(model, corpora, [], layout=SMALL)
    with pytest.raises(ValueError, match="no text"):
        lsn.collect(model, lsn.load_corpora({"en": ["Hello there."], "fr": ["", " "]}, hold_out=0.0), progress=False)
    with pytest.raises(ValueError, match="less than one block"):
        texts = lsn.load_corpora({"en": ["Hi."], "fr": ["Oui."]}, hold_out=0.0)
        lsn.collect(model, texts, layout=lsn.Layout(), progress=False)
    with pytest.raises(ValueError, match="context"):
        lsn.collect(model, corpora, layout=lsn.Layout(length=100_000), progress=False)
    with pytest.raises(ValueError, match=r"not the folder of a run"):
        lsn.load_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        lsn.load_run(tmp_path)


def test_a_run_without_the_statistic_says_so(whole, model, corpora):
    run = lsn.collect(model, corpora, ["lape"], layout=SMALL, progress=False)
    with pytest.raises(KeyError, match=r"did not collect 'mlp_act\.sum'"):
        lsn.detect(run, "lave")
    assert lsn.detect(run, "lape") == lsn.detect(whole, "lape")
