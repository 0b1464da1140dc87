"""A picture of lines on logarithmic axes, each point with its range, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final
from xml.sax.saxutils import escape

_WIDTH: Final = 460
_HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 40, 44
_COLOURS: Final = ("#1b6ca8", "#d1495b", "#2e8b57", "#b8860b", "#6a4c93", "#444444")


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title, x, y: what stands there and along the axes.
        lines: name -> points: x and its runs; all above 0.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, Sequence[float]]]]


def draw(panels: Sequence[Panel], caption: str) -> str:
    """The panels, two in a row, as the text of an SVG file."""
    rows = -(-len(panels) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" height="{rows * _HEIGHT + 24}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="{rows * _HEIGHT + 14}" fill="#555">{escape(caption)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number % 2 * _WIDTH},{number // 2 * _HEIGHT})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line]
    low_x, high_x = _decades([x for x, _ in points])
    low_y, high_y = _decades([run for _, runs in points for run in runs])

    def across(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log10(value) - low_x) / (high_x - low_x), 1)

    def up(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (math.log10(value) - low_y) / (high_y - low_y), 1)

    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    out = [
        f'<text x="{left}" y="16" font-weight="bold">{escape(panel.title)}</text>',
        f'<text x="{right}" y="{_HEIGHT - 12}" text-anchor="end">{escape(panel.x)}</text>',
        f'<text x="{left}" y="{_TOP - 8}" fill="#555">{escape(panel.y)}</text>',
    ]
    for power in range(low_x, high_x + 1):
        x = across(10.0**power)
        out.append(f'<path d="M{x},{top}V{bottom}" stroke="#ddd"/>')
        out.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{_short(power)}</text>')
    for power in range(low_y, high_y + 1):
        y = up(10.0**power)
        out.append(f'<path d="M{left},{y}H{right}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{_short(power)}</text>')
    for number, line in enumerate(panel.lines.values()):
        colour = _colour(number)
        path = " ".join(f"{across(x)},{up(median(runs))}" for x, runs in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for x, runs in line:
            spread = f"M{across(x)},{up(min(runs))}V{up(max(runs))}"
            out.append(f'<path d="{spread}" stroke="{colour}" stroke-width="4" opacity="0.4"/>')
            out.append(f'<circle cx="{across(x)}" cy="{up(median(runs))}" r="2.5" fill="{colour}"/>')
    names = [f'<tspan fill="{_colour(number)}">{escape(name)}</tspan>' for number, name in enumerate(panel.lines)]
    out.append(f'<text x="{right}" y="{top - 8}" text-anchor="end">{" · ".join(names)}</text>')
    return "".join(out)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten around all values; at least one decade."""
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values)) - 1e-9))


def _short(power: int) -> str:
    thousands = min(max(power, 0) // 3, 4)
    return f"{10.0 ** (power - 3 * thousands):g}{'_kMGT'[thousands].strip('_')}"
