"""Progress bars have the name of the step that they belong to."""

import pytest

from lsn_lens import bars
from lsn_lens.bars import in_steps, step, steps


@pytest.fixture
def name_of_bar(monkeypatch):
    given = {}
    monkeypatch.setattr(bars._tqdm, "__init__", lambda self, *arguments, **options: given.update(options))

    def make():
        bars.tqdm([], desc="losses")
        return given["desc"]

    return make


@in_steps
def measure(name_of_bar, fail=False):
    seen = [name_of_bar()]
    steps(["text", "ablations", "random controls for lape"])
    for each in ("text", "something else", "random controls for lape"):
        step(each)
        seen.append(name_of_bar())
    if fail:
        raise ValueError("wrong")
    return seen


def test_bars_are_named_by_step_until_the_function_ends(name_of_bar):
    assert measure(name_of_bar) == ["losses", "1 of 3: text", "1 of 3: text", "3 of 3: random controls for lape"]
    with pytest.raises(ValueError, match="wrong"):
        measure(name_of_bar, fail=True)
    assert name_of_bar() == "losses"
    step("text")  # outside of any steps
    assert name_of_bar() == "losses"
