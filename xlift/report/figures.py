"""Figures of the report: one function a figure, each from plain rows to an Altair chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt

from xlift.records import write_atomic

# Okabe and Ito's palette, told apart with all common kinds of colour blindness.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]


def learning_rate_figure(rows: list[dict[str, Any]]) -> alt.LayerChart | None:
    """Share of responses in the user's language over learning rate, a line a language; None with one rate only.

    Rows: learning_rate (> 0), language (name), mean, low, high (shares, 0 to 1). Untuned runs are not shown.
    """
    if len({row["learning_rate"] for row in rows}) < 2:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("learning_rate:Q", scale=alt.Scale(type="log"), title="learning rate", axis=alt.Axis(format="~e")),
        color=alt.Color("language:N", scale=alt.Scale(range=PALETTE), sort=None, title=None),
    )
    share = alt.Y("mean:Q", title="share of answers", scale=alt.Scale(domain=[0, 1]))
    share = share.axis(format="%")
    shape = alt.Shape("language:N", sort=None, legend=None)
    line = base.mark_line(strokeWidth=2).encode(y=share)
    point = base.mark_point(filled=True, size=80, opacity=1).encode(y=share, shape=shape)
    band = base.mark_rule(opacity=0.4, strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")
    return alt.layer(band, line, point).properties(width=560, height=280).configure(background="transparent")


def loss_figure(rows: list[dict[str, Any]]) -> alt.Chart | None:
    """Loss on held-out English replies over training steps, a line a run. Rows: run, step, heldout_loss."""
    if not rows:
        return None
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True, strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="training step"),
            y=alt.Y("heldout_loss:Q", title="loss on held-out replies", scale=alt.Scale(zero=False)),
            color=alt.Color("run:N", scale=alt.Scale(range=PALETTE), sort=None, title=None),
        )
        .properties(width=560, height=240)
        .configure(background="transparent")
    )


def save_figure(chart: alt.Chart | alt.LayerChart, folder: Path, name: str) -> str:
    """Write a figure as SVG and PNG; returns the SVG."""
    import vl_convert

    specification = chart.to_json()
    svg = str(vl_convert.vegalite_to_svg(specification))
    write_atomic(folder / f"{name}.svg", svg)
    write_atomic(folder / f"{name}.png", vl_convert.vegalite_to_png(specification, scale=2))
    return svg
