import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import lsn_lens as lsn
from lsn_lens.report import charts, plots, type_plots

LANGUAGES = ["en", "fr", "zh", "ja", "vi"]


def diagonal(rise=0.05, elsewhere=0.002):
    values = np.where(np.eye(len(LANGUAGES), dtype=bool), rise, elsewhere)
    return pd.DataFrame(values, index=LANGUAGES, columns=LANGUAGES)


PRUNED = pd.DataFrame(
    {"rate": [0.1, 0.1, 0.2, 0.2], "plan": ["frequency", "inverted"] * 2, "rise": [0.1, 0.5, 0.2, 0.9],
     "others_rise": [0.3, 0.3, 0.6, 0.6]}
)  # fmt: skip

TYPED = pd.DataFrame(
    [
        {"action": action, "type": name, "control": control, "change": change, "low": 0.1, "high": 0.6,
         "control_change": 0.2}
        for action, change in (("scale 1.5", 0.3), ("scale 2", 0.5))
        for name in ("all-shared", "specific")
        for control in ("number", "contribution")
    ]
)  # fmt: skip


GROWN = pd.DataFrame(
    [
        {"checkpoint": step, "language": language, "units": 10 * k + place, "units_low": 10 * k - 1,
         "units_high": 10 * k + 5, "chance": 1.0 + place}
        for place, language in enumerate(("en", "c++"))
        for k, step in enumerate(("step-9", "step-10", "step-200"))
    ]
)  # fmt: skip


METHODS = {
    name: lsn.NeuronSet.from_dict({"fr": units}, (2, 6))
    for name, units in {"lape": [(0, 1), (0, 2), (1, 3)], "lap": [(0, 2), (1, 3)], "lave": [(1, 5)]}.items()
}
SCORES = lsn.NeuronScores(("en", "fr"), {"mlp": torch.tensor([[[0.0] * 6] * 2, [[5, 4, 3, 1, 2, -math.inf]] * 2])},
                          "Lape()")  # fmt: skip
SIMILAR = pd.DataFrame([[1, 0.9, 0.2], [0.9, 1, 0.4], [0.2, 0.4, 1]], index=["fr", "es", "zh"],
                       columns=["fr", "es", "zh"])  # fmt: skip
CURVES = pd.DataFrame(
    [
        {"bases": "mlp", "method": name, "language": language, "units": units, "own_rise": rise * units,
         "random_mean": 0.1, "random_low": 0.0, "random_high": 0.3}
        for name, rise in (("lape", 0.1), ("lap", 0.2))
        for language in ("fr", "zh")
        for units in (1, 10)
        if (name, language, units) != ("lap", "zh", 10)
    ]
)  # fmt: skip


def all_charts():
    summary = pd.DataFrame({"language": LANGUAGES, "own_rise": [0.1, 0.2, -0.1, 0.0, 0.3]})
    points = pd.DataFrame({"language": LANGUAGES * 3, "own_rise": np.linspace(-0.1, 0.1, 15)})
    overall = pd.DataFrame(
        {
            "method": ["lape", "lap"],
            "action": "zero",
            "own_rise": [0.1, 0.2],
            "mean_other_rise": [0.0, 0.1],
            "random_mean": [0.0, np.nan],
        }
    )
    counts = pd.DataFrame(np.arange(10).reshape(2, 5), columns=LANGUAGES).rename_axis("layer")
    profile = pd.DataFrame({"layer": [0, 1] * 2, "type": ["all-shared"] * 2 + ["specific"] * 2, "mean": [0.1, 0.2] * 2,
                            "minimum": 0.05, "maximum": 0.3, "chance_unrelated": 0.15})  # fmt: skip
    shares = pd.DataFrame({"layer": [0, 1] * 2, "language": ["zh", "zh", "en", "en"], "type": "all-shared",
                           "sum_share": [0.1, 0.2, 0.3, 0.4]})  # fmt: skip
    return {
        "upset": plots.upset(METHODS),
        "precision": plots.precision_recall({"lape": SCORES}, METHODS["lape"], "fr"),
        "clusters": plots.clusters(SIMILAR),
        "sizes": plots.size_curves(CURVES),
        "types": type_plots.type_curves(profile),
        "type map": type_plots.type_map(shares, "all-shared"),
        "type effects": type_plots.type_effects(TYPED),
        "type strengths": type_plots.type_strengths(TYPED.query("type == 'specific'")),
        "layers": plots.layer_counts(counts),
        "change": plots.change_matrix(diagonal()),
        "overlap": plots.overlap(diagonal().abs()),
        "control": plots.control(summary, points),
        "methods": plots.method_rises(overall),
        "training": plots.training_changes(
            pd.DataFrame({"kind": ["lape", "random"], "own": [-0.1, 0.0], "others": [0.1, 0.0], "neutral": [0.0, 0.2]})
        ),
        "agreement": plots.agreement(
            pd.DataFrame({"method": ["lape"], "other": ["lap"], "chance_corrected": [0.25]}), ["lap", "lape", "lave"]
        ),
        "growth": plots.checkpoint_curves(GROWN, "units", "Units", "neurons", reference="chance"),
        "prune": plots.prune_curves(PRUNED, {"frequency": "rarest", "inverted": "most frequent", "random": "random"}),
    }


