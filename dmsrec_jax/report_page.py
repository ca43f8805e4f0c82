"""HTML from plain values: every text is escaped here, and the page that comes out needs nothing but itself."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5d6878; --line: #dde2e9; --wash: #f5f7fa; --accent: #1f5fae }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 80rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif }
h1 { margin: 0 0 .3rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em }
h2 { margin: 2.8rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); font-size: 1.3rem }
h3 { margin: 1.6rem 0 .4rem; font-size: 1rem }
p { margin: .5rem 0; max-width: 46rem }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .38rem .5rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; border-bottom: 2px solid var(--line) }
th:first-child, td:first-child, .words th, .words td { text-align: left }
tbody th { font-weight: 600; min-width: 11rem }
tbody tr.paper { color: var(--soft); background: var(--wash) }
tbody tr.paper th { font-weight: 400 }
td small { display: block; color: var(--soft); font-size: .72rem; white-space: nowrap }
.up { color: #0c7a43; font-weight: 600 } .down { color: #b3261e; font-weight: 600 }
figure { margin: 1rem 0 } figure img { max-width: 100%; height: auto }
.example { margin: 1rem 0; padding: .9rem 1.1rem 1.1rem; border: 1px solid var(--line); border-radius: .5rem }
.example h3 { margin: 0 0 .5rem }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem 1.3rem }
.columns h4 { margin: 0; color: var(--soft); font-size: .8125rem; font-weight: 600 }
.columns ol { margin: .2rem 0 0; padding-left: 1.4rem; font-size: .875rem; line-height: 1.4 }
.columns li { padding: .1rem 0; overflow-wrap: anywhere } .columns .none { font-size: .875rem; color: var(--soft) }
mark { background: #fff0b8; padding: 0 .15em; border-radius: .2em }
@media print { body { max-width: none; padding: 0 } .example, figure { break-inside: avoid } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. ``title`` is text, ``body`` HTML."""
    # The policy is for titles that no escaping foresaw: a browser loads nothing and runs nothing for this page.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, soft: bool = False) -> str:
    return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def number(value: str, below: str = "", kind: str = "") -> str:
    """A table cell's content: a number, smaller text below it, a class."""
    shown = f'<span class="{kind}">{escape(value)}</span>' if kind else escape(value)
    return shown + (f"<small>{escape(below)}</small>" if below else "")


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str], str]], *, words: bool = False) -> str:
    """A table.

    Args:
      columns: headings as text, the first one of the rows' names.
      rows: of each its name as text, its cells as HTML, and its class.
      words: whether cells are words rather than numbers.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = "\n".join(
        f'<tr class="{kind}"><th scope="row">{escape(name)}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
        for name, cells, kind in rows
    )
    kind = ' class="words"' if words else ""
    return f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def figure(png: bytes, caption: str) -> str:
    """An image that the page carries within itself."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def example(title: str, columns: Iterable[tuple[str, Sequence[tuple[str, bool]], int]]) -> str:
    """Titled lists side by side.

    Args:
      title: text.
      columns: of each its heading, its entries (text, and whether to mark it), and the first one's number.
    """
    parts = []
    for name, entries, first in columns:
        lines = "".join(
            f"<li>{f'<mark>{escape(text)}</mark>' if marked else escape(text)}</li>" for text, marked in entries
        )
        listed = f'<ol start="{first}">{lines}</ol>' if lines else '<div class="none">none</div>'
        parts.append(f"<div><h4>{escape(name)}</h4>{listed}</div>")
    return f'<section class="example"><h3>{escape(title)}</h3><div class="columns">{"".join(parts)}</div></section>'
