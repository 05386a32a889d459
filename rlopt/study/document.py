"""A small document: headings, paragraphs, tables, figures and code, written as one HTML file or as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table; columns after the first `text_columns` hold numbers and are aligned right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Args:
        name: File name without extension.
        svg: The drawing, an `<svg>` element.
        caption: What it shows; serves as the alternative text too.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Commands, shown as they are typed."""

    text: str


Block = Heading | Paragraph | Items | Table | Figure | Code

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .75rem; line-height: 1.2; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid #d8d8d8; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p, li { max-width: 48rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #888; vertical-align: bottom; }
th, td { padding: .3rem .8rem .3rem 0; }
td { border-bottom: 1px solid #e4e4e4; vertical-align: top; }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0 1.5rem; }
figure svg { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .9rem; max-width: 48rem; }
pre { background: #f5f5f5; border: 1px solid #e0e0e0; border-radius: 4px; padding: .75rem 1rem; overflow-x: auto;
  font-size: .85rem; }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return the document as one HTML page that needs nothing else."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the document as Markdown; its figures are expected as `figures/<name>.svg`."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Items(texts):
            return "<ul>\n" + "\n".join(f"<li>{html.escape(text)}</li>" for text in texts) + "\n</ul>"
        case Table(header, rows, text_columns):
            lines = [_html_row("th", header, text_columns), *(_html_row("td", row, text_columns) for row in rows)]
            head, body = lines[0], "\n".join(lines[1:])
            return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
        case Figure(_, svg, caption):
            label = html.escape(caption, quote=True)
            drawing = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
            return f"<figure>\n{drawing}\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>"
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"


def _html_row(tag: str, cells: Sequence[str], text_columns: int) -> str:
    shown = (
        f"<{tag}{'' if column < text_columns else ' class=number'}>{html.escape(cell)}</{tag}>" for column, cell in enumerate(cells)
    )
    return f"<tr>{''.join(shown)}</tr>"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Paragraph(text):
            return _escape(text)
        case Items(texts):
            return "\n".join(f"- {_escape(text)}" for text in texts)
        case Table(header, rows, text_columns):
            rule = tuple("---" if column < text_columns else "---:" for column in range(len(header)))
            lines = [header, rule, *rows]
            return "\n".join("| " + " | ".join(cell if line is rule else _escape(cell) for cell in line) + " |" for line in lines)
        case Figure(name, _, caption):
            return f"![{_escape(caption)}](figures/{name}.svg)\n\n{_escape(caption)}"
        case Code(text):
            return f"```\n{text}\n```"


def _escape(text: str) -> str:
    """Protect the characters that Markdown would read as markup."""
    return re.sub(r"([\\`*|<]|\b_|_\b)", r"\\\1", text)