@pytest.mark.parametrize("broken", ["row", "column", "cell"])
@pytest.mark.parametrize("size", [3, 5])
def test_one_broken_language_does_not_flatten_the_colours(broken, size):
    matrix = diagonal().iloc[:size, :size].copy()
    place = {"row": (1, slice(None)), "column": (slice(None), 1), "cell": (1, 2)}[broken]
    matrix.iloc[place] = 40.0
    assert plots.robust_limit(matrix) == pytest.approx(0.05)
    cells = plots.change_matrix(matrix).marks[0]
    assert cells.limits == (pytest.approx(-0.05), pytest.approx(0.05))
    assert "+40.000" in cells.label
    assert "+40.000" in cells.texts()[1]


def test_the_limit_is_positive_and_ignores_what_is_no_number():
    matrix = diagonal()
    matrix.iloc[0, 1] = np.nan
    matrix.iloc[1, 0] = np.inf
    assert plots.robust_limit(matrix) == pytest.approx(0.05)
    assert plots.robust_limit(matrix * 0) > 0
    assert plots.robust_limit(pd.DataFrame()) > 0
    sparse = diagonal(0.0, 0.0)
    sparse.iloc[0, 0] = 3.0
    assert plots.robust_limit(sparse) == 3.0


def test_the_row_without_intervention_is_not_shown():
    matrix = pd.concat([pd.DataFrame(0.0, index=["none"], columns=LANGUAGES), diagonal()])
    assert list(plots.change_matrix(matrix).marks[0].values.index) == LANGUAGES


def test_both_libraries_show_the_same_numbers():
    chart = plots.change_matrix(diagonal())
    axes = chart.matplotlib().axes[0]
    assert axes.images[0].get_clim() == pytest.approx((-0.05, 0.05))
    assert [text.get_text() for text in axes.texts] == [each for row in chart.marks[0].texts() for each in row]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == LANGUAGES
    trace = chart.plotly().data[0]
    assert (trace.zmin, trace.zmax) == (-0.05, 0.05)
    assert np.array_equal(np.asarray(trace.z), diagonal())
    assert list(trace.y) == LANGUAGES
    assert chart.plotly().layout.yaxis.autorange == "reversed"  # first row on top, as in matplotlib


def test_agreement_is_symmetric_and_empty_where_there_is_none():
    cells = all_charts()["agreement"].marks[0].values
    assert cells.loc["lap", "lape"] == cells.loc["lape", "lap"] == 0.25
    assert cells.loc["lave"].isna().all()


def test_bars_and_dots_stand_on_the_same_places():
    chart = all_charts()["control"]
    axes = chart.matplotlib().axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.1, 0.2, -0.1, 0.0, 0.3]
    dots = np.asarray(axes.collections[0].get_offsets())
    assert dots[:, 0].tolist() == [0, 1, 2, 3, 4] * 3
    bars, points = chart.plotly().data
    assert list(bars.x) == LANGUAGES
    assert list(points.x) == LANGUAGES * 3
    assert np.allclose(points.y, dots[:, 1])


def test_curves_of_pruning_have_their_own_values_and_those_of_the_random_plans():
    rarest, frequent, random = all_charts()["prune"].marks
    assert list(rarest.values) == [0.1, 0.2] and list(frequent.values) == [0.5, 0.9]
    assert list(random.values) == [0.3, 0.6] and random.dashed and list(random.values.index) == ["10%", "20%"]


def test_curves_over_checkpoints_keep_their_order_values_and_bands():
    chart = plots.checkpoint_curves(
        GROWN, "units", "Units", "neurons", reference="chance", band=("units_low", "units_high")
    )
    first, chance, second, _ = chart.marks
    assert (first.label, second.label, chance.label) == ("en", "c++", "en: chance") and chance.dashed
    assert list(second.values.index) == ["step-9", "step-10", "step-200"] and list(second.values) == [1, 11, 21]
    assert list(second.band["low"]) == [-1, 9, 19] and list(second.band["high"]) == [5, 15, 25]


