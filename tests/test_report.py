import html
import io
import json
import math
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from browser import BROWSER, after

import lsn_lens as lsn
from lsn_lens.comparison import draw_checks, grid, model_checks
from lsn_lens.comparison import page as sections
from lsn_lens.comparison import sections as comparison_sections
from lsn_lens.comparison.equal_size import AHEAD, FIRST, LEADS, NO_POINTS
from lsn_lens.report import columns, page, plots, tables, text_view
from lsn_lens.report.page import Report, Section

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's own font has no Japanese
HOSTILE = ["<script>alert(1)</script>", "a|b", 'x"onload="y', "日本語 & co"]


class Page(HTMLParser):
    """The tags of a page with their attributes; what stands in scripts is no tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def row(**changes):
    good = {"method": "lape", "languages": 8, "shown": 7, "own_rise": 0.05, "own_minus_worst_other": 0.04,
            "shown_low": 5.0, "shown_high": 8.0, "units": 98}  # fmt: skip
    return {**good, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    matrix = pd.DataFrame(np.eye(4) * 0.1, index=HOSTILE, columns=HOSTILE)
    table = pd.DataFrame({"language": HOSTILE, "own_rise": [0.1234, -0.00001, np.nan, 0.0], "warning": HOSTILE})
    view = text_view.neuron_on_text(
        pd.DataFrame({"text": HOSTILE, "place": 0, "piece": HOSTILE, "neuron": HOSTILE[0], "activation": 1.0})
    )
    section = Section(
        HOSTILE[0], tuple(HOSTILE), {HOSTILE[1]: table}, {"change": plots.change_matrix(matrix, HOSTILE[0])},
        code="python a.py '<b>'", view=view, data={"label": HOSTILE[0]},
    )  # fmt: skip
    out = tmp_path_factory.mktemp("report")
    path = page.write_report(Report(HOSTILE[0], HOSTILE[2], HOSTILE[0], {"of": "7 of 8"}, (section,)), out, png=True)
    assert path == out / "report.html"
    return out


def test_the_page_asks_nothing_of_the_network(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert links == ["plotly.min.js", "#part-1"]  # the script is in the same folder
    assert not {"link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert "@import" not in text.split("</style>")[0]
    assert "unpkg.com" not in text
    assert (folder / "plotly.min.js").read_text().count("* plotly.js v") == 1
    assert len(text) < 2_000_000  # without it


def test_hostile_names_stay_text(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 4  # plotly.js, the figure, the neurons on text, the colours of dark mode
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert '"&lt;script&gt;alert(1)&lt;/script&gt;"' in text  # CircuitsVis would read html in its tokens


def test_everything_is_there(folder):
    assert (folder / "figures" / "change.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert "日本語 &amp; co" in page
    assert page.count("Plotly.newPlot(") >= 1
    assert "+0.123<" in page


def test_markdown_says_the_same(folder):
    text = (folder / "report.md").read_text()
    assert "![&lt;script&gt;alert(1)&lt;/script&gt;](figures/change.png)" in text
    assert "a\\|b" in text
    assert "<script>" not in text.split("```")[0]
    assert "python a.py" in text


def test_figures_are_drawn_on_request(tmp_path):
    chart = plots.change_matrix(pd.DataFrame(np.eye(2), index=["a", "b"], columns=["a", "b"]), "Losses & more")
    page.write_report(Report("", "", "", {}, (Section("s", figures={"change": chart}),)), tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"report.html", "report.md", "plotly.min.js"}
    assert "Figure in report.html: Losses &amp; more." in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("Plotly.newPlot(") == 1


def test_digits_of_tables():
    frame = pd.DataFrame(
        {
            "own_rise": [0.01234, -0.00004, np.nan],
            "units": [12345, 1, 0],
            "ratio": [12.34, 1.0, np.nan],
            "share_above_random": [1.0, 0.8, 0.0],
            "rate": [0.0187, 0.01, 0.01],
            "method": ["lape", "lap", "lave"],
        }
    )
    headings, rows = tables.table_cells(frame)
    assert headings == ["in-language loss increase", "units", "ratio", "above random", "rate", "method"]
    assert rows[0] == ["+0.0123", "12,345", "12.3", "100%", "1.87%", "lape"]
    assert rows[1] == ["-4e-05", "1", "1.00", "80%", "1.00%", "lap"]  # no number but 0 is written as zero
    assert rows[2][0] == rows[2][2] == "n/a"
    assert tables.table_cells(frame.head(0))[1] == []


@pytest.mark.parametrize(("value", "kind", "text"), [
    (0.0, "nats", "0"), (-0.0004, "change", "-0.0004"), (1234.5, "number", "1,234.5"), (0.003, "share", "<1%"),
    (0.0, "share", "0%"), (0.00001, "p", "<0.001"), (math.inf, "nats", "inf"), (-1.2345, "nats", "-1.23"),
    (0.996, "share", ">99%"), (1.0, "share", "100%"), (0.9999, "p", ">0.999"), (0.99999, "rate", ">99.99%"),
    (0.7, "count", "1"), (0.994, "share", "99%"),
])  # fmt: skip
def test_a_number_is_written_as_zero_or_whole_only_where_it_is(value, kind, text):
    assert columns.written(value, kind) == text


def test_values_are_words_and_not_pythons():
    assert columns.in_words({"exact_q": [58, 192], "de": 0.5, "on": True, "none": None}) == (
        "exact q 58 of 192, de 0.5, on yes, none "
    )
    assert comparison_sections._in_words("Lape(rate=0.0212673611, at_least=10, name='x', skip=True)") == (
        "Lape: rate 0.02127, at least 10, name x, skip yes"
    )


def test_constant_columns_are_in_the_caption_and_remarks_below_their_row(tmp_path):
    frame = pd.DataFrame({"method": ["b", "a", "c"], "languages": 8, "shown": 0, "high": 2.0, "own_rise": [0.1, 2, 3],
                          "language": ["fr", "de", "fr"], "warnings": ["few <b>", "", "none"]})  # fmt: skip
    shown = tables.shown_table("Numbers.", frame)
    assert shown.caption == "Numbers. In every row: languages 8; high 2.00."
    assert shown.all_headings == ["method", "shown", "in-language loss increase", "language", "warnings"]
    assert [row.remark for row in shown.rows] == ["few <b>", "", "none"]
    assert shown.rows[1].cells[2] == tables.Cell("+2.00", "2")
    page.write_report(Report("", "", "", {}, (Section("s", tables={"Numbers": frame}),)), tmp_path)
    text = (tmp_path / "report.html").read_text()
    bodies = text.split("<tbody")[1:]
    assert len(bodies) == 3 and all("</tbody>" in each for each in bodies)  # a row and its remark move together
    assert "few &lt;b&gt;" in bodies[0] and "remark" not in bodies[1].split("</tbody>")[0]
    assert """data-languages='["fr"]'""" in bodies[0] and 'data-value="0.1"' in bodies[0]
    one = tables.shown_table("One row", frame.head(1))
    assert one.caption == "One row" and "languages" in one.headings  # nothing to compare with
    assert "| few &lt;b&gt; |" in (tmp_path / "report.md").read_text()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_sorts_rows_with_their_remarks_and_follows_a_language(tmp_path):
    frame = pd.DataFrame({"method": ["b", "a", "c"], "own_rise": [0.5, np.nan, 10.0], "units": [1, 2, 3],
                          "language": ["fr", "de", "fr"], "warnings": ["of b", "of a", "of c"]})  # fmt: skip
    path = page.write_report(Report("", "", "", {}, (Section("s", tables={"Numbers": frame}),)), tmp_path)
    acts = 'document.querySelectorAll("th button")[1].click(); const all = document.querySelector("#language");'
    acts += 'all.value = "fr"; all.dispatchEvent(new Event("change"));'
    shown = after(path, acts)
    bodies = shown.split("<tbody")[1:]
    assert [re.findall("<div>(of .)</div>", each) for each in bodies] == [["of c"], ["of b"], ["of a"]]  # largest first
    assert [re.findall(r'word">(.)<', each)[0] for each in bodies] == ["c", "b", "a"]  # missing numbers last
    assert ["hidden" in each.split(">")[0] for each in bodies] == [False, False, True]
    assert 'aria-sort="descending"' in shown


COPYING = """
const taken = [], all = document.querySelector("#language"), buttons = document.querySelectorAll("button.copy");
const press = () => buttons.forEach(each => { each.focus(); each.click(); });
document.querySelectorAll("th button")[1].click();
all.value = "fr"; all.dispatchEvent(new Event("change"));
const give = clipboard => Object.defineProperty(navigator, "clipboard", {value: clipboard, configurable: true});
give({writeText: text => { taken.push(text); }});
press();
give(undefined);
document.execCommand = () => { taken.push(document.activeElement.value); return true; };
press();
taken.push([...buttons].map(each => each.textContent).join(), document.querySelectorAll("textarea").length);
document.execCommand = () => false;
press();
taken.push([...buttons].map(each => each.textContent).join(), document.querySelectorAll("textarea").length);
document.body.append(Object.assign(document.createElement("pre"), {id: "taken", textContent: JSON.stringify(taken)}));
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_copies_the_rows_that_it_shows(tmp_path):
    frame = pd.DataFrame(
        {
            "method": ['b "1", x', "a", "c_d & 5 %\\~^{}<$#>", "e", "[f] *", "**g [2]"],
            "own_rise": [0.1234567891, 7.0, -2.5, np.nan, 9.0, 0.0],
            "own_rise_low": [0.1, 2.0, -3.0, np.nan, 8.0, 0.0],
            "units": [1234567, 2, 3, 4, 5, 6],
            "cell": ["● 1", "○", "◕", "◔ x", "[", "*\nx"],
            "language": ["fr", "de", "fr", "fr", "fr", "fr"],
            "warnings": ["of b", "of a", "", "a,b", "[*]", ""],
        }
    )
    path = page.write_report(Report("", "", "", {}, (Section("s", tables={"Numbers": frame}),)), tmp_path)
    told = re.findall('<pre id="taken">(.*?)</pre>', after(path, COPYING), re.DOTALL)[0]
    csv, latex, *again, waiting, gone, by_hand, left = json.loads(html.unescape(told))
    assert again == [csv, latex] and waiting == "copied,copied" and gone == 0
    assert by_hand == "press Ctrl+C,press Ctrl+C" and left == 1  # the other one closed when it lost the focus
    expected = frame.query("language == 'fr'").sort_values("own_rise", ascending=False)
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(csv)).fillna({"warnings": ""}), expected.reset_index(drop=True)
    )
    assert csv.count("\n") == 7  # one of them in a cell
    assert latex.splitlines() == [
        "% Numbers", r"\begin{tabular}{lrrrllp{0.4\linewidth}}", r"\toprule",
        r"method & in-language loss increase & in-language, low & units & cell & language & warnings \\", r"\midrule",
        r"{[}f] * & +9.00 & +8.00 & 5 & [ & fr & [*] \\",
        r'b "1", x & +0.123 & +0.100 & 1,234,567 & $\bullet$ 1 & fr & of b \\',
        r"{*}*g [2] & 0 & 0 & 6 & * x & fr &  \\",
        r"c\_d \& 5 \%\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\textless{}\$\#\textgreater{} "
        r"& $-$2.50 & $-$3.00 & 3 & $3/4$ & fr &  \\",
        r"e & n/a & n/a & 4 & $1/4$ x & fr & a,b \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_the_grid_has_the_evidence_of_each_language():
    states = [(True, True, True), (False, True, True), (False, True, False), (False, False, True), (False,) * 3]
    rows = [{"units": 3, "own_rise": 0.1, "passes": a, "own_hurt_most": b, "above_random": c} for a, b, c in states]
    assert [grid.cell(row)[0] for row in rows] == [*"●◕◑◔○"] == [*tables.VERDICTS]
    assert grid.cell({**rows[0], "units": 0}) == "○ no units" and grid.cell(rows[0]) == "● +0.1"
    numbers = {**rows[0], "method": "lape", "language": "fr", "own_rise_low": 0.05, "own_rise_high": 0.2,
               "worst_other": "de", "worst_other_rise": -0.01, "random_mean": 0.0, "q": 0.02}  # fmt: skip
    assert grid.hover(numbers) == (
        "lape, fr: in-language +0.100 (+0.0500 to +0.200); other hurt most (de) -0.0100; random units, mean 0; "
        "q 0.020; units 3; passes yes"
    )


def test_the_lead_is_what_the_numbers_say():
    text = sections.lead(row())
    assert text == "With its own 98 units, lape passes for 7 of 8 languages (on other documents 5 to 8)."
    assert "(the same on other documents)" in sections.lead(row(shown_low=7.0, shown_high=7.0))
    assert "(on other documents 6)" in sections.lead(row(shown_low=6.0, shown_high=6.0))
    first = {"bases": "mlp", "method": "lape", "place": LEADS, "area": 0.123, "area_low": 0.05, "area_high": 0.2,
             "units": "5, 50"}  # fmt: skip
    ahead = {**first, "method": "plnd", "place": f"{AHEAD} at 3 of 16 points", "area": math.nan}
    other = {**first, "bases": "resid", "place": f"{FIRST} lap", "area_low": -0.1}
    none = {**first, "bases": "z", "place": NO_POINTS, "area": math.nan}
    assert sections.lead(row(), pd.DataFrame([first, ahead, other, none])) == (
        "At equal size, in-language minus worst other loss increase, nats per token: on MLP neurons lape leads: +0.12 "
        "(95 % interval +0.05 to +0.2); on residual dimensions no method leads, lape has the largest effect, not "
        "distinguishable from lap: +0.12 (95 % interval -0.1 to +0.2, not distinguishable from 0); on inputs of the "
        f"attention output no method has enough units. {text}"
    )


@pytest.mark.parametrize("shown", [0, 4])
def test_a_weak_result_is_called_weak(shown):
    text = sections.lead(row(shown=shown))
    assert text.endswith("A weak result: no more than half of the languages.")


@pytest.fixture(scope="module")
def run(load):
    texts = {"en": ["the river is high after the rain"] * 4, "fr": ["la rivière est haute après la pluie", " "] * 4}
    return lsn.collect(
        load("llama"), lsn.load_corpora(texts, hold_out=0.0), layout=lsn.Layout(length=8), progress=False
    )


def test_provenance_names_all_that_matters(run):
    started = datetime.now(UTC) - timedelta(seconds=5)
    origin = page.provenance(run.settings, run.settings["text"], {"seed": 3, "methods": ("lape",)}, started)
    assert set(origin["versions"]) == {"python", *page.PACKAGES}
    assert origin["model"]["weights_hash"] == run.settings["model"]["weights_hash"]
    assert "revision" in origin["model"]
    assert len(origin["corpus"]["sha256"]) == 64
    assert origin["corpus"]["languages"]["fr"]["skipped"] == {"empty": 4}
    assert origin["corpus"]["languages"]["en"]["tokens_used"] > 0
    assert origin["seed"] == 3
    assert origin["seconds"] >= 5
    assert datetime.fromisoformat(origin["started"]).tzinfo
    assert {"settings", "command", "git_commit", "platform"} <= set(origin)
    assert json.loads(json.dumps(origin))["settings"]["methods"] == ["lape"]


def test_neurons_on_text(load):
    model = load("llama")
    neurons = pd.DataFrame({"language": ["en", "zh"], "layer": [0, 1], "unit": [5, 7]})
    texts = {"en": "the river", "zh": "雨后河水"}
    table = text_view.activations_on_text(model, texts, neurons)
    assert list(table["neuron"].unique()) == ["en: layer 0, unit 5", "zh: layer 1, unit 7"]
    for label, text in texts.items():
        pieces = table[(table["text"] == label)].drop_duplicates("place")["piece"]
        assert "".join(pieces) == text  # characters of several tokens are whole
    ids = [model.tokenizer.bos_token_id, *model.tokenizer("the river", add_special_tokens=False)["input_ids"]]
    _, cache = model.run_with_cache(torch.tensor([ids]))
    expected = torch.nn.functional.silu(cache["blocks.0.mlp.hook_pre"][0, 1:, 5])
    mine = table[(table["text"] == "en") & (table["neuron"] == "en: layer 0, unit 5")]["activation"]
    assert mine.to_list() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
    with pytest.raises(ValueError, match="no neurons"):
        text_view.activations_on_text(model, texts, neurons.head(0))
    with pytest.raises(ValueError, match="context of 64"):
        text_view.activations_on_text(model, {"en": "river " * 200}, neurons)


def test_shares_are_written_as_percent():
    frame = pd.DataFrame({"stable_share": [0.874], "romanised_survival": [0.5], "beyond_null": [None], "share": [0.5]})
    frame["beyond_null"] = frame["beyond_null"].astype(float)
    columns = {**draw_checks.STABILITY.columns, **draw_checks.NULLS.columns, **model_checks.SURVIVAL.columns}
    assert tables.table_cells(frame, columns)[1] == [["87%", "50%", "n/a", "0.500"]]
