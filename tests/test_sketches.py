"""Small figures in notebooks: numbers are right, text stays text, nothing runs."""

import math
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest

from lsn_lens import sketches

SVG = "{http://www.w3.org/2000/svg}"


def parsed(shown):
    return next(iter(ElementTree.fromstring(shown)))


def test_bars_begin_at_zero_and_are_as_long_as_their_numbers():
    drawn = parsed(sketches.bars({"fr": 0.2, "de": -0.1, "zh": math.nan, "ja": None}, "effect"))
    (long, short), texts = drawn.findall(f"{SVG}rect"), [each.text for each in drawn.findall(f"{SVG}text")]
    assert float(long.get("width")) == pytest.approx(2 * float(short.get("width")), rel=0.01)
    end = float(short.get("x")) + float(short.get("width"))
    assert end == pytest.approx(float(long.get("x")), abs=0.11) and long.get("fill") != short.get("fill")
    assert texts == ["fr", "0.2", "de", "-0.1", "zh", "n/a", "ja", "n/a"]
    assert drawn.get("aria-label") == "effect"
    assert float(short.get("x")) > float(drawn.find(f"{SVG}text").get("x"))  # right of the names


def test_what_was_not_counted_has_no_figure():
    assert sketches.bars({"fr": None, "de": math.nan}, "documents") == sketches.bars({}, "documents") == ""


def test_cells_are_darker_the_larger_their_number():
    table = pd.DataFrame([[0, 1, 4], [2, 0, 0]], index=["fr", "<b>"], columns=pd.Index([0, 1, 2], name="layer"))
    drawn = parsed(sketches.cells(table, "a & b"))
    boxes = drawn.findall(f"{SVG}rect")
    assert [each.find(f"{SVG}title").text for each in boxes][2:4] == ["fr, layer 2: 4", "<b>, layer 0: 2"]
    shades = [float(each.get("fill-opacity")) for each in boxes]
    assert shades[2] == 1.0 > shades[3] > shades[1] > shades[0] == shades[4]
    assert float(drawn.get("width")) <= 80 * 5 + 100
    assert sketches.cells(table.iloc[:0], "").count("<rect") == 0
