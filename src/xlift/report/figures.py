"""Figures of the report: one function a figure, each from plain rows to a Vega-Lite specification.

None stands for a figure with too little to show. Shares are 0 to 1. `languages` are the study's by name: a language has
the same colour and shape in every figure. What is neither data nor background has the colour of the text around it, so
that a figure fits a light and a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt

from xlift.disk import write_atomic

# Okabe and Ito's palette, told apart with all common kinds of colour blindness; the text's colour stands for black, and
# violet, which is as far from the others, for a yellow that nobody sees on white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor", "#9933FF"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]
FAMILIES = [
    {"English", "German", "Dutch", "Swedish", "Danish", "Norwegian", "Icelandic"},
    {"French", "Portuguese", "Spanish", "Italian", "Romanian", "Catalan", "Galician"},
    {
        "Russian",
        "Ukrainian",
        "Bulgarian",
        "Serbian",
        "Macedonian",
        "Polish",
        "Czech",
        "Slovak",
        "Croatian",
        "Slovenian",
    },
    {"Chinese", "Japanese", "Korean"},
    {"Hindi", "Bengali", "Marathi", "Urdu", "Punjabi", "Gujarati", "Tamil", "Telugu", "Kannada", "Malayalam"},
    {"Arabic", "Hebrew", "Persian", "Amharic"},
    {"Indonesian", "Malay", "Filipino", "Vietnamese", "Thai", "Khmer", "Lao", "Burmese"},
]
"""Languages that share a colour where there are more than colours: by family, or by script and region."""
MOST_PANELS = 24
"""More panels than this cannot be read."""
APART = 0.08
"""Room that the languages at one point of a curve take side by side, as a share of the axis."""

WIDE_CELLS = 9
"""More columns or rows than this get small cells."""
OUTCOMES = {
    "wholly in the language": "#0072B2",
    "in the language, cut at the token limit": "#56B4E9",
    "two languages mixed": "#E69F00",
    "in another language": "#D55E00",
    "no answer": "#7A3E00",
    "could not be told": "#B8BEC4",
}
"""What can become of an answer, and its colour."""

_ROWS = alt.NamedData(name="rows")
"""Where the rows of a figure are put once it is built."""
Specification = dict[str, Any]


class Figure(NamedTuple):
    """A figure: file name, caption, and what Vega-Lite draws."""

    name: str
    caption: str
    specification: Specification


def heat_map(rows: Sequence[dict[str, Any]]) -> Specification | None:
    """Shares by run (down) and language (across), numbers in the cells; many languages or runs take small cells.

    Rows: run, language, mean, low, high, rated, missing, `mark` (what follows the number, such as ▲).
    """
    if not rows:
        return None
    dense = len({row["language"] for row in rows}) > WIDE_CELLS or len({row["run"] for row in rows}) > WIDE_CELLS
    unit = "" if dense else " %"
    shown = [
        row
        | {"share": f"{row['mean'] * 100:.0f}{unit}{row['mark']}"}
        | {"interval": f"{row['low'] * 100:.0f}–{row['high'] * 100:.0f}"}
        if row["mean"] is not None
        else row | {"share": "–", "interval": "–" if dense else "not rated"}
        for row in rows
    ]
    angle, wide, high = (-45, 46, 21) if dense else (0, 96, 38)
    base = alt.Chart(_ROWS).encode(
        x=alt.X("language:N", sort=None, title=None, axis=alt.Axis(orient="top", labelAngle=angle, domain=False)),
        y=alt.Y("run:N", sort=None, title=None, axis=alt.Axis(domain=False)),
        tooltip=_tooltip("run", "language", "share", "interval", "rated", "missing"),
    )
    colour = alt.Color("mean:Q", scale=alt.Scale(domain=[0, 1], scheme="blues"), legend=None)
    rated = alt.datum.mean != None  # noqa: E711  (a Vega expression)
    ink = alt.condition(f"{rated} && datum.mean > 0.6", alt.value("#ffffff"), alt.value("#111111"))
    cells = base.transform_filter(rated).mark_rect(stroke="#ffffff", strokeWidth=1).encode(color=colour)
    size: dict[str, Any] = {"fontSize": 11.5} if dense else {"dy": -6, "fontSize": 14, "fontWeight": "bold"}
    share = base.transform_filter(rated).mark_text(**size).encode(text="share:N", color=ink)
    interval = base.transform_filter(rated).mark_text(dy=9, fontSize=10.5).encode(text="interval:N", color=ink)
    nothing = base.transform_filter(f"!({rated})").mark_text(color="currentColor").encode(text="interval:N")
    layers = [cells, share, nothing] if dense else [cells, share, interval, nothing]
    return _finished(alt.layer(*layers).properties(width=alt.Step(wide), height=alt.Step(high)), shown)


def outcome_figure(rows: Sequence[dict[str, Any]], languages: Sequence[str]) -> Specification | None:
    """What became of the answers, a stacked bar a run (down) and language (across). Rows: run, language, outcome, place
    (of the outcome), share, count, asked."""
    if not rows:
        return None
    there = [name for name in languages if any(row["language"] == name for row in rows)]
    width = 150 if len(there) <= 5 else max(46, 900 // len(there))
    step = 22 if len({row["run"] for row in rows}) <= WIDE_CELLS else 13
    scale = alt.Scale(domain=list(OUTCOMES), range=list(OUTCOMES.values()))
    axis = alt.Axis(format="%", values=[0, 0.5, 1] if width > 80 else [0, 1], grid=False)
    bars = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=alt.X("share:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=axis),
            y=alt.Y("run:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False)),
            color=alt.Color("outcome:N", scale=scale, title=None, legend=alt.Legend(orient="top", columns=3)),
            order=alt.Order("place:Q"),
            tooltip=_tooltip("run", "language", "outcome", ("share", "share", ".0%"), "count", "asked"),
        )
        .properties(width=width, height=alt.Step(step))
    )
    angle: dict[str, Any] = {"labelAngle": -45, "labelAlign": "left"} if width <= 80 else {}
    header = alt.Header(labelFontSize=11.5, labelColor="currentColor", **angle)
    facet = alt.Facet("language:N", sort=there, title=None, header=header)
    return _finished(bars.facet(column=facet, data=_ROWS, spacing=6), rows)


def curve_figure(
    rows: Sequence[dict[str, Any]], languages: Sequence[str], axis: str, title: str, form: str
) -> Specification | None:
    """Shares along a training choice, a line a language, a panel for each setting of the rest; untuned: dashed.

    Languages stand a little apart, so that equal shares do not hide one another.

    Rows: panel, the column `axis` (null: untuned), language, share_best with `_low` and `_high`, run, rated, missing.
    """
    known = [row for row in rows if row["share_best"] is not None]
    if not known or len({row["panel"] for row in known}) > MOST_PANELS:
        return None
    many = len({row["language"] for row in known}) > len(PALETTE)
    if many:
        # A panel a language, and what were the panels are the lines: so many languages in one panel hide one another.
        known = [row | {"panel": row["language"], "series": row["panel"] or "tuned"} for row in known]
    field, names = ("series", list(dict.fromkeys(row["series"] for row in known))) if many else ("language", languages)
    key = _key(field, names, known)
    base = alt.Chart().encode(
        opacity=alt.condition(key.pick, alt.value(1), alt.value(0.12)),
        tooltip=_tooltip("run", "language", ("share_best", "share", ".0%"), ("share_best_low", "low", ".0%"),
                         ("share_best_high", "high", ".0%"), "rated", "missing"),
    )  # fmt: skip
    values = sorted({row[axis] for row in known if not row["untuned"]})
    known = _apart(known, field, names, axis, values)
    scale = alt.Scale(type="log", nice=False, padding=16)
    x = alt.X("place:Q", scale=scale, title=title, axis=alt.Axis(format=form, values=values))
    share = alt.Y("share_best:Q", title="share of answers", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    tuned, untuned = base.transform_filter("!datum.untuned"), base.transform_filter("datum.untuned")
    line = tuned.mark_line(strokeWidth=2).encode(x=x, y=share, color=key.colour)
    point = tuned.mark_point(filled=True, size=70).encode(x=x, y=share, color=key.colour, shape=key.shape)
    bound = tuned.mark_rule(strokeWidth=1.5, strokeOpacity=0.5).encode(
        x=x, y="share_best_low:Q", y2="share_best_high:Q", color=key.colour
    )
    before = untuned.mark_rule(strokeDash=[4, 4], strokeWidth=1.5).encode(y=share, color=key.colour)
    size = (190, 140, 5) if many else (300, 220, 3)
    return _paneled(alt.layer(bound, before, line, point.add_params(key.pick)), known, *size)


def _apart(
    rows: Sequence[dict[str, Any]], field: str, names: Sequence[str], axis: str, values: Sequence[float]
) -> list[dict[str, Any]]:
    """The rows with a `place` on a logarithmic axis beside their value, by what `field` names; untuned: none."""
    there = [name for name in names if any(row[field] == name for row in rows)]
    step = (values[-1] / values[0]) ** (APART / len(there)) if values else 1.0
    middle = (len(there) - 1) / 2
    return [
        {**row, "place": None if row["untuned"] else row[axis] * step ** (there.index(row[field]) - middle)}
        for row in rows
    ]


class Key(NamedTuple):
    """What tells names apart: colour and shape in one legend, and the choice of a name in it."""

    colour: alt.Color
    shape: alt.Shape
    pick: Any


def _key(field: str, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> Key:
    """The key of those `names` that occur in `rows`; each keeps its place among all names.

    Colour and shape have the same domain, said outright, since only then do they share a legend.
    """
    there = {row[field] for row in rows}
    known = list(dict.fromkeys([*names, *sorted(there)]))
    looks = _grouped(known) if len(known) > len(PALETTE) else [(place, place) for place in range(len(known))]
    domain = [name for name in known if name in there]
    own = [look for name, look in zip(known, looks, strict=True) if name in there]
    colours = alt.Scale(domain=domain, range=[PALETTE[colour % len(PALETTE)] for colour, _ in own])
    shapes = alt.Scale(domain=domain, range=[SHAPES[shape % len(SHAPES)] for _, shape in own])
    encoded = f"{field}:N"
    return Key(
        alt.Color(encoded, scale=colours, title=None),
        alt.Shape(encoded, scale=shapes, title=None),
        alt.selection_point(fields=[field], bind="legend"),
    )


# e.g. _grouped(["French", "Portuguese", "Russian"]) → [(0, 0), (0, 1), (1, 0)]
def _grouped(names: Sequence[str]) -> list[tuple[int, int]]:
    """A colour a family or script, by place, and a shape within it: more languages than colours stay apart."""
    own = [next((place for place, family in enumerate(FAMILIES) if name in family), len(FAMILIES)) for name in names]
    used = list(dict.fromkeys(own))
    return [(used.index(family), own[:place].count(family)) for place, family in enumerate(own)]


def _paneled(layers: Any, rows: Sequence[dict[str, Any]], width: int, height: int, columns: int = 3) -> Specification:
    """The layers once a `panel`, side by side where there are several."""
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    if len(panels) == 1:
        one = layers.properties(width=2 * width - 40, height=height + 40, data=_ROWS)
        return _finished(one.properties(title=panels[0]) if panels[0] else one, rows)
    header = alt.Header(labelFontSize=12, labelColor="currentColor", labelLimit=width)
    facet = alt.Facet("panel:N", sort=panels, title=None, header=header)
    return _finished(layers.properties(width=width, height=height).facet(facet, columns=columns, data=_ROWS), rows)


def transfer_figure(rows: Sequence[dict[str, Any]], languages: Sequence[str]) -> Specification | None:
    """English (across) against the other languages (up), a point a setting and language; hollow: untuned.

    Rows: run, language, first_mean, second_mean, difference, low, high (of the difference), untuned, pairs.
    """
    if not rows:
        return None
    key = _key("language", languages, rows)
    axis, whole = alt.Axis(format="%", tickCount=5), alt.Scale(domain=[0, 1])
    corners = alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}])
    diagonal = alt.Chart(corners).mark_line(color="currentColor", strokeDash=[4, 4], opacity=0.5)
    shown = [
        row | {f"y_{end}": min(1, max(0, row["first_mean"] + row[end])) for end in ("low", "high")}
        if row["low"] is not None
        else row
        for row in rows
    ]
    base = alt.Chart(_ROWS).encode(
        x=alt.X("first_mean:Q", title="share of answers in English", scale=whole, axis=axis),
        opacity=alt.condition(key.pick, alt.value(1), alt.value(0.1)),
        tooltip=_tooltip("run", "language", ("first_mean", "English", ".0%"), ("second_mean", "share", ".0%"),
                         ("difference", "difference", "+.0%"), ("low", "from", "+.0%"), ("high", "to", "+.0%"),
                         "pairs"),
    )  # fmt: skip
    y = alt.Y("second_mean:Q", title="in the other language", scale=whole, axis=axis)
    bound = base.mark_rule(strokeOpacity=0.35).encode(y="y_low:Q", y2="y_high:Q", color=key.colour)
    hollow = base.transform_filter("datum.untuned").mark_point(size=90, strokeWidth=2)
    point = base.transform_filter("!datum.untuned").mark_point(size=90, filled=True)
    layers = [one.encode(y=y, color=key.colour, shape=key.shape) for one in (hollow, point.add_params(key.pick))]
    return _finished(
        alt.layer(diagonal.encode(x="x:Q", y="y:Q"), bound, *layers).properties(width=420, height=380), shown
    )


def effects_figure(rows: Sequence[dict[str, Any]], languages: Sequence[str]) -> Specification | None:
    """Effects of training choices with intervals: a row a choice and level, coloured by language.

    Rows: choice, level, language, effect, low, high.
    """
    known = [row | {"at": f"{row['choice']}: {row['level']}"} for row in rows if row["effect"] is not None]
    if not known:
        return None
    key = _key("language", languages, known)
    title = "effect on the share of answers, difference from the mean over the levels"
    order = [name for name in languages if any(row["language"] == name for row in known)]
    base = alt.Chart().encode(
        y=alt.Y("at:N", sort=None, title=None, axis=alt.Axis(grid=True, tickBand="extent")),
        yOffset=alt.YOffset("language:N", scale=alt.Scale(domain=order)),
        opacity=alt.condition(key.pick, alt.value(1), alt.value(0.12)),
        tooltip=_tooltip("choice", "level", "language", ("effect", "effect", "+.0%"), ("low", "from", "+.0%"),
                         ("high", "to", "+.0%")),
    )  # fmt: skip
    x = alt.X("effect:Q", title=title, axis=alt.Axis(format="+.0%"))
    point = base.mark_point(filled=True, size=55).encode(x=x, color=key.colour, shape=key.shape)
    bound = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", color=key.colour)
    # Of one row: of all rows it would be drawn as often.
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(color="currentColor", opacity=0.6).encode(x=alt.XDatum(0))
    height = alt.Step(max(26, 11 * len(order)), **{"for": "position"})
    layers = alt.layer(zero, bound, point.add_params(key.pick))
    return _finished(layers.properties(width=480, height=height, data=_ROWS), known)


def training_figure(rows: Sequence[dict[str, Any]], value: str, title: str) -> Specification | None:
    """One value of the training record over steps, a line a run. Rows: run, step, learning_rate and `value`."""
    fields = ("run", "step", "learning_rate", value)
    known = [{field: row[field] for field in fields} for row in rows if row[value] is not None]
    if not known:
        return None
    base = alt.Chart(_ROWS).encode(
        x=alt.X("step:Q", title="training step", axis=alt.Axis(tickMinStep=1, format="d")),
        y=alt.Y(f"{value}:Q", title=title, scale=alt.Scale(zero=False)),
        tooltip=_tooltip("run", "step", (value, title, ".3f")),
    )
    if len({row["run"] for row in known}) > len(PALETTE):
        # More runs than colours: coloured by what is varied most often, named by the tooltip.
        scale = alt.Scale(type="log", scheme="viridis")
        rates = sorted({row["learning_rate"] for row in known})
        legend = alt.Legend(format="~e", values=rates)
        rate = alt.Color("learning_rate:Q", scale=scale, title="learning rate", legend=legend)
        line = base.mark_line(strokeWidth=1.5, opacity=0.8, point=alt.OverlayMarkDef(size=20))
        return _finished(line.encode(color=rate, detail="run:N").properties(width=560, height=240), known)
    pick = alt.selection_point(fields=["run"], bind="legend")
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=30)).encode(
        color=alt.Color("run:N", sort=None, scale=alt.Scale(range=PALETTE), title=None),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.1)),
    )
    return _finished(line.properties(width=560, height=240).add_params(pick), known)


def watched_figure(rows: Sequence[dict[str, Any]], languages: Sequence[str], title: str) -> Specification | None:
    """What was watched on validation prompts during training: a panel a run, a line a language.

    Rows: panel (run), step, language, value (0 to 1).
    """
    if not rows or len({row["panel"] for row in rows}) > MOST_PANELS:
        return None
    key = _key("language", languages, rows)
    base = alt.Chart().encode(
        x=alt.X("step:Q", title="training step", axis=alt.Axis(tickMinStep=1, format="d")),
        y=alt.Y("value:Q", title=title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        opacity=alt.condition(key.pick, alt.value(1), alt.value(0.12)),
        tooltip=_tooltip(("panel", "run", ""), "step", "language", ("value", "share", ".0%")),
    )
    line = base.mark_line(strokeWidth=2).encode(color=key.colour)
    point = base.mark_point(filled=True).encode(color=key.colour, shape=key.shape)
    return _paneled(alt.layer(line, point.add_params(key.pick)), rows, 250, 170)


def calibration_figure(rows: Sequence[dict[str, Any]], who: Sequence[str]) -> Specification | None:
    """What judge, people, and both say of each run: mean values from 0 to 2 with intervals, a panel a facet and judge.

    Rows: panel, run, who, mean, low, high.
    """
    if not rows or len({row["panel"] for row in rows}) > MOST_PANELS:
        return None
    key = _key("who", who, rows)
    base = alt.Chart().encode(
        y=alt.Y("run:N", sort=None, title=None),
        yOffset=alt.YOffset("who:N", scale=alt.Scale(domain=list(who))),
        opacity=alt.condition(key.pick, alt.value(1), alt.value(0.12)),
        tooltip=_tooltip("run", "who", ("mean", "mean", ".2f"), ("low", "from", ".2f"), ("high", "to", ".2f")),
    )
    x = alt.X("mean:Q", scale=alt.Scale(domain=[0, 2]), title="mean value, 0 to 2", axis=alt.Axis(tickCount=4))
    point = base.mark_point(filled=True, size=60).encode(x=x, color=key.colour, shape=key.shape)
    bound = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", color=key.colour)
    return _paneled(alt.layer(bound, point.add_params(key.pick)), rows, 260, 40 * len({row["run"] for row in rows}))


def _tooltip(*fields: str | tuple[str, str, str]) -> list[alt.Tooltip]:
    """Fields by name, or as (name, title, number format)."""
    found = []
    for one in fields:
        name, title, form = (one, one, "") if isinstance(one, str) else one
        found.append(alt.Tooltip(name, type="quantitative", title=title, format=form) if form
                     else alt.Tooltip(name, type="nominal", title=title))  # fmt: skip
    return found


def _finished(chart: Any, rows: Sequence[dict[str, Any]]) -> Specification:
    ink = {"labelColor": "currentColor", "titleColor": "currentColor"}
    lines = {
        "gridColor": "currentColor",
        "gridOpacity": 0.14,
        "domainColor": "currentColor",
        "tickColor": "currentColor",
    }
    finished = (
        chart.configure(background="transparent", font="Arial, Liberation Sans, Helvetica, sans-serif")
        .configure_axis(
            labelFontSize=11.5, titleFontSize=11.5, titleFontWeight="normal", labelLimit=320, **ink, **lines
        )
        .configure_legend(labelFontSize=12, labelLimit=320, symbolSize=90, **ink)
        .configure_title(color="currentColor", fontSize=12)
        .configure_view(stroke=None)
    )
    # What altair has built is valid; checking it against its schema takes longer than drawing it, and so does copying
    # the rows through each of its layers.
    return finished.to_dict(validate=False) | {"datasets": {_ROWS.name: list(rows)}}


def figure_records(specification: Specification) -> list[dict[str, Any]]:
    """The rows that a figure is drawn from, as they are."""
    return list(specification["datasets"][_ROWS.name])


def save_figure(specification: Specification, folder: Path, name: str) -> str:
    """Write a figure as SVG and PNG on white paper; returns the SVG without the paper, for a page of any colour."""
    import vl_convert

    svg = svg_of(specification)
    start = svg.index(">") + 1
    on_paper = f'{svg[:start]}<rect width="100%" height="100%" fill="white"/>{svg[start:]}'
    write_atomic(folder / f"{name}.svg", on_paper)
    write_atomic(folder / f"{name}.png", vl_convert.svg_to_png(on_paper, scale=2))
    return svg


def svg_of(specification: Specification) -> str:
    """A figure as SVG, without paper."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(specification))


def script_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script that needs no network, apart from all other names of the page."""
    import vl_convert

    # Its annotations ask for an argument that it does not need.
    bundle: Any = vl_convert.javascript_bundle
    return f"(()=>{{{bundle()}}})();"
