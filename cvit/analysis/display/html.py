"""A self-contained HTML page: its frame and style, and Markdown as HTML. The page loads nothing from elsewhere."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --muted: #59636e; --page: #fff; --box: #f6f8fa; --line: #d5dbe1;
  --link: #0b57a4; --holds: #0f6b34; --fails: #b3261e; --open: #6b5300; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --muted: #9aa4ae; --page: #15181c; --box: #1e2329;
  --line: #3a424b; --link: #7db7f0; --holds: #6fd198; --fails: #ff9b90; --open: #e6c860; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: var(--text); background: var(--page);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, li { max-width: 46rem; }
a { color: var(--link); }
.lead { font-size: 1.1rem; }
.scroll, pre { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { vertical-align: bottom; font-weight: 600; white-space: normal; overflow-wrap: normal; }
.holds { color: var(--holds); font-weight: 600; }
.fails { color: var(--fails); font-weight: 600; }
.open { color: var(--open); }
code, pre { font: .85em/1.45 ui-monospace, monospace; }
pre { padding: .6rem .8rem; background: var(--box); border-radius: 4px; font-size: .8rem; }
figure { margin: 1rem 0; }
figure .scroll { margin: 0; background: #fff; border-radius: 4px; }
img { display: block; width: 100%; min-width: 36rem; max-width: 52rem; height: auto; }
figcaption { color: var(--muted); font-size: .875rem; max-width: 46rem; padding-top: .4rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; max-width: none; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The whole document, from the HTML of its parts."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def from_markdown(text: str) -> str:
    """Markdown as HTML, headings one level lower. HTML, links and images stay text, since it may quote anything."""
    converter = MarkdownIt("commonmark", {"html": False}).enable("table")
    converter.disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])
    converter.add_render_rule("table_open", _open_table)
    converter.add_render_rule("table_close", _close_table)
    tokens = converter.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
    return converter.renderer.render(tokens, converter.options, {})


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts, in a box that scrolls."""
    cells = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return table_of(head, "<tbody>" + "\n".join(cells) + "</tbody>")


def table_of(head: Sequence[str], body: str) -> str:
    """A table from the HTML of its body."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f"{_BOX}<table><thead><tr>{columns}</tr></thead>\n{body}</table></div>"


def figure(svg: bytes, description: str) -> str:
    """An SVG with a caption, in a box that scrolls."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    text = escape(description)
    return f'<figure>{_BOX}<img src="{source}" alt="{text}"></div><figcaption>{text}</figcaption></figure>'


def code(text: str) -> str:
    """A block of code, such as a command."""
    return f'<pre tabindex="0">{escape(text)}</pre>'


_BOX = '<div class="scroll" tabindex="0">'


def _open_table(*_: Any) -> str:
    return f"{_BOX}<table>\n"


def _close_table(*_: Any) -> str:
    return "</table></div>\n"
