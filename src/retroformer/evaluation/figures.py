"""Figures of the report as inline SVG, without a library: no script, colours from the page's style.

Every text and attribute goes through `element`, which escapes it. Values that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 12.0, 10.0, 34.0
"""Margins of a chart; units are those of the SVG's view box, about pixels."""
MOST_POINTS = 160
"""Of a line: more are averaged in buckets."""


class Point(NamedTuple):
    """A value at x with the ends of its interval, or of the range that it stands for."""

    x: float
    y: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One line or set of points. `kind` names its colour in the page's style."""

    name: str
    kind: str
    points: Sequence[Point]
    style: str = "line"
    """line (with a band), points (with whiskers, joined by a thin line), or steps."""
    dashed: bool = False


class Row(NamedTuple):
    """A labelled interval of `bars` and `forest`."""

    label: str
    kind: str
    y: float
    lower: float
    upper: float


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An element with everything in it escaped; ``class_`` and ``stroke_width`` become class and stroke-width."""
    parts = [Markup("<{}").format(name)]
    for key, value in attributes.items():
        shown = f"{value:.1f}" if isinstance(value, float) else str(value)
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), shown))
    parts.append(Markup(">"))
    parts.extend(escape(child) for child in children)
    parts.append(Markup("</{}>").format(name))
    return Markup("").join(parts)


def figure(title: str, drawing: Iterable[Markup], height: float, legend: Iterable[tuple[str, str]] = ()) -> Markup:
    """A drawing under its title and legend (kind, name)."""
    keys = [element("span", name, class_=f"key k-{kind}") for kind, name in legend]
    svg = element("svg", *drawing, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=title)
    return element("figure", element("figcaption", element("b", title), *keys), svg)


def text(x: float, y: float, words: str, anchor: str = "middle", class_: str = "tick") -> Markup:
    """Words at a place."""
    return element("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = max((high - low) / most, 1e-12)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label: 0, 0.25, 1.5k, 2e-05."""
    if abs(value) >= 1000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value:.1g}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}", 1) if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"


def rate(value: float) -> str:
    """A success rate as the field writes it: .79, 1.00."""
    return f"{value:.2f}".removeprefix("0")


