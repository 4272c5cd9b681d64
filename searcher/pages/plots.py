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


def _axes() -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "searcher", "font.size": 9})
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")  # never pyplot: it keeps figures alive, and is not
    axes = figure.add_subplot()  # safe in threads
    figure.patch.set_alpha(0.0)
    axes.patch.set_alpha(0.0)
    axes.grid(axis="y", color=Colour.LINE, linewidth=0.8)
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