def test_types_of_neurons_as_curves_cells_bars_and_dots():
    charts_of = all_charts()
    shared, unrelated, *_ = charts_of["types"].marks
    assert shared.values.tolist() == [0.1, 0.2] and unrelated.dashed and len(charts_of["types"].marks) == 4
    assert list(shared.band["low"]) == [0.05] * 2 and list(shared.band["high"]) == [0.3] * 2
    (cells,) = charts_of["type map"].marks
    assert cells.values.to_dict() == {0: {"zh": 0.1, "en": 0.3}, 1: {"zh": 0.2, "en": 0.4}}
    bars, *dots = charts_of["type effects"].marks
    assert list(bars.values.index) == ["all-shared", "specific"]
    assert [each.label for each in dots] == ["control: number", "control: contribution"]
    own, *controls = charts_of["type strengths"].marks
    assert own.values.to_dict() == {"scale 1.5": 0.3, "scale 2": 0.5} and len(controls) == 2


def test_an_upset_plot_counts_each_unit_once():
    chart = plots.upset(METHODS)
    bars, members, others = chart.marks
    assert bars.values.to_dict() == {"lape & lap": 2, "lape": 1, "lave": 1}
    assert list(members.values.index) == ["lape & lap", "lape & lap", "lape", "lave"] and len(others.values) == 5
    places = {name: place for place, name in chart.y_ticks.items()}
    assert set(members.values["lape & lap"]) == {places["lape"], places["lap"]}
    assert places["lave"] == others.values.min()
    assert [*chart.x_ticks.values()] == ["2", "1", "1"] and "4 in all" in chart.caption
    assert "1 smaller combinations are left out" in plots.upset(METHODS, most=2).caption
    both = lsn.NeuronSet.from_dict({"fr": [(0, 1), (1, 1)], "en": [(1, 1)]}, (2, 6))
    assert plots.upset(both).marks[0].values.to_dict() == {"fr": 1, "fr & en": 1}
    with pytest.raises(ValueError, match="1 sets with 3 units"):
        plots.upset({"lape": METHODS["lape"]})


def test_precision_and_recall_are_those_of_the_ranking():
    own, chance = all_charts()["precision"].marks
    # ranks, two units each: 0 (5), 1 (4: one true), 2 (3: one true), 4, 3 (1: one true), 5 (cannot be chosen)
    points = dict(zip(np.round(own.values.index, 6), own.values, strict=True))
    assert points[round(1 / 3, 6)] == pytest.approx(1 / 4) and points[round(2 / 3, 6)] in (
        pytest.approx(2 / 6), pytest.approx(2 / 8)
    )  # fmt: skip
    assert own.values.iloc[0] == pytest.approx(3 / 12) and list(chance.values) == [3 / 12] * 2
    with pytest.raises(ValueError, match="no units of 'en'"):
        plots.precision_recall(SCORES, lsn.NeuronSet.from_dict({"en": [], "fr": [(0, 1)]}, (2, 6)), "en")
    with pytest.raises(KeyError, match=r"expected \['q'\] in 'fr'"):
        plots.precision_recall(SCORES, lsn.NeuronSet.from_dict({"fr": [(0, 1)]}, (2, 6), "q"), "fr")


def test_clusters_join_at_their_mean_distance():
    chart = plots.clusters(SIMILAR)
    heights = sorted(max(mark.values) for mark in chart.marks)
    assert heights == pytest.approx([0.1, 0.7])  # fr with es; both with zh: 1 - (0.2 + 0.4) / 2
    assert set(chart.x_ticks.values()) == {"fr", "es", "zh"} and sorted(chart.x_ticks) == [0, 1, 2]
    ticks = chart.matplotlib().axes[0].get_xticklabels()
    assert [each.get_text() for each in ticks] == [*chart.x_ticks.values()]
    with pytest.raises(ValueError, match="expected numbers for two languages"):
        plots.clusters(SIMILAR.head(1))


def test_effect_by_size_is_a_mean_over_the_languages_that_all_have():
    *methods, random = plots.size_curves(CURVES).marks
    assert {each.label: [*each.values] for each in methods} == {"lape": [0.1, 1.0], "lap": [0.2, 2.0]}  # fr alone
    assert random.dashed and list(random.band["high"]) == [0.3, 0.3]
    with pytest.raises(ValueError, match="choose the rows of one kind"):
        plots.size_curves(pd.concat([CURVES, CURVES.assign(bases="q")]))


