"""Labels in any script are drawn, or written in other letters and said to be."""

import warnings

import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from lsn_lens.report import charts, fonts, plots
from lsn_lens.report.fonts import lettering as letters_for

FOREIGN = ["中文", "हिन्दी", "தமிழ்"]


def font(path, name, text):
    """A font with a box for each letter of a text."""
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (0, 600), (500, 600), (500, 0)]):
        (pen.moveTo if place == 0 else pen.lineTo)(point)
    pen.closePath()
    box, names = pen.glyph(), [".notdef", *(f"u{ord(char):04X}" for char in sorted(set(text)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(char): f"u{ord(char):04X}" for char in set(text)})
    builder.setupGlyf(dict.fromkeys(names, box))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture(params=[False, True], ids=["as found", "other way round"])
def install(request, tmp_path, monkeypatch):
    """`install(name, text)`: pretend that such fonts are installed, and none else but matplotlib's own.

    matplotlib lists fonts as the disk does, in any order.
    """
    own = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname][:: -1 if request.param else 1]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(own))
    found = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args, **options: list(found))
    return lambda name, text: found.append(font(tmp_path / f"{name}.ttf", name, text))


def figures():
    """Every kind, with labels everywhere."""
    names = [*FOREIGN, "_x", "$y$", "$\\bad_^", "<b>x</b>", "العربية"]
    rng = np.random.default_rng(0)
    values = pd.Series(rng.random(len(names)), index=names)
    bars = tuple(charts.Bars(values, name, "#b5402a") for name in ("_own", "$x_1$"))
    lines = tuple(charts.Line(values, name, "#b5402a") for name in names)
    matrix = pd.DataFrame(rng.random((len(names), len(names))), index=names, columns=names)
    return {
        "bars": charts.Chart("_title $t$ हि", "_x", "$y$", (*bars, charts.Dots(values, "点 $", "#333"))),
        "lines": charts.Chart("题", "$x$", "_y", lines),
        "map": plots.change_matrix(matrix, title="$t_1$ 中", unit="$nats$ க"),
    }


def written(figure):
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    axes = figure.axes[0]
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    return {
        "title": axes.get_title(loc="left"), "x": axes.get_xlabel(), "y": axes.get_ylabel(),
        "ticks": [each.get_text() for each in ticks],
        "legend": [each.get_text() for each in legend.get_texts()] if legend else [],
        "colours": figure.axes[1].get_ylabel() if len(figure.axes) > 1 else "",
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "ending"), [("bars", "png"), ("lines", "svg"), ("map", "pdf")])
def test_without_fonts_nothing_is_a_box(kind, ending, install, tmp_path):
    chart = figures()[kind]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        charts.save(chart, tmp_path / f"a.{ending}")
    said = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    assert len(said) == 1 and not any("Glyph" in each or "missing from" in each for each in said)
    for script, package in [("HAN", "fonts-noto-cjk"), ("DEVANAGARI", "fonts-noto-core"), ("TAMIL", "fonts-noto-core")]:
        assert script in said[0] and package in said[0]
    assert "Noto Sans Devanagari" in said[0] and "ARABIC" not in said[0]


@pytest.mark.parametrize("kind", ["bars", "lines", "map"])
def test_labels_that_cannot_be_drawn_are_ascii_and_the_others_as_they_are(kind, install):
    chart = figures()[kind]
    with pytest.warns(UserWarning, match="drawn in ASCII"):
        found = written(chart.matplotlib())
    shown = found["ticks"] + found["legend"]
    assert {"_x", "$y$", "$\\bad_^", "<b>x</b>", "العربية"} <= set(shown)
    assert {"ZhongWen", "hindi"} <= set(shown) and not set(FOREIGN) & set(shown)
    expected = {
        "bars": ("_title $t$ hi", ["_own", "$x_1$", "Dian $"], ""),
        "lines": ("Ti", [shown[i] for i in range(len(chart.marks))], ""),
        "map": ("$t_1$ Zhong", [], "$nats$ k\nfrom"),
    }[kind]
    assert found["title"] == expected[0]
    assert len(found["legend"]) == (0 if kind == "map" else len(chart.marks))
    assert kind == "lines" or found["legend"] == expected[1]
    assert found["colours"].startswith(expected[2])


