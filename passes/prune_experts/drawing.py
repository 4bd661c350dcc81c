"""Loads for people: a table, bars of text, and bars as an SVG picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphopt.passes.prune_experts.loads import Load

WIDTH = 40
"""Characters of the longest bar."""
EIGHTHS = " ▏▎▍▌▋▊▉"
ROW, LEFT, BAR, RIGHT = 18, 60, 480, 130
"""Pixels of the picture: height of a row, and widths of names, bars and numbers."""


def table(found: Sequence[Load]) -> RenderableType:
    """For each mixture a line about all of it and a row an expert."""
    return Group(*(part for load in found for part in (_title(load), _rows(load))))


def summary(load: Load) -> str:
    """What is to be said of all experts of a mixture together."""
    dead = f"dead: {', '.join(map(str, load.dead))}" if load.dead else "none dead"
    return (
        f"{load.name}: {load.total:,} tokens to {load.k} of {load.experts} experts, entropy {load.entropy:.3f} of 1, "
        f"coefficient of variation {load.variation:.2f}, {dead}"
    )


def bars(load: Load, width: int = WIDTH) -> str:
    """A line an expert, with a bar as long as its share; `width` characters for the largest."""
    digits = len(str(load.experts - 1))
    return "\n".join(
        f"{expert:>{digits}} {_bar(share / _largest(load), width)} {100 * share:.1f} %"
        for expert, share in enumerate(load.share)
    )


def svg(found: Sequence[Load]) -> str:
    """The bars of all mixtures as one SVG document; a line marks the share that each expert has if all have the
    same."""
    height = sum(ROW * (load.experts + 3) for load in found)
    width = LEFT + BAR + RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    top = 0
    for load in found:
        parts += _picture(load, top)
        top += ROW * (load.experts + 3)
    return "\n".join([*parts, "</svg>\n"])


def _title(load: Load) -> Text:
    return Text(summary(load))


def _rows(load: Load) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("expert", "tokens", "share", "mean gate"):
        made.add_column(name, justify="right")
    made.add_column("")
    gate, largest = load.mean_gate, _largest(load)
    for expert, share in enumerate(load.share):
        weight = "-" if gate is None or not share else f"{gate[expert]:.3f}"
        bar = Text(_bar(share / largest, WIDTH))
        made.add_row(str(expert), f"{load.tokens[expert]:,}", f"{100 * share:.1f} %", weight, bar)
    return made


def _largest(load: Load) -> float:
    return float(load.share.max()) or 1.0


def _bar(part: float, width: int) -> str:
    eighths = round(8 * width * part)
    whole = "█" * (eighths // 8)
    return (whole + (EIGHTHS[eighths % 8] if eighths % 8 else "")).ljust(width)


def _picture(load: Load, top: int) -> Iterator[str]:
    yield f'<text x="8" y="{top + ROW}" font-weight="bold">{escape(summary(load))}</text>'
    gate, largest = load.mean_gate, _largest(load)
    for expert, share in enumerate(load.share):
        y = top + ROW * (expert + 1) + 6
        said = f"{100 * share:.1f} %" + ("" if gate is None or not share else f", gate {gate[expert]:.3f}")
        length = BAR * float(share) / largest
        yield f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{expert}</text>'
        yield f'<rect x="{LEFT}" y="{y + 2}" width="{length:.1f}" height="{ROW - 5}" fill="#4477aa"/>'
        yield f'<text x="{LEFT + length + 6:.1f}" y="{y + 12}">{said}</text>'
    even = LEFT + BAR / load.experts / largest
    first, last = top + ROW + 6, top + ROW * (load.experts + 1) + 6
    yield f'<line x1="{even:.1f}" y1="{first}" x2="{even:.1f}" y2="{last}" stroke="#ee6677" stroke-dasharray="4 3"/>'
