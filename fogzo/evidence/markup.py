"""The part of Markdown that our own pages use, as HTML: for one file that needs nothing else."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

LONGEST = 30  # rows of a table that is shown at once; a longer one is folded
Image = Callable[[Path, str], str]  # a figure's path and its description, as HTML


def to_html(text: str, folder: Path, root: Path, image: Image, *, level: int = 0) -> str:
    """Headings, paragraphs, lists, tables, code blocks, images and links of a page that lies in ``folder``.

    Args:
        root: the folder from which the HTML file's links start.
        image: makes an image that stands alone in a paragraph.
        level: added to the level of headings.
    """
    parts = []
    for block in _blocks(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)):
        first = block[0]
        picture = re.fullmatch(r"!\[([^\]]*)\]\(([^)]+)\)", " ".join(block))
        if first.startswith("```"):
            parts.append(f"<pre><code>{html.escape(chr(10).join(block[1:-1]))}</code></pre>")
        elif heading := re.match(r"(#+) +(.*)", first):
            depth = min(6, len(heading[1]) + level)
            parts.append(f"<h{depth}>{inline(heading[2], folder, root)}</h{depth}>")
        elif picture:
            parts.append(image(Path(os.path.normpath(folder / picture[2])), picture[1]))
        elif first.startswith("|"):
            rows = [
                [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
                for line in block
            ]
            cells = [[inline(cell, folder, root) for cell in row] for row in rows]
            shown = table(cells[0], cells[2:])
            if len(cells) - 2 > LONGEST:
                shown = f"<details><summary>Table of {len(cells) - 2} rows</summary>{shown}</details>"
            parts.append(shown)
        elif re.match(r"([-*]|\d+\.) ", first):
            kind = "ol" if first[0].isdigit() else "ul"
            parts.append(
                f"<{kind}>{''.join(f'<li>{inline(item, folder, root)}</li>' for item in _items(block))}</{kind}>"
            )
        else:
            parts.append(f"<p>{inline(' '.join(block), folder, root)}</p>")
    return "\n".join(parts) + "\n"


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    fenced = False
    for line in text.splitlines():
        fence = line.startswith("```")
        # a blank line ends a block outside code; a heading is a block of its own
        ends = not fenced and (not line.strip() or fence or (blocks[-1] and blocks[-1][0].startswith("#")))
        if ends and blocks[-1]:
            blocks.append([])
        if line.strip() or fenced:
            blocks[-1].append(line)
        if fence:
            fenced = not fenced
            if not fenced:
                blocks.append([])
    return [block for block in blocks if block]


def _items(block: Sequence[str]) -> list[str]:
    items: list[str] = []
    for line in block:
        if bullet := re.match(r"(?:[-*]|\d+\.) +(.*)", line):
            items.append(bullet[1])
        else:
            items[-1] += " " + line.strip()
    return items


def inline(text: str, folder: Path, root: Path) -> str:
    """Code, bold, emphasis and links inside a line."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"<code>{html.escape(piece[1:-1])}</code>"
        if piece.startswith("`") and len(piece) > 1
        else _words(piece, folder, root)
        for piece in pieces
    )


def _words(text: str, folder: Path, root: Path) -> str:
    def link(found: re.Match[str]) -> str:
        target = found[2]
        if not re.match(r"https?:|#", target):
            target = Path(os.path.relpath(folder / target, root)).as_posix()
        return f'<a href="{target}">{found[1]}</a>'

    text = html.escape(text, quote=False)
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<![\\\w*])\*(?! )([^*]+?)\*(?!\w)", r"<em>\1</em>", text)
    return text.replace("\\*", "*")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], blocks: Sequence[int] = ()) -> str:
    """A table of finished HTML cells, in a box that scrolls by itself where it is wider than the page."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f"<tr{' class=block' if number in blocks else ''}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n"
        for number, row in enumerate(rows)
    )
    wide = " wide" if len(header) > 6 else ""
    inner = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="scroll{wide}" tabindex="0">{inner}</div>'
