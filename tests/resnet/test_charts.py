"""The SVG charts of the pages, and what a browser makes of a page of them."""

import json
import math
import os
import random
import re
import shutil
import subprocess
from html import escape
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet.tools.report.charts import Mark, Series, charts, line_chart, moving_mean, thinned, ticks
from resnet.tools.report.html import bar, facts, mapping, page, section, table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def drawing(figure: str) -> ElementTree.Element:
    """The SVG of a figure."""
    return ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])


def paths(figure: str, kind: str) -> list[str]:
    return [path.attrib["d"] for path in drawing(figure).iter("path") if path.attrib["class"] == kind]


def data(figure: str) -> dict:
    found = re.search(r'<script type="application/json">(.*?)</script>', figure)
    assert found
    return json.loads(found[1])


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([\d.]+)", path)]


def test_a_chart_is_drawn_to_scale():
    figure = line_chart("Loss", [Series("a", [(0, 0.0), (5, 10.0), (10, 5.0)])], y_range=(0, 10))
    (left, bottom), (middle, top), (right, half) = places(paths(figure, "line")[0])
    assert middle == pytest.approx((left + right) / 2)
    assert half == pytest.approx((bottom + top) / 2)
    assert left < right
    assert top < bottom


def test_a_drop_is_a_step():
    (path,) = paths(line_chart("lr", [Series("", [(0, 0.1), (30, 0.01), (90, 0.01)], "step")]), "line")
    assert "L" not in path
    assert re.fullmatch(r"M\S+ \S+?h0H\S+?V\S+?H\S+?V\S+", path)


def test_what_is_not_a_number_leaves_a_gap():
    points = [(0, 1.0), (1, None), (2, 2.0), (3, math.nan), (4, 3.0), (5, math.inf), (6, 3.0), (7, 3.5)]
    figure = line_chart("Loss", [Series("a", points)])
    assert paths(figure, "line")[0].count("M") == 4
    assert "nan" not in figure.lower().replace("finance", "")
    json.loads(json.dumps(data(figure)), parse_constant=pytest.fail)
    assert line_chart("Loss", [Series("a", [(0, None), (1, math.nan)])]) == ""
    assert charts("", "") == ""


def test_a_logarithmic_axis_leaves_out_what_is_not_above_zero():
    figure = line_chart("norm", [Series("a", [(0, 1.0), (1, 0.0), (2, 100.0), (3, 10.0)])], log=True)
    (_, one), (_, hundred), (_, ten) = places(paths(figure, "line")[0])
    assert ten == pytest.approx((one + hundred) / 2, abs=0.2)


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=3000), st.integers(20, 700))
def test_thinning_keeps_the_ends_and_the_extremes(values, most):
    points = list(enumerate(values))
    kept = thinned(points, most)
    assert len(kept) <= max(most, 20) + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept, key=lambda point: point[0])
    if known := [value for value in values if value is not None]:
        of_kept = [value for _, value in kept if value is not None]
        assert (min(of_kept), max(of_kept)) == (min(known), max(known))


def test_a_long_series_keeps_its_spike_and_little_else():
    points = [(step / 100, 1.0 + (7.0 if step == 54_321 else 0.0)) for step in range(100_000)]
    figure = line_chart("Loss", [Series("training", points, "smoothed")])
    assert len(figure) < 60_000
    found = data(figure)["lines"][0]["points"]
    assert [543.21, 8.0] in found
    assert len(paths(figure, "faint")) == len(paths(figure, "line")) == 1


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 10), st.booleans())
def test_ticks_are_round_few_and_within(low, width, about, whole):
    high = low + width
    if not low < high or width < 1e-9 * abs(low):
        return
    found = ticks(low, high, about, whole)
    assert len(found) <= about + 1
    assert all(low - 1e-6 * width <= value <= high + 1e-6 * width for value, _ in found)
    if whole and width >= 2:
        assert all(value == round(value) for value, _ in found)
    if width > 1e-3 * abs(low):
        assert len({label for _, label in found}) == len(found)


def test_epochs_are_whole():
    assert [label for _, label in ticks(0, 3, 7, whole=True)] == ["0", "1", "2", "3"]
    assert [label for _, label in ticks(0, 90, 7, whole=True)] == ["0", "20", "40", "60", "80"]
    assert [label for _, label in ticks(0, 0.2, 5, whole=True)] == ["0", "0.05", "0.10", "0.15", "0.20"]
    assert ticks(0, 50_000, 5)[1][1] == "10k"


