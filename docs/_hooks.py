r"""MkDocs hooks: the public names of a room become its API page, and formulas become MathML.

A line `::: room probinf.core` is replaced by one `:::` block a public name, in the order of the room's `__init__.py`
(mkdocstrings by itself skips what is re-exported). MathML is drawn by browsers without any script or font of others.
"""

import ast
import html
import re
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
_ROOM = re.compile(r"^::: room (?P<room>[\w.]+)$", re.MULTILINE)
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Expands the lines `::: room NAME`."""
    return _ROOM.sub(lambda match: _api(match["room"]), markdown)


def _api(room: str) -> str:
    tree = ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    names = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    blocks = [f"::: {room}.{name}\n" for name in names]
    return "\n".join([ast.get_docstring(tree) or "", "", *blocks])


def on_page_content(content: str, **_: object) -> str:
    """Replaces each formula that pymdownx.arithmatex has marked."""

    def render(match: re.Match[str]) -> str:
        inline = match["inline"]
        formula = html.unescape(match["block"] if inline is None else inline)
        return convert(formula, display="block" if inline is None else "inline")

    return _FORMULA.sub(render, content)
