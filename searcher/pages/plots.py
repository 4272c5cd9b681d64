"""Numbers -> inline SVG in the colours of the page around it, light or dark. Labels are real text in its font."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from typing import Any, Literal


class Colour(StrEnum):
    """Drawn as this number, and replaced by the page's variable of this name."""

    SERIES_1 = "#0000a1"
    SERIES_2 = "#0000a2"
    SERIES_3 = "#0000a3"
    SERIES_4 = "#0000a4"
    MUTED = "#0000b1"
    LINE = "#0000b2"
    INK = "#0000b3"

    @property
    def variable(self) -> str:
        return f"var(--{self.name.lower().replace('_', '-')})"


@dataclass(frozen=True)
class Curve:
    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: Colour
    kind: Literal["line", "faint", "points"] = "line"
    """`faint` has no entry in the legend: the raw values behind a smoothed line."""


@dataclass(frozen=True)
class Mark:
    """A vertical line that says what begins there."""

    x: float
    label: str


@dataclass(frozen=True)
class Dots:
    """One series of a dot plot: per row a value and what it may be, low and high; None where nothing is known."""

    label: str
    values: Sequence[float | None]
    ranges: Sequence[tuple[float, float] | None]
    colour: Colour


def curves(
    series: Sequence[Curve],
    *,
    describe: str,
    x_label: str = "step",
    y_range: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
) -> str:
    """Lines over x. `describe` is what a screen reader says."""
    figure, axes = _axes()
    for curve in series:
        match curve.kind:
            case "line":
                axes.plot(curve.x, curve.y, color=curve.colour, linewidth=1.8, label=curve.label)
            case "faint":
                axes.plot(curve.x, curve.y, color=curve.colour, linewidth=0.8, alpha=0.3)
            case "points":
                axes.plot(curve.x, curve.y, "o--", color=curve.colour, linewidth=1.1, markersize=4, label=curve.label)
    if y_range is not None:
        low, high = y_range
        margin = 0.04 * (high - low)
        axes.set_ylim(low - margin, high + margin)
    for mark in marks:
        axes.axvline(mark.x, color=Colour.MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate(
            mark.label, (mark.x, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
            color=Colour.MUTED, fontsize=8,
        )  # fmt: skip
    axes.set_xlabel(x_label, color=Colour.MUTED)
    if len({curve.label for curve in series}) > 1:
        axes.legend(frameon=False, labelcolor=Colour.INK, fontsize=8.5, handlelength=1.6)
    return _svg(figure, describe)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    describe: str,
    x_label: str = "",
    y_range: tuple[float, float] | None = None,
    digits: int = 2,
    colour: Colour = Colour.SERIES_1,
) -> str:
    """One bar per label, with its value on top."""
    figure, axes = _axes()
    drawn = axes.bar(range(len(values)), values, color=colour, width=0.62)
    axes.bar_label(drawn, labels=[f"{value:.{digits}f}" for value in values], padding=2, color=Colour.INK, fontsize=9)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.8, max(2, len(labels)) - 0.2)
    low, high = y_range or (0.0, max([*values, 1e-9]))
    axes.set_ylim(low, low + (high - low) * 1.12)
    axes.set_xlabel(x_label, color=Colour.MUTED)
    return _svg(figure, describe)


def dots(
    rows: Sequence[str],
    series: Sequence[Dots],
    *,
    describe: str,
    x_label: str = "",
    x_range: tuple[float, float] = (0.0, 1.0),
) -> str:
    """A row per name, from the top; in it a dot with a whisker per series."""
    step = 0.68 / max(len(series), 1)
    figure, axes = _axes(height_inches=0.7 + 0.17 * len(rows) * (len(series) + 1), grid="x")
    for place, one in enumerate(series):
        drawn = [
            (value, row + (place - (len(series) - 1) / 2) * step, span or (value, value))
            for row, (value, span) in enumerate(zip(one.values, one.ranges, strict=True))
            if value is not None
        ]
        for _, y, (low, high) in drawn:
            axes.plot([low, high], [y, y], color=one.colour, linewidth=1.6, alpha=0.55, solid_capstyle="butt")
        axes.plot(
            [value for value, _, _ in drawn],
            [y for _, y, _ in drawn],
            "o",
            color=one.colour,
            markersize=4.5,
            label=_shortened(one.label),
        )
    for border in range(1, len(rows)):
        axes.axhline(border - 0.5, color=Colour.LINE, linewidth=0.8)
    low, high = x_range
    margin = 0.02 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_shortened(name) for name in rows])
    axes.tick_params(axis="y", labelcolor=Colour.INK)
    axes.set_xlabel(x_label, color=Colour.MUTED)
    if len(series) > 1:
        num_characters = sum(len(_shortened(one.label)) for one in series)
        figure.legend(
            loc="outside upper left",
            ncols=4 if num_characters <= 40 else 2,
            frameon=False,
            labelcolor=Colour.INK,
            fontsize=8.5,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    return _svg(figure, describe)


def _shortened(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _axes(*, height_inches: float = 2.6, grid: Literal["x", "y"] = "y") -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "searcher", "font.size": 9})
    figure = Figure(figsize=(4.6, height_inches), layout="constrained")  # never pyplot: it keeps figures alive, and is
    axes = figure.add_subplot()  # not safe in threads
    figure.patch.set_alpha(0.0)
    axes.patch.set_alpha(0.0)
    axes.grid(axis=grid, color=Colour.LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=Colour.MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(Colour.LINE)
    return figure, axes


def _svg(figure: Any, describe: str) -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # repeated in every plot of a page, and nobody refers to them
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(
        r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{escape(describe)}">', text
    )
    for colour in Colour:
        text = text.replace(colour.value, colour.variable)
    return text