def test_a_moving_mean_is_over_what_is_known():
    assert moving_mean([1.0, None, 3.0]) == [2.0, None, 2.0]
    assert moving_mean([5.0] * 200) == [5.0] * 200


def test_marks_and_names_are_told_and_escaped():
    marks = [Mark(1, "drop 1 of 2"), Mark(2, "attempt 2", "restart"), Mark(3, "step-3", "save"), Mark(99, "beyond")]
    name = "</script><b>&"
    figure = line_chart("<i>", [Series(name, [(0, 1.0), (4, 2.0)])], marks=marks, unit="%")
    assert [len(paths(figure, f"mark {kind}")) for kind in ("turn", "restart", "save")] == [1, 1, 1]
    assert data(figure)["marks"] == [[1, "drop 1 of 2"], [2, "attempt 2"], [3, "step-3"]]
    assert data(figure)["lines"][0]["name"] == name
    assert "<b>" not in figure
    assert "<i>" not in figure.replace('<i style="', "")
    assert "2 at epoch 4" in drawing(figure).attrib["aria-label"]


WRAPPER = """<!doctype html><iframe style="border:0" width="390" height="800" srcdoc="{page}"></iframe><script>
addEventListener('load', () => {{
  const frame = document.querySelector('iframe').contentWindow, root = frame.document.documentElement;
  const found = {{errors: frame.errors, width: root.scrollWidth, tip: '', dots: 0}};
  const svg = root.querySelector('.chart svg');
  if (svg) {{
    const place = svg.getBoundingClientRect(), at = {{clientX: place.left + place.width / 2, clientY: place.top + 20}};
    svg.dispatchEvent(new frame.PointerEvent('pointerdown', {{...at, pointerType: 'touch', bubbles: true}}));
    found.tip = root.querySelector('.tip').textContent;
    found.dots = svg.querySelectorAll('.at circle').length;
  }}
  const texts = [...root.querySelectorAll('td, th, p')].filter(node => node.textContent.trim().length > 9);
  found.narrow = texts.filter(node => node.offsetWidth && node.offsetWidth < 30 && !node.closest('.heat')).length;
  document.body.textContent = 'found:' + JSON.stringify(found) + ':end';
}});
</script>"""
LISTEN = "<script>errors = []; onerror = (...told) => { errors.push(told.join(' ')); };"
LISTEN += " addEventListener('securitypolicyviolation', told => errors.push(told.violatedDirective));</script>"


def in_browser(text: str, folder) -> dict:
    """What Chromium finds of a page 390 pixels wide: errors, its width, and what a touch of the first chart shows."""
    if CHROMIUM is None:
        assert not os.environ.get("REQUIRE_CHROMIUM"), "no Chromium here"
        pytest.skip("NO PAGE OPENED: there is no Chromium here")
    (folder / "wrapper.html").write_text(WRAPPER.format(page=escape(text.replace("<style>", LISTEN + "<style>", 1))))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'chromium'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", (folder / "wrapper.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search("found:(.*):end", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_a_page_in_a_browser_on_a_phone(tmp_path):
    rng = random.Random(0)
    loss = [(step / 100, 2 + rng.random()) for step in range(1, 1001)]
    content = charts(
        line_chart("Loss", [Series("training", loss, "smoothed"), Series("val", [(e, 2.0) for e in range(1, 11)])]),
        line_chart("lr", [Series("", [(0, 0.1), (3, 0.01), (10, 0.01)], "step")], marks=[Mark(3, "drop")]),
    )
    content += table(["name", "a long heading", "number"], [["x" * 90, "word " * 40, "1,234 of 5,678"]] * 3, (2,))
    content += mapping({"command": "y" * 400}) + table(["class", ""], [["z", bar(100)]], style="bars")
    text = page("A run", [facts([("93%", "best " * 20, "good")] * 5), section("All", content)])
    found = in_browser(text, tmp_path)
    assert found["errors"] == []
    assert found["width"] <= 390
    assert found["narrow"] == 0
    assert re.fullmatch(r"epoch 4\.\d+training 2\.\d+, mean 2\.\d+val 2 \(at 4\)", found["tip"])
    assert found["dots"] == 2


def test_the_browser_tells_of_a_fault(tmp_path):
    broken = page(
        "x", ['<img src="https://example.org/x.png"><p style="width:500px">wide</p>'], script="nothing.there;"
    )
    found = in_browser(broken, tmp_path)
    assert found["width"] > 390
    assert any("nothing" in error for error in found["errors"])
    assert "img-src" in found["errors"]
