"""Tables as Markdown, LaTeX, CSV and HTML, and prose in Markdown as HTML."""

from __future__ import annotations

import csv
import html
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from fogzo.evidence.tables import Span, Table
from fogzo.evidence.words import Word

TEX = {  # what is longest first: ε̄ is two characters
    "ε̄": r"$\bar\varepsilon$",
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "×": r"$\times$", "−": r"$-$",
    "α": r"$\alpha$", "β": r"$\beta$", "ε": r"$\varepsilon$", "ĝ": r"$\hat g$", "√": r"$\surd$", "≤": r"$\le$",
    "≥": r"$\ge$", "ⁿ": r"$^n$", "<": r"\textless{}", ">": r"\textgreater{}", "’": "'", "·": r"$\cdot$",
    "|": r"\textbar{}",
}  # fmt: skip
TEX_NEEDS = (
    r"% needs \usepackage{booktabs}; a table that is wider than the page fits with \usepackage{graphicx} and",
    r"% \resizebox{\linewidth}{!}{\input{THIS FILE}}, on a landscape page if the letters get too small",
)
LONGEST = 30  # rows of a table in HTML that is shown at once; a longer one is folded
Image = Callable[[Path, str], str]  # a figure's path and its description, as HTML


def markdown(table: Table) -> str:
    """Return a pipe table, if it has rows, and its notes."""
    rows = [["".join(map(_markdown, spans)) for spans in row] for row in table.shown()]
    lines = [table.header, ["---"] * len(table.header), *rows] if rows else []
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return text + "".join(f"\n{note}\n" for note in table.notes)


def _markdown(span: Span) -> str:
    forms = {"strong": f"**{span.text}**", "code": f"`{span.text}`", "link": f"[{span.text}]({span.target})"}
    return forms.get(span.kind, span.text)


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
    lines = [*TEX_NEEDS, rf"\begin{{tabular}}{{{'l' * len(table.header)}}}", r"\toprule"]
    lines += [_tex_row(table.header), r"\midrule"]
    for number, row in enumerate(table.texts()):
        lines += [r"\midrule"] if number and number in table.blocks else []
        lines.append(_tex_row(row))
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *("% " + " ".join(note.split()) for note in table.notes)]) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(tex, cells)) + r" \\"


def tex(text: str) -> str:
    r"""Return text with what LaTeX takes for commands escaped.

    >>> tex("5 % ± 1")
    '5 \\% $\\pm$ 1'
    >>> print(tex("0.1 ε̄"))
    0.1 $\bar\varepsilon$
    """
    return re.sub("|".join(map(re.escape, TEX)), lambda found: TEX[found[0]], text)


def to_html(table: Table) -> str:
    """Return a table, if it has rows, in a box that scrolls by itself, and its notes as paragraphs."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in table.header)
    body = "".join(
        f"<tr{' class=block' if number in table.blocks else ''}>"
        + "".join(f"<td>{''.join(map(_html, spans))}</td>" for spans in row)
        + "</tr>\n"
        for number, row in enumerate(table.shown())
    )
    inner = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    box = _box(inner, len(table.header), len(table.rows)) if table.rows else ""
    return box + "".join(map(prose, table.notes))


def _box(table: str, columns: int, rows: int) -> str:
    wide = " wide" if columns > 6 else ""
    box = f'<div class="scroll{wide}" tabindex="0">{table}</div>'
    return f"<details><summary>Table of {rows} rows</summary>{box}</details>" if rows > LONGEST else box


def _html(span: Span) -> str:
    text = html.escape(span.text, quote=False)
    if span.word is not None:
        return badge(span.text, span.word)
    forms = {"strong": f"<strong>{text}</strong>", "code": f"<code>{text}</code>"}
    forms["link"] = f'<a href="{html.escape(span.target)}">{text}</a>'
    return forms.get(span.kind, text)


def badge(text: str, word: Word) -> str:
    """Return a text in the colour of its word, which says nothing that the words don't."""
    return f'<span class="badge {word.tone}{" part" if word.in_part else ""}">{html.escape(text)}</span>'


def prose(
    text: str, folder: Path = Path(), root: Path = Path(), image: Image | None = None, *, raise_headings: int = 0
) -> str:
    """Return a Markdown text that lies in ``folder`` as HTML.

    Args:
        root: the folder from which the HTML file's links start.
        image: makes an image that stands alone in a paragraph.
        raise_headings: added to the level of headings.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    shown: list[Token] = []
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + raise_headings)}"
        for child in token.children or []:
            if child.type == "link_open" and not re.match(r"https?:|#", str(child.attrs["href"])):
                child.attrs["href"] = Path(os.path.relpath(folder / str(child.attrs["href"]), root)).as_posix()
        shown.append(token)
        if token.type == "paragraph_close" and image and _is_image(shown[-2]):
            (picture,) = shown[-2].children or []
            drawn = image(Path(os.path.normpath(folder / str(picture.attrs["src"]))), picture.content)
            shown[-3:] = [Token("html_block", "", 0, content=drawn + "\n")]
        if token.type == "table_close":
            start = max(at for at, one in enumerate(shown) if one.type == "table_open")
            inside = [one.type for one in shown[start:]]
            drawn = parser.renderer.render(shown[start:], parser.options, {})
            box = _box(drawn, inside.count("th_open"), inside.count("tr_open") - 1)
            shown[start:] = [Token("html_block", "", 0, content=box + "\n")]
    return str(parser.renderer.render(shown, parser.options, {}))


def _is_image(token: Token) -> bool:
    return [child.type for child in token.children or []] == ["image"]
