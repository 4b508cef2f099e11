"""Tables as Markdown, LaTeX, CSV and HTML, and prose in Markdown as HTML; ``templates/`` has the layouts."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from fogzo.evidence.tables import Span, Table

TEX = {  # what is longest first: ε̄ is two characters
    "ε̄": r"$\bar\varepsilon$",
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "×": r"$\times$", "−": r"$-$",
    "α": r"$\alpha$", "β": r"$\beta$", "ε": r"$\varepsilon$", "ĝ": r"$\hat g$", "√": r"$\surd$", "≤": r"$\le$",
    "≥": r"$\ge$", "ⁿ": r"$^n$", "<": r"\textless{}", ">": r"\textgreater{}", "’": "'", "·": r"$\cdot$",
    "|": r"\textbar{}",
}  # fmt: skip
SITE = Path("site")  # where the report lies, and its figures
Image = Callable[[Path, str], str]  # a figure's path and its description, as HTML


def rendered(template: str, **what: Any) -> str:
    """Return a text of ``templates/``, filled in."""
    return LAYOUTS.get_template(template).render(**what)


def markdown(table: Table) -> str:
    """Return a pipe table, if it has rows, and its notes."""
    rows = [["".join(map(_markdown, spans)) for spans in row] for row in table.shown()]
    lines = [table.header, ["---"] * len(table.header), *rows] if rows else []
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return text + "".join(f"\n{note}\n" for note in table.notes)


def _markdown(span: Span) -> str:
    return {"code": f"`{span.text}`", "link": f"[{span.text}]({span.target})"}.get(span.kind, span.text)


def to_csv(table: Table) -> str:
    """Return comma-separated values, numbers to six digits, without the notes."""
    buffer = io.StringIO()
    rows = table.values()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0] if rows else [])
    for row in rows:
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row.values()])
    return buffer.getvalue()


def latex(table: Table) -> str:
    """Return a ``tabular`` with booktabs' rules; the notes are comments, for whoever writes the caption."""
    return rendered("table.tex.j2", table=table)


def tex(text: str) -> str:
    r"""Return text with what LaTeX takes for commands escaped.

    >>> tex("5 % ± 1")
    '5 \\% $\\pm$ 1'
    >>> print(tex("0.1 ε̄"))
    0.1 $\bar\varepsilon$
    """
    return re.sub("|".join(map(re.escape, TEX)), lambda found: TEX[found[0]], text)


def to_html(table: Table) -> Markup:
    """Return a table, if it has rows, in a box that scrolls by itself, and its notes as paragraphs."""
    return Markup(rendered("table.html.j2", table=table))


def prose(text: str, folder: Path = SITE, image: Image | None = None) -> Markup:
    """Return a Markdown text that lies in ``folder`` as HTML for the report, headings a level lower.

    Args:
        image: makes an image that stands alone in a paragraph.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    for at, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        for child in token.children or []:
            if child.type == "link_open" and not re.match(r"https?:|#", str(child.attrs["href"])):
                child.attrs["href"] = Path(os.path.relpath(folder / str(child.attrs["href"]), SITE)).as_posix()
        if image and [child.type for child in token.children or []] == ["image"]:
            (picture,) = token.children or []
            drawn = image(Path(os.path.normpath(folder / str(picture.attrs["src"]))), picture.content)
            tokens[at - 1].hidden = tokens[at + 1].hidden = True  # a figure stands in no paragraph
            tokens[at] = Token("html_block", "", 0, content=drawn + "\n")
    return Markup(parser.renderer.render(tokens, parser.options, {}))


LAYOUTS = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html.j2"], default=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
LAYOUTS.filters["tex"] = tex
LAYOUTS.globals.update(markdown=markdown, to_html=to_html, prose=prose)
