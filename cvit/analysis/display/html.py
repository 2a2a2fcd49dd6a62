"""A self-contained HTML page: templates with everything escaped, Markdown as HTML, and pictures within the page."""

import base64
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup


def rendered(template: str, **values: Any) -> str:
    """A template of `cvit/analysis/templates` with its values; texts among them are escaped, HTML is `Markup`."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("cvit.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def from_markdown(text: str) -> Markup:
    """Markdown as HTML, headings one level lower. HTML, links and images stay text, since it may quote anything."""
    converter = MarkdownIt("commonmark", {"html": False}).enable("table")
    converter.disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])
    converter.add_render_rule("table_open", _open_table)
    converter.add_render_rule("table_close", _close_table)
    tokens = converter.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
    return Markup(converter.renderer.render(tokens, converter.options, {}))


def picture_url(svg: bytes) -> str:
    """An SVG as a URL that holds all of it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _open_table(*_: Any) -> str:
    return '<div class="scroll" tabindex="0"><table>\n'


def _close_table(*_: Any) -> str:
    return "</table></div>\n"
