"""Charts as XML: lengths in proportion, text escaped."""

import xml.etree.ElementTree as ET

import pytest

from loffta.reporting.plots import WIDTH, Bar, bar_chart, grouped_chart, heat_map, percent_ticks, weight_map

HOSTILE = "<script>alert('1')</script>&\"\x00"


def marks(svg, name):
    return [element for element in ET.fromstring(svg).iter() if element.get("class") == name]


def texts(svg):
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("text")]


@pytest.mark.parametrize(
    "chart",
    [
        lambda bars: bar_chart(bars, title="t", high=1.0, ticks=percent_ticks(0, 1)),
        lambda bars: grouped_chart([("g", bars)], title="t"),
    ],
)
def test_bar_lengths_are_proportional_to_values(chart):
    values = [0.9, 0.45, 0.3, 0.0]
    widths = [float(bar.get("width")) for bar in marks(chart([Bar("x", v, str(v)) for v in values]), "bar")]
    assert [width / widths[0] for width in widths] == pytest.approx([v / 0.9 for v in values], abs=1e-3)


def test_whisker_ends_and_dots_stand_on_the_bars_scale():
    svg = bar_chart([Bar("x", 0.5, "50", dots=(0.25, 0.75), whisker=(0.2, 0.8))], title="t", high=1.0)
    (bar,), seeds, (whisker,) = marks(svg, "bar"), marks(svg, "seed"), marks(svg, "whisker")
    start, half = float(bar.get("x")), float(bar.get("width"))
    assert [float(seed.get("cx")) for seed in seeds] == pytest.approx(
        [start + half * 0.5, start + half * 1.5], abs=0.02
    )
    left, right = whisker.get("d").split("M")[1].split()[0], whisker.get("d").split("H")[1].split("M")[0]
    assert [float(left), float(right)] == pytest.approx([start + half * 0.4, start + half * 1.6], abs=0.02)


def test_without_a_zero_there_are_points_and_no_bars():
    svg = bar_chart([Bar("x", 0.95, "95")], title="t", low=0.9, high=1.0)
    assert not marks(svg, "bar")
    (mean,) = marks(svg, "mean")
    full = marks(bar_chart([Bar("x", 1.0, "100")], title="t", high=1.0), "bar")[0]
    middle = float(full.get("x")) + float(full.get("width")) / 2
    assert float(mean.get("d")[1:].split()[0]) == pytest.approx(middle, abs=0.02)


def lines_of(text):
    """A text element's lines."""
    return [text.text, *(span.text for span in text)]


def test_nothing_lies_outside_the_view():
    svg = bar_chart([Bar("a" * 500, 2.0, "2.00", dots=(2.0, 9.0), whisker=(-3.0, 9.0))], title="t", high=2.0)
    assert all(0 <= float(seed.get("cx")) <= WIDTH for seed in marks(svg, "seed"))


LONG = "a-run-with-a-name-of-" + "0123456789" * 9


@pytest.mark.parametrize(
    ("chart", "widest"),
    [
        (lambda: bar_chart([Bar(LONG, 0.5, "50", detail=LONG), Bar("b", 0.5, "50")], title="t", high=1.0), 52),
        (lambda: grouped_chart([(LONG, [Bar(LONG, 0.5, "50"), Bar("b", 0.5, "50")])], title="t"), 44),
        (lambda: heat_map([[3, 1], [1, 3]], [LONG, "b"], title="t"), 40),
        (
            lambda: weight_map(
                [[0.5, 0.5], [0.1, 0.2]], [LONG, "b"], [("mean", LONG), ("mean", "b")], title="t", high=1.0
            ),
            40,
        ),
    ],
)
def test_long_names_take_more_lines_and_are_not_cut(chart, widest):
    svg = chart()
    root = ET.fromstring(svg)
    shown = [lines_of(text) for text in root.iter("text")]
    whole = [lines for lines in shown if "".join(lines) == LONG]
    assert len(whole) == 2, "both places where the name stands"
    assert max(len(line) for lines in whole for line in lines) <= widest
    assert "\u2026" not in svg
    bars = [float(bar.get("y")) for bar in marks(svg, "bar")]
    assert bars == sorted(bars)
    assert len(bars) in (0, 2)
    if bars:
        height, beside = float(root.get("viewBox").split()[3]), 2  # what is printed at the bars' ends
        assert height > 15 * (sum(map(len, shown)) - beside), "every line has its place"
    cells = marks(svg, "cell")
    assert not cells or float(cells[0].get("width")) >= 13 * 3, "three lines fit beside a cell"