def test_one_huge_bar_does_not_hide_the_others():
    names = [*"abcdef"]
    usual = charts.Bars(pd.Series([0.1, 0.2, -0.1, 0.1, 0.2, 9.0], index=names), "own", "#b5402a")
    chart = charts.Chart("", "", "", (usual, charts.Bars(usual.values / 2, "others", "#333")))
    low, high = chart.matplotlib().axes[0].get_ylim()
    assert 0.2 < high < 1 and low < -0.1
    assert chart.plotly().layout.yaxis.range == (low, high)
    assert chart.plotly().data[1].x == ("a", "b", "c", "d", "e", "f<br>↑9 ↑4.5")
    assert chart.matplotlib().axes[0].get_xticklabels()[5].get_text() == "f\n↑9 ↑4.5" and "cut off" in chart.told
    even = charts.Chart("", "", "", (charts.Bars(usual.values.head(5), "own", "#b5402a"),))
    assert even.plotly().layout.yaxis.range is None and even.told == even.caption


def error_bars(chart, place=0):
    """Low and high ends of the error bars of a chart's bars, as matplotlib and as plotly draw them."""
    (drawn,) = [each for each in chart.matplotlib().axes[0].containers if hasattr(each, "has_yerr")][place : place + 1]
    lines = [np.reshape(each, (-1, 2))[:, 1].tolist() for each in drawn.lines[2][0].get_segments()]
    trace = [each for each in chart.plotly().data if each.type == "bar" and each.error_y.array is not None][place]
    values = np.asarray(trace.y, dtype=float)
    ends = np.stack([values - trace.error_y.arrayminus, values + trace.error_y.array], axis=1)
    assert np.allclose(ends, [each or [np.nan] * 2 for each in lines], equal_nan=True)
    return ends.tolist()


def test_bars_show_the_intervals_of_their_table():
    points = pd.DataFrame({"language": ["fr", "zh"], "own_rise": [0.0, 0.1]})
    effects = pd.DataFrame({"language": ["fr", "zh"], "own_rise": [0.1, 0.2], "own_rise_low": [0.05, np.nan],
                            "own_rise_high": [0.3, np.nan]})  # fmt: skip
    chart = plots.control(effects, points)
    (first, second), (bars, _) = error_bars(chart), chart.plotly().data
    assert first == pytest.approx([0.05, 0.3]) and np.isnan(second).all() and "Error bars" in chart.caption
    assert list(bars.customdata) == [" (0.05 to 0.3)", ""]
    assert chart.matplotlib().axes[0].get_ylim()[1] > 0.3
    unknown = plots.control(effects.assign(own_rise_low=np.nan, own_rise_high=np.nan), points)
    assert unknown.marks[0].interval is None and "Error bars" not in unknown.caption
    summary = pd.DataFrame(
        {"kind": ["lape", "lora"], "own": [-0.1, 0.5], "own_low": [-0.2, 0.6], "own_high": [0.1, 0.7],
         "others": [0.1, 0.0], "neutral": [0.0, 0.2], "neutral_low": -0.1, "neutral_high": 0.4}
    )  # fmt: skip
    chart = plots.training_changes(summary)
    assert np.allclose(error_bars(chart), [[-0.2, 0.1], [0.6, 0.7]])  # also where the interval lacks the value
    assert np.allclose(error_bars(chart, 1), [[-0.1, 0.4]] * 2) and chart.marks[1].interval is None
    typed = all_charts()["type effects"]
    assert np.allclose(error_bars(typed), [[0.1, 0.6]] * 2) and "over items" in typed.caption


def test_an_interval_that_is_cut_off_is_written_below_its_bar():
    names = [*"abcdef"]
    values = pd.Series([0.1, 0.2, -0.1, 0.1, 0.2, 0.2], index=names)
    ends = pd.DataFrame({"low": values - 0.05, "high": [*values[:5] + 0.05, 9.0]})
    chart = charts.Chart("", "", "", (charts.Bars(values, "own", "#b5402a", ends),))
    assert chart.matplotlib().axes[0].get_ylim()[1] < 1
    assert chart.plotly().data[0].x[-1] == "f<br>↑0.2 (0.15 to 9)" and "cut off" in chart.told
    wide = charts.Chart("", "", "", (charts.Bars(values, "own", "#b5402a", ends.assign(low=-9.0, high=9.0)),))
    assert wide.told == "" and wide.matplotlib().axes[0].get_ylim()[1] > 9  # all are wide: that is what is to be seen


