"""Reports for people: one self-contained HTML file each, no scripts, no network, light and dark, readable on a phone.

Whoever has a report to show brings a template that extends `page.html.j2`; everything it prints is escaped.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from searcher.qa.markup import mark_up

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(folder: Path) -> "Environment":
    """Jinja2 for the templates of `folder` and of this package, with the filters that reports share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(transcript=lambda response: Markup(mark_up(response)), figure=figure, duration=duration)
    return env


def figure(value: float | None, digits: int = 2) -> str:
    """0.876 -> 0.88; an en dash where nothing is known."""
    return "–" if value is None else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """0.0346 -> 0.035, 0.0001 -> < 0.001"""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def hops_title(count: str) -> str:
    """1 -> 1 hop, 2 -> 2 hops"""
    return f"{count} hop" if count == "1" else f"{count} hops"


def duration(seconds: float) -> str:
    """75.2 -> 1 min 15 s"""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