@pytest.mark.parametrize("kind", ["bars", "lines", "map"])
def test_no_text_of_a_figure_is_mathematics(kind, install):
    with pytest.warns(UserWarning, match="drawn in ASCII"):
        figure = figures()[kind].matplotlib()
    figure.draw_without_rendering()
    from matplotlib.text import Text

    assert len(figure.findobj(Text)) > 12 and not any(each.get_parse_math() for each in figure.findobj(Text))


def test_an_installed_font_is_found_and_used(install, tmp_path):
    install("Plain Box", "题点க" + "".join(FOREIGN))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for ending, chart in zip(("png", "svg", "pdf"), figures().values(), strict=True):
            figure = chart.matplotlib()
            found = written(figure)
            assert set(FOREIGN) <= set(found["ticks"] + found["legend"])
            tick = next(each for each in figure.axes[0].get_xticklabels() if each.get_text() == "中文")
            assert tick.get_fontfamily() == ["DejaVu Sans", "Plain Box"], "the usual font comes first"
            figure.savefig(tmp_path / f"a.{ending}")


def test_fonts_are_combined_and_the_better_ones_first(install):
    install("A Font", "中文")
    install("Noto Sans One", "中हिन्दी")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert letters_for(["中", "en"]).families == ("DejaVu Sans", "Noto Sans One")
        assert letters_for(["中文", "हिन्दी"]).families == ("DejaVu Sans", "Noto Sans One", "A Font")
        assert letters_for(["en", "ř", "1 %"]).families == ("DejaVu Sans",)
    with pytest.warns(UserWarning, match=r"HAN \(U\+9F9C\): Noto Sans CJK, package fonts-noto-cjk"):
        assert letters_for(["中文", "龜中 en"]).of("龜中 en").isascii()


def test_a_matplotlib_that_cannot_shape(install, monkeypatch):
    install("Box", "हिन्दी中文")
    monkeypatch.setattr(fonts, "_can_shape", lambda: False)
    with pytest.warns(UserWarning, match=r"ARABIC.*DEVANAGARI|DEVANAGARI.*ARABIC") as caught:
        found = letters_for(["हिन्दी", "中文", "العربية", "ab"])
    assert "matplotlib 3.11" in str(caught[0].message) and "HAN" not in str(caught[0].message)
    assert (found.of("हिन्दी"), found.of("中文"), found.of("ab")) == ("hindi", "中文", "ab") and found.of(
        "العربية"
    ).isascii()


def test_different_labels_stay_different(install):
    labels = ["上海", "ShangHai", "尚海", "商海", "en", "\U000e0100", "\ue000", "\ue001"]
    with pytest.warns(UserWarning, match="drawn in ASCII"):
        found = letters_for(labels)
    shown = [found.of(label) for label in labels]
    assert shown[:4] == ["ShangHai (2)", "ShangHai", "ShangHai (3)", "ShangHai (4)"]
    assert len(set(shown)) == len(shown) and shown[-2:] == ["U+E000", "U+E001"]


def test_names_in_html_are_no_markup():
    values = pd.Series([1.0], index=["a"])
    chart = charts.Chart("", "", "", (charts.Bars(values, "<b>x</b>", "#333"), charts.Line(values, "<i>", "#333")))
    assert [trace.name for trace in chart.plotly().data] == ["&lt;b&gt;x&lt;/b&gt;", "&lt;i&gt;"]
    cells = charts.Heatmap(values.to_frame(), (0.0, 1.0), plots.SEQUENTIAL, "<b>n</b><br>second", ".1f")
    title = charts.Chart("", "", "", (cells,)).plotly().data[0].colorbar.title.text
    assert title == "&lt;b&gt;n&lt;/b&gt;<br>second"
