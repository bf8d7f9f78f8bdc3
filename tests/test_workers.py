"""Several processes: the same results, errors as they are, and nothing left behind."""

import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

import lsn_lens as lsn
from lsn_lens import workers
from lsn_lens.controls import bootstrap, permutation_test

METHODS = ["lape", "act_grad", "dln"]


@pytest.fixture(scope="module")
def model():
    return lsn.load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def one_process(model):
    """A run, and losses under two sets, by one process."""
    corpora = lsn.load_corpora("demo", ["en", "fr", "zh"])
    run = lsn.collect(model, corpora, METHODS, layout=lsn.Layout(max_tokens=900, length=32), progress=False)
    found = lsn.detect(run, "lape", rate=0.05)
    # more than share one forward pass, so that there is work for several processes
    sets = {"found": found, **{f"random {seed}": found.random_like(seed) for seed in range(7)}}
    text = lsn.evaluation.held_out(model, corpora, lsn.Layout(max_tokens=200), progress=False)
    return corpora, run, sets, text, text.measure(sets, progress=False)


def test_collecting_by_three_processes_gives_the_same_bits(model, one_process, tmp_path):
    corpora, run, *_ = one_process
    layout = lsn.Layout(max_tokens=900, length=32)
    with lsn.processes(3):
        in_memory = lsn.collect(model, corpora, METHODS, layout=layout, progress=False)
        on_disk = lsn.collect(model, corpora, METHODS, tmp_path / "run", layout=layout, progress=False)
    for again in (in_memory, on_disk):
        assert again.statistics.sums.keys() == run.statistics.sums.keys()
        for key, value in run.statistics.sums.items():
            assert torch.equal(value, again.statistics.sums[key]), key
        assert again.costs.keys() == run.costs.keys()


def test_losses_by_three_processes_are_the_same(one_process):
    *_, sets, text, measured = one_process
    with lsn.processes(3):
        again = text.measure(sets, progress=False)
    keys = ["set", "intervened", "evaluated"]
    assert again.table[keys].equals(measured.table[keys])
    assert measured.table["nll_change"].abs().max() > 1e-3
    torch.testing.assert_close(
        torch.tensor(again.table["nll"].to_numpy()), torch.tensor(measured.table["nll"].to_numpy()), atol=1e-6, rtol=0
    )


def test_draws_by_three_processes_are_the_same(one_process):
    run = one_process[1]
    before = bootstrap(run, "dln", replicates=7, progress=False), permutation_test(run, "dln", permutations=7)
    with lsn.processes(3):
        after = bootstrap(run, "dln", replicates=7, progress=False), permutation_test(run, "dln", permutations=7)
    assert before[0].overlaps.equals(after[0].overlaps) and before[0].intervals.equals(after[0].intervals)
    assert torch.equal(before[0].frequency["mlp"], after[0].frequency["mlp"])
    assert torch.equal(before[1].counts, after[1].counts) and torch.equal(before[1].means, after[1].means)


def test_items_run_in_other_processes_in_order_and_all_progress_is_told():
    told: list[int] = []

    def work(item, report):
        report(item)
        return item**2, os.getpid()

    assert workers.mapped(work, [1, 2, 3], told.append) == [(1, os.getpid()), (4, os.getpid()), (9, os.getpid())]
    with lsn.processes(2):
        found = workers.mapped(work, [1, 2, 3, 4, 5], told.append)
        assert workers.mapped(work, [7], told.append) == [(49, os.getpid())]  # one item needs no process
    assert [value for value, _ in found] == [1, 4, 9, 16, 25]
    assert os.getpid() not in {process for _, process in found}
    assert sum(told) == 6 + 15 + 7


def test_an_error_of_a_process_is_raised_and_the_next_call_works():
    def fail(item, report):
        raise lsn.DoesNotApply(f"not for {item}")

    with lsn.processes(2):
        with pytest.raises(lsn.DoesNotApply, match="not for"):
            workers.mapped(fail, [1, 2], print)
        began = time.monotonic()
        with pytest.raises(ValueError, match="at once"):  # the other process ends, though it has more to say than fits
            workers.mapped(fail_or_go_on, [True, False], lambda done: None)
        assert time.monotonic() - began < 30
        with pytest.raises(BrokenProcessPool):
            workers.mapped(lambda item, report: os.kill(os.getpid(), signal.SIGKILL), [1, 2], print)
        assert workers.mapped(lambda item, report: item, [1, 2], print) == [1, 2]


def fail_or_go_on(fails, report):
    if fails:
        raise ValueError("at once")
    for _ in range(10_000_000):
        report(1)


def test_processes_do_not_start_processes_of_their_own_and_threads_come_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with lsn.processes(2):
            assert torch.get_num_threads() == 2
            inner = workers.mapped(lambda item, report: len(workers.shares([1, 2, 3])), [1, 2], print)
            assert inner == [1, 1] and len(workers.shares([1, 2, 3])) == 2
        assert torch.get_num_threads() == 4 and len(workers.shares([1, 2, 3])) == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("count", "system"), [(0, "linux"), (2, "darwin")])
def test_numbers_that_cannot_be_are_refused(count, system, monkeypatch):
    monkeypatch.setattr("sys.platform", system)
    with (
        pytest.raises(ValueError, match="expected 1 or more, and 1 on a system other than Linux"),
        lsn.processes(count),
    ):
        pass
