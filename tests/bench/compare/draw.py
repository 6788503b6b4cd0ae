"""Plots as SVG, made by hand: bars and lines, with titles, axes and legends."""

import math
from xml.sax.saxutils import escape

COLOURS = {"rookery": "#1b7f5c", "ejabberd": "#c2573a", "prosody": "#5a6fb5"}
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 20, 56, 64
STYLE = (
    "text{font-family:sans-serif;font-size:13px;fill:#333}.title{font-size:16px;font-weight:bold}"
    ".grid{stroke:#ddd;stroke-width:1}.axis{stroke:#666;stroke-width:1}.small{font-size:11px}"
)


class Sheet:
    """Elements of one plot."""

    def __init__(self, title):
        self.parts = []
        self.text(WIDTH / 2, 22, title, "middle", "title")

    def text(self, x, y, words, anchor="start", css="", turn=None):
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}"{turned}>{escape(words)}</text>'
        )

    def line(self, x1, y1, x2, y2, css):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def legend(self, names):
        x = LEFT
        for name in names:
            self.parts.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{COLOURS[name]}"/>')
            self.text(x + 17, 45, name)
            x += 34 + 8 * len(name)

    def write(self, path):
        with open(path, "w") as file:
            file.write(
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
                f'height="{HEIGHT}" role="img">\n<style>{STYLE}</style>\n'
                f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
            )


def decades(least, most):
    """Powers of ten around these two."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**n for n in range(first, max(last, first + 1) + 1)]


def steps(most):
    """Round numbers from zero to this one or beyond it."""
    size = 10 ** math.floor(math.log10(most))
    size = next(size * part for part in (0.1, 0.2, 0.5, 1, 2) if most / (size * part) <= 8)
    return [size * n for n in range(math.ceil(most / size) + 1)]


def shown(value):
    return f"{value:g}" if value < 1000 else f"{value:,.0f}"


def vertical(sheet, ticks, logarithmic, label):
    """The axis at the left; gives the height of a value."""
    bottom, top = HEIGHT - BOTTOM, TOP
    low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if logarithmic else (ticks[0], ticks[-1])

    def y(value):
        at = math.log10(max(value, ticks[0])) if logarithmic else value
        return bottom - (at - low) / (high - low) * (bottom - top)

    for tick in ticks:
        sheet.line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid")
        sheet.text(LEFT - 8, y(tick) + 4, shown(tick), "end")
    sheet.line(LEFT, bottom, LEFT, top, "axis")
    sheet.line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    sheet.text(18, (top + bottom) / 2, label, "middle", turn=-90)
    return y


def bars(path, title, label, groups, names):
    """`groups`: pairs of a name and a figure for each server; on a logarithmic axis."""
    sheet = Sheet(title)
    sheet.legend(names)
    values = [value for _, figures in groups for value in figures.values() if value]
    y = vertical(sheet, decades(min(values), max(values)), True, label)
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    width = room * 0.8 / len(names)
    for number, (group, figures) in enumerate(groups):
        begin = LEFT + room * number + room * 0.1
        for place, name in enumerate(names):
            value = figures.get(name)
            if not value:
                continue
            x, height = begin + width * place, HEIGHT - BOTTOM - y(value)
            sheet.parts.append(
                f'<rect x="{x:.1f}" y="{y(value):.1f}" width="{width - 2:.1f}" height="{height:.1f}" '
                f'fill="{COLOURS[name]}"/>'
            )
            sheet.text(x + width / 2 - 1, y(value) - 4, f"{value:.3g}" if value < 1000 else shown(value), "middle", "small")
        for row, words in enumerate(group.split("\n")):
            sheet.text(begin + room * 0.4, HEIGHT - BOTTOM + 18 + 15 * row, words, "middle")
    sheet.write(path)


def lines(path, title, labels, series, places, logarithmic):
    """`series`: points of each server; `places`: where on the axis at the bottom names stand, and how far right."""
    sheet = Sheet(title)
    sheet.legend(series)
    values = [value for points in series.values() for _, value in points]
    ticks = decades(min(values), max(values)) if logarithmic else steps(max(values))
    y = vertical(sheet, ticks, logarithmic, labels[1])
    far = max(at for at, _ in places)

    def x(at):
        return LEFT + 20 + (WIDTH - LEFT - RIGHT - 60) * at / far

    for at, words in places:
        sheet.line(x(at), HEIGHT - BOTTOM, x(at), HEIGHT - BOTTOM + 5, "axis")
        sheet.text(x(at), HEIGHT - BOTTOM + 20, words, "middle")
    sheet.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, labels[0], "middle")
    for name, points in series.items():
        path_text = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        sheet.parts.append(
            f'<polyline points="{path_text}" fill="none" stroke="{COLOURS[name]}" stroke-width="2.5"/>'
        )
        for at, value in points:
            sheet.parts.append(f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5" fill="{COLOURS[name]}"/>')
    sheet.write(path)