def finite(point: Point) -> bool:
    """Whether it can be drawn."""
    return all(value is None or math.isfinite(value) for value in point)


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS: means of buckets, with the smallest and the largest value of each as the interval."""
    if len(points) <= MOST_POINTS:
        return list(points)
    thinned = []
    for k in range(MOST_POINTS):
        bucket = points[k * len(points) // MOST_POINTS : (k + 1) * len(points) // MOST_POINTS]
        ys = [point.y for point in bucket]
        x = math.fsum(point.x for point in bucket) / len(bucket)
        thinned.append(Point(x, math.fsum(ys) / len(ys), min(ys), max(ys)))
    return thinned


def chart(
    title: str,
    series: Iterable[Series],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    mark: float | None = None,
    mark_label: str = "",
    whole_x: bool = False,
) -> Markup | None:
    """Lines over x; `mark` is a vertical line. None where there is nothing to draw."""
    drawn = [(one, thin([point for point in one.points if finite(point)])) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    if not drawn:
        return None
    xs = [point.x for _, points in drawn for point in points]
    if whole_x:
        xs += [min(xs) - 0.4, max(xs) + 0.4]
    ys = [y for _, points in drawn for point in points for y in (point.y, point.lower, point.upper) if y is not None]
    low, high = y_range or spread(min(ys), max(ys))
    x_of = scale(*((min(xs), max(xs)) if max(xs) > min(xs) else (xs[0] - 1, xs[0] + 1)), LEFT, WIDTH - RIGHT)
    y_of = scale(low, high, HEIGHT - BOTTOM, TOP)
    drawing = []
    for value in ticks(low, high):
        drawing.append(line(LEFT, y_of(value), WIDTH - RIGHT, y_of(value), "gridline"))
        drawing.append(text(LEFT - 5, y_of(value) + 3.5, number(value), "end"))
    for value in ticks(min(xs), max(xs), whole=whole_x):
        drawing.append(text(x_of(value), HEIGHT - BOTTOM + 15, number(value)))
    drawing.append(text(WIDTH - RIGHT, HEIGHT - 4, x_label, "end", "label"))
    if mark is not None and min(xs) <= mark <= max(xs):
        drawing.append(line(x_of(mark), TOP, x_of(mark), HEIGHT - BOTTOM, "mark"))
        near_end = x_of(mark) > WIDTH * 0.7
        place = x_of(mark) + (-5 if near_end else 5)
        drawing.append(text(place, TOP + 10, mark_label, "end" if near_end else "start", "label"))
    for k, (one, points) in enumerate(drawn):
        # Whiskers at the same x would hide each other.
        shift = 7.0 * (k - (len(drawn) - 1) / 2) if one.style == "points" else 0.0
        drawing.extend(draw(one, points, lambda x, shift=shift: x_of(x) + shift, y_of))
    legend = [(one.kind + (" dashed" if one.dashed else ""), one.name) for one, _ in drawn]
    return figure(title, drawing, HEIGHT, legend)


def draw(
    one: Series, points: list[Point], x_of: Callable[[float], float], y_of: Callable[[float], float]
) -> list[Markup]:
    """One series."""
    drawing = []
    ranged = [(x_of(p.x), y_of(p.lower), y_of(p.upper)) for p in points if p.lower is not None and p.upper is not None]
    path = [(x_of(point.x), y_of(point.y)) for point in points]
    if one.style == "points":
        drawing += [line(x, lower, x, upper, f"whisker k-{one.kind}") for x, lower, upper in ranged]
    elif len(ranged) > 1:
        outline = [(x, upper) for x, _, upper in ranged] + [(x, lower) for x, lower, _ in reversed(ranged)]
        drawing.append(element("polygon", points=joined(outline), class_=f"band k-{one.kind}"))
    if one.style == "steps":
        corners = zip(path[1:], path, strict=False)
        path = path[:1] + [corner for (x, y), (_, before) in corners for corner in ((x, before), (x, y))]
    class_ = f"curve k-{one.kind}" + (" dashed" if one.dashed else "")
    drawing.append(element("polyline", points=joined(path), class_=class_))
    if one.style == "points":
        for point, (x, y) in zip(points, path, strict=True):
            told = element("title", f"{one.name}: {point.y:.3f} at {point.x:g}")
            drawing.append(element("circle", told, cx=x, cy=y, r=4, class_=f"dot k-{one.kind}"))
    return drawing


def joined(path: Iterable[tuple[float, float]]) -> str:
    """Points as SVG writes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in path)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of low..high to start..end; what lies outside is drawn at the edge."""

    def place(value: float) -> float:
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return start + share * (end - start)

    return place


def spread(low: float, high: float) -> tuple[float, float]:
    """A range with some air, from 0 where the values come near it."""
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    air = 0.06 * (high - low) or max(abs(high), 1e-6) * 0.1
    return (low - air if low else low), high + air


def bars(title: str, groups: Sequence[tuple[str, Sequence[Row]]], legend: Iterable[tuple[str, str]]) -> Markup:
    """Horizontal bars from 0 to 1 with whiskers, in labelled groups, one group under the other."""
    x_of = scale(0, 1, 4, WIDTH - 38)
    drawing: list[Markup] = []
    y = 0.0
    for label, rows in groups:
        drawing.append(text(4, y + 13, label, "start", "row"))
        y += 18
        for row in rows:
            told = element("title", f"{label}, {row.label}: {row.y:.3f} [{row.lower:.3f}, {row.upper:.3f}]")
            width = x_of(row.y) - x_of(0)
            drawing.append(element("rect", told, x=x_of(0), y=y, width=width, height=9, rx=1.5, class_=f"k-{row.kind}"))
            drawing.append(line(x_of(row.lower), y + 4.5, x_of(row.upper), y + 4.5, "error"))
            drawing.append(text(WIDTH, y + 8.5, rate(row.y), "end"))
            y += 12
        y += 5
    grid = [line(x_of(value / 4), 0.0, x_of(value / 4), y, "gridline") for value in range(5)]
    labels = [
        text(x_of(value / 4), y + 14, number(value / 4), "start" if not value else "middle") for value in range(5)
    ]
    return figure(title, [*grid, *drawing, *labels], y + 20, legend)


def forest(title: str, rows: Sequence[Row]) -> Markup | None:
    """Intervals of a difference, one under the other, about a line at 0. None where there is nothing to draw."""
    rows = [row for row in rows if all(map(math.isfinite, row[2:]))]
    if not rows:
        return None
    low, high = min(0.0, *(row.lower for row in rows)), max(0.0, *(row.upper for row in rows))
    air = 0.08 * (high - low) or 0.1
    low, high = low - air, high + air
    x_of = scale(low, high, 120, WIDTH - 46)
    bottom = len(rows) * 22 + 6.0
    places = ticks(low, high, 4)
    drawing = [line(x_of(value), 0.0, x_of(value), bottom, "gridline") for value in places]
    drawing += [text(x_of(value), bottom + 14, number(value)) for value in places]
    drawing.append(line(x_of(0), 0.0, x_of(0), bottom, "zero"))
    for k, row in enumerate(rows):
        y = k * 22 + 14.0
        told = element("title", f"{row.label}: {row.y:+.3f} [{row.lower:+.3f}, {row.upper:+.3f}]")
        drawing.append(text(0, y + 4, row.label if len(row.label) < 20 else row.label[:18] + "…", "start", "row"))
        drawing.append(line(x_of(row.lower), y, x_of(row.upper), y, f"whisker k-{row.kind}"))
        drawing.append(element("circle", told, cx=x_of(row.y), cy=y, r=4.5, class_=f"dot k-{row.kind}"))
        drawing.append(text(WIDTH, y + 4, f"{row.y:+.3f}".replace("-", "\N{MINUS SIGN}"), "end"))
    return figure(title, drawing, bottom + 20)


def stacked(
    title: str, labels: Sequence[str], stacks: Sequence[tuple[str, Sequence[float]]], x_label: str
) -> Markup | None:
    """Columns of counts, one on the other: `stacks` are (kind, a count for each label). None where all are 0."""
    stacks = [(kind, counts) for kind, counts in stacks if any(counts)]
    if not stacks:
        return None
    totals = [sum(column) for column in zip(*(counts for _, counts in stacks), strict=True)]
    y_of = scale(0, max(totals) * 1.06, HEIGHT - BOTTOM, TOP)
    drawing = []
    for value in ticks(0, max(totals) * 1.06, 4, whole=True):
        drawing.append(line(LEFT, y_of(value), WIDTH - RIGHT, y_of(value), "gridline"))
        drawing.append(text(LEFT - 5, y_of(value) + 3.5, number(value), "end"))
    slot = (WIDTH - RIGHT - LEFT) / len(labels)
    gap = 1.0 if len(labels) > 8 else slot * 0.2
    floor = [0.0] * len(labels)
    for kind, counts in stacks:
        for k, count in enumerate(counts):
            top, base = y_of(floor[k] + count), y_of(floor[k])
            told = element("title", f"{labels[k]}, {kind}: {count:g}")
            place = {"x": LEFT + k * slot + gap / 2, "y": top, "width": slot - gap, "height": base - top}
            if count:
                drawing.append(element("rect", told, **place, class_=f"k-{kind}"))
            floor[k] += count
    shown = max(1, len(labels) // 5)
    for k in range(0, len(labels), shown):
        drawing.append(text(LEFT + (k + 0.5) * slot, HEIGHT - BOTTOM + 15, labels[k]))
    drawing.append(text(WIDTH - RIGHT, HEIGHT - 4, x_label, "end", "label"))
    return figure(title, drawing, HEIGHT, [(kind, kind) for kind, _ in stacks])