def test_hostile_text_is_text():
    svg = bar_chart([Bar(HOSTILE, 1.0, HOSTILE, detail=HOSTILE)], title=HOSTILE)
    svg += grouped_chart([(HOSTILE, [Bar(HOSTILE, 1.0, HOSTILE)])], title=HOSTILE)
    assert "<script" not in svg
    root = ET.fromstring(f"<both>{svg}</both>")
    assert {e.tag for e in root.iter()} <= {"both", "svg", "title", "text", "tspan", "rect", "path", "defs", "pattern"}
    clean = HOSTILE.replace("\x00", "\ufffd")
    assert root[0].get("aria-label") == root[0][0].text == clean
    assert clean in ["".join(e.itertext()) for e in root.iter("text")]


def test_a_control_is_hatched_and_others_are_not():
    svg = grouped_chart([("g", [Bar("x", 1.0, "1"), Bar("y", 1.0, "1", control=True)])], title="Per layer")
    pattern = next(ET.fromstring(svg).iter("pattern")).get("id")
    assert [f"url(#{pattern})" in bar.get("style") for bar in marks(svg, "bar")] == [False, True]


def test_all_zero_values_draw_empty_bars():
    assert float(marks(bar_chart([Bar("x", 0.0, "0")], title="t"), "bar")[0].get("width")) == 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.76, 1.0), (0.9, 0.94), (0.62, 0.98)])
def test_ticks_are_round_and_inside(low, high):
    ticks = percent_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 and text == f"{round(100 * value)} %" for value, text in ticks)


@pytest.mark.parametrize("n", [2, 24])
def test_weight_map_shades_by_the_highest_weight_of_all(n):
    columns = [("class token" if j < n // 2 else "mean", f"b.{j}{HOSTILE}") for j in range(n)]
    weights = [[0.5 * (j + 1) / n for j in range(n)], [None, *[0.0] * (n - 1)]]
    svg = weight_map(weights, [HOSTILE, "two"], columns, title=HOSTILE, high=1.0)
    assert "<script" not in svg
    cells = marks(svg, "cell")
    assert len(cells) == 2 * n - 1, "None is no cell"
    shades = [float(cell.get("style").split("fill-opacity:")[1]) for cell in cells]
    assert shades[:n] == pytest.approx([0.12 + 0.88 * 0.5 * (j + 1) / n for j in range(n)], abs=1e-3)
    assert set(shades[n:]) == {0.12}
    places = [(float(cell.get("x")), float(cell.get("y"))) for cell in cells]
    assert places[:n] == sorted(places[:n])
    assert [x for x, _ in places[n:]] == [x for x, _ in places[1:n]]
    assert len({y for _, y in places}) == 2
    root = ET.fromstring(svg)
    width, height = (float(side) for side in root.get("viewBox").split()[2:])
    side = float(cells[0].get("width"))
    assert side >= 14
    assert max(x for x, _ in places) + side <= width
    assert max(y for _, y in places) + float(cells[0].get("height")) <= height
    (divide,) = marks(svg, "divide")
    assert divide.get("d").startswith(f"M{places[n // 2][0]:.2f} "), "between the two groups"
    assert ("25" in texts(svg)) == (side >= 24)
    assert {"class token", "mean"} <= set(texts(svg))
    hovers = ["".join(e.itertext()) for e in root.iter("title")]
    assert sum(hover.endswith(f"mean of {columns[-1][1]}: 50.0 %".replace("\x00", "\ufffd")) for hover in hovers) == 1


def test_weights_of_zero_draw():
    assert len(marks(weight_map([[0.0]], ["r"], [("mean", "x")], title="t", high=0.0), "cell")) == 1


@pytest.mark.parametrize("n", [2, 12, 50])
def test_heat_map_cells_are_shaded_by_their_share_of_the_row(n):
    counts = [[3 if i == j else int(j == (i + 1) % n) for j in range(n)] for i in range(n)]
    counts[0] = [0] * n  # no image of this class
    svg = heat_map(counts, [f"{HOSTILE}{i}" for i in range(n)], title=HOSTILE)
    cells = marks(svg, "cell")
    assert len(cells) == 2 * (n - 1)
    shade = {cell.get("style").split("fill-opacity:")[1] for cell in cells}
    assert shade == {f"{0.12 + 0.88 * share:.3f}" for share in (0.75, 0.25)}
    side = float(cells[0].get("width"))
    assert side >= 14
    right = max(float(cell.get("x")) for cell in cells) + side
    assert right <= float(ET.fromstring(svg).get("viewBox").split()[2])
    assert ("75" in texts(svg)) == (side >= 24)
    start = min(float(cell.get("x")) for cell in cells)  # the last class is taken for the first
    for cell in cells:  # a square grid, the truth from top to bottom
        row, column = (round((float(cell.get(at)) - start) / side) for at in ("y", "x"))
        mistake = "--wrong" in cell.get("style")
        assert column == ((row + 1) % n if mistake else row)
    hovers = ["".join(e.itertext()) for e in ET.fromstring(svg).iter("title")]
    assert sum(hover.endswith(": 3 (75.0 %)") for hover in hovers) == n - 1
