"""Pieces of a web page in one file: tables, embedded videos, line charts."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

escape = html.escape

_COLOURS = ("#2f6fb3", "#c8552b", "#3a8f4d")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2329; background: #fff;
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5dbe0; padding-bottom: .25rem; }
table { border-collapse: collapse; margin: .9rem 0; } th, td { padding: .3rem .9rem .3rem 0; text-align: left; }
th { font-weight: 600; color: #55616b; border-bottom: 1px solid #b9c2c9; } td { border-bottom: 1px solid #e6eaed; }
.yes { color: #1f7a37; font-weight: 600; } .no { color: #b3261e; font-weight: 600; }
.grid { display: grid; gap: 1rem 1.2rem; grid-template-columns: repeat(auto-fill, minmax(262px, 1fr)); }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(540px, 1fr)); }
.grid.charts { grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); }
figure { margin: 0; } figcaption { font-size: .86rem; color: #37424a; }
video { width: 128px; height: 128px; image-rendering: pixelated; background: #eef1f3; margin-right: 4px; }
video.own, img.own { width: auto; height: auto; max-width: 100%; }
video.wide { width: 536px; height: 128px; max-width: 100%; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #55616b; }
"""


def document(title: str, sections: Sequence[str]) -> str:
    """A whole page, style included."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    top = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>'
    return "\n".join([top, *sections, "</body></html>\n"])


def section(title: str, content: str) -> str:
    """A heading with what is below it."""
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def mark(good: bool) -> str:
    """A green tick or a red cross."""
    return '<span class="yes">&#10003;</span>' if good else '<span class="no">&#10007;</span>'


def video(path: Path, kind: str = "") -> str:
    """An MP4 file inside the page, playing over and over."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video class="{kind}" src="data:video/mp4;base64,{data}" autoplay loop muted playsinline></video>'


def picture(path: Path) -> str:
    """A PNG file inside the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def linked(file: str) -> str:
    """A picture or video in a file beside the page, at its own size."""
    if file.endswith(".png"):
        return f'<img class="own" src="{escape(file)}">'
    return f'<video class="own" src="{escape(file)}" autoplay loop muted playsinline controls></video>'


def card(content: str, caption: str) -> str:
    """Anything with a line of HTML below it."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def grid(cards: Sequence[str], kind: str = "") -> str:
    """Cards side by side, as many as the window is wide."""
    return f'<div class="grid {kind}">' + "\n".join(cards) + "</div>"


def chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]], log: bool) -> str:
    """Line chart (SVG) of (x, y) points by label; with `log` a logarithmic y axis, where every y must be above 0."""
    width, height, left, right, top, bottom = 360, 230, 46, 10, 14, 40
    points = [point for line in series.values() for point in line]
    if not points:
        return card("<p>no points</p>", escape(title))
    scale = math.log10 if log else float
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    y_low, y_high = scale(low), scale(high)
    span = (y_high - y_low) or 1.0
    y_low, y_high = y_low - 0.05 * span, y_high + 0.05 * span

    def place(x: float, y: float) -> tuple[float, float]:
        right_share = (x - x_low) / ((x_high - x_low) or 1)
        up = (scale(y) - y_low) / (y_high - y_low)
        return left + right_share * (width - left - right), height - bottom - up * (height - top - bottom)

    parts = []
    for y in _ticks(low, high, log):
        _, at = place(x_low, y)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e3e8eb"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for x in dict.fromkeys((x_low, x_high)):
        at, _ = place(x, high)
        anchor = "start" if x == x_low else "end"
        parts.append(f'<text x="{at:.1f}" y="{height - bottom + 15}" text-anchor="{anchor}">step {x:g}</text>')
    for i, (label, line) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        placed = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(line) < 20:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in placed]
        at = left + i * 100
        parts.append(f'<rect x="{at}" y="{height - 16}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{at + 17}" y="{height - 10}">{escape(label)}</text>')
    svg = f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
    return card(svg, f"<b>{escape(title)}</b>")


def bar(title: str, parts: Mapping[str, float], unit: str, limit: float = 0.0) -> str:
    """A stacked bar (SVG) of sizes by label, each with its legend; `limit` is a mark that it should not pass."""
    width, left = 720, 10
    scale = (width - 2 * left) / (max(sum(parts.values()), limit) or 1)
    drawn, legend, at = [], [], 0.0
    for i, (label, size) in enumerate(parts.items()):
        colour = f"hsl({i * 137 % 360} 45% 52%)"
        drawn.append(
            f'<rect x="{left + at * scale:.1f}" y="6" width="{size * scale:.1f}" height="26" fill="{colour}"/>'
        )
        x, y = left + i % 4 * 178, 54 + i // 4 * 18
        legend.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        legend.append(f'<text x="{x + 15}" y="{y}">{escape(label)} {size:.3g} {escape(unit)}</text>')
        at += size
    if limit:
        x = left + limit * scale
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="38" stroke="#b3261e" stroke-width="2"/>')
    height = 64 + (len(parts) - 1) // 4 * 18
    svg = f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(drawn + legend)}</svg>'
    return card(svg, f"<b>{escape(title)}</b>")


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers between low and high."""
    if log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        return found or [low, high]
    step = 10.0 ** math.floor(math.log10((high - low) or 1))
    step *= next(m for m in (5, 2, 1, 0.5, 0.2) if (high - low) / (step * m) >= 2 or m == 0.2)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