def test_many_small_dots_do_not_cut_off_the_bars():
    bars = charts.Bars(pd.Series([0.1, 0.2], index=["fr", "zh"]), "own", "#b5402a")
    dots = charts.Dots(pd.Series(0.01, index=["fr", "zh"] * 20), "random", "#333")
    chart = charts.Chart("", "", "", (bars, dots))
    assert chart.told == "" and chart.matplotlib().axes[0].get_ylim()[1] > 0.2


@pytest.mark.parametrize("name", [
    "layers", "change", "overlap", "control", "methods", "agreement", "prune", "types", "type map", "type effects",
    "type strengths", "growth", "upset", "precision", "clusters", "sizes",
])  # fmt: skip
def test_every_figure_can_be_drawn_by_both(name, tmp_path):
    chart = all_charts()[name]
    assert isinstance(chart.matplotlib(), Figure)
    assert chart.caption
    assert plots.save(chart, tmp_path / f"{name}.svg").read_text().count("<svg") == 1
    bands = sum(getattr(mark, "band", None) is not None for mark in chart.marks)  # drawn by themselves
    assert len(chart.plotly().data) == len(chart.marks) + bands


@pytest.mark.parametrize("kind", ["bars", "line", "heatmap"])
@pytest.mark.parametrize("names", [["language_dimensions", "entropy_lambda", "expert_frequency"] * 4, LANGUAGES])
def test_names_below_an_axis_do_not_touch(kind, names):
    names = [f"{name}{place}" if len(names) > 5 else name for place, name in enumerate(names)]
    values = pd.Series(range(len(names)), index=names, dtype=float)
    marks = {
        "bars": charts.Bars(values, "units", "#000"),
        "line": charts.Line(values, "units", "#000"),
        "heatmap": charts.Heatmap(values.to_frame().T, (0.0, 1.0), ("#fff", "#000"), "share", ".1f"),
    }
    figure = charts.Chart("", "method", "units", (marks[kind],)).matplotlib()
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == names
    slanted = {tick.get_rotation() for tick in ticks}
    assert slanted == ({30.0} if len(names) > 5 else {0.0})
    line = ticks[0].get_fontsize() * figure.dpi / 72
    places = [figure.axes[0].transData.transform((place, 0))[0] for place in range(2)]
    if len(names) > 5:
        assert (places[1] - places[0]) * np.sin(np.pi / 6) > line  # slanted lines stand more than a line apart
    else:
        boxes = [tick.get_window_extent() for tick in ticks]
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_files_by_their_endings(tmp_path):
    chart = all_charts()["overlap"]
    assert plots.save(chart, tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    whole = plots.save(chart, tmp_path / "a.html").read_text()
    assert len(whole) > 1_000_000  # plotly.js is inside
    small = plots.save(chart, tmp_path / "b.html", script="beside").read_text()
    assert len(small) < 100_000
    assert 'src="plotly.min.js"' in small
    assert (tmp_path / "plotly.min.js").is_file()
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf, \.html"):
        plots.save(chart, tmp_path / "a.jpeg")


def test_labels_are_no_markup_and_no_formula(tmp_path):
    matrix = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=["<b>x</b>", "$a_$"], columns=["<b>x</b>", "$a_$"])
    chart = plots.change_matrix(matrix, title="$\\bad <i>")
    trace = chart.plotly().data[0]
    assert list(trace.x) == ["&lt;b&gt;x&lt;/b&gt;", "$a_$"]
    plots.save(chart, tmp_path / "a.png")


def test_wide_matrices_go_without_numbers():
    wide = pd.DataFrame(np.ones((2, charts.MOST_WRITTEN_CELLS + 1)))
    cells = charts.Heatmap(wide, (0.0, 1.0), plots.SEQUENTIAL, "", ".0f")
    assert {text for row in cells.texts() for text in row} == {""}


def test_digits_show_two_significant():
    assert [plots.digits(limit) for limit in (300.0, 3.0, 0.3, 0.05, 0.0132)] == [0, 1, 2, 3, 3]


def test_nothing_global_is_touched():
    import matplotlib
    import plotly.io

    before = dict(matplotlib.rcParams), plotly.io.templates.default, plotly.io.renderers.default
    all_charts()["change"]._repr_png_()
    assert (dict(matplotlib.rcParams), plotly.io.templates.default, plotly.io.renderers.default) == before
