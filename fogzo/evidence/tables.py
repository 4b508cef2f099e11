"""Tables of text, and how numbers stand in them; Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fogzo.evidence.compare import Difference

DASH = "–"
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


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; ``notes`` stand below.  ``blocks`` numbers the rows before which a rule stands."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    blocks: Sequence[int] = ()

    def markdown(self) -> str:
        """A pipe table and its notes."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return text + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def latex(self) -> str:
        """A ``tabular`` with booktabs' rules; the notes are comments, for whoever writes the caption."""
        lines = [*TEX_NEEDS, rf"\begin{{tabular}}{{{'l' * len(self.header)}}}", r"\toprule"]
        lines += [_tex_row(self.header), r"\midrule"]
        for number, row in enumerate(self.rows):
            if number and number in self.blocks:
                lines.append(r"\midrule")
            lines.append(_tex_row(row))
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += ["% " + " ".join(note.split()) for note in self.notes]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Comma-separated values, without the notes."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(tex(cell) for cell in cells) + r" \\"


def tex(text: str) -> str:
    r"""Text with what LaTeX takes for commands escaped.

    >>> tex("5 % ± 1")
    '5 \\% $\\pm$ 1'
    >>> print(tex("0.1 ε̄"))
    0.1 $\bar\varepsilon$
    """
    plain = re.sub(r"[`*]", "", text)
    return re.sub("|".join(map(re.escape, TEX)), lambda found: TEX[found[0]], plain)


def signed(value: float, digits: int) -> str:
    """A number with its sign, a true minus.

    >>> signed(-0.25, 1), signed(0.04, 1)
    ('−0.2', '0.0')
    """
    text = f"{value:+,.{digits}f}"
    return text[1:] if not any(digit in text for digit in "123456789") else text.replace("-", "−")


def p_text(difference: Difference) -> str:
    """The sign-flip p-value, and that it cannot be smaller where it is at its least value.

    In three decimals: in two, 0.0469 and 0.0547 were both 0.05, one of them told apart and one not.

    >>> p_text(Difference(5, 1.0, 0.5, 1.5, 0.4, 1.6, 0.0625, 0.0625, 0.01))
    'p = 0.062 (least of 5 pairs)'
    >>> p_text(Difference(8, 1.0, -0.5, 1.5, -0.6, 1.6, 0.0546875, 0.0078125, 0.06))
    'p = 0.055'
    """
    least = f" (least of {difference.pairs} pairs)" if difference.p <= difference.least_p * (1 + 1e-9) else ""
    return f"p = {difference.p:.3f}{least}" if difference.p >= 0.001 else f"p = {difference.p:.2g}{least}"


def difference_text(difference: Difference | None, digits: int) -> str:
    """``mean [interval]; p``; with one pair the mean alone.

    >>> difference_text(Difference(3, 1.0, 0.5, 1.5, -0.3, 2.3, 0.5, 0.25, 0.2), 1)
    '+1.0 [−0.3, +2.3]; p = 0.500'
    """
    if difference is None:
        return DASH
    if difference.pairs == 1:
        return f"{signed(difference.mean, digits)} (1 pair)"
    return f"{interval_text(difference, digits)}; {p_text(difference)}"


def interval_text(difference: Difference, digits: int) -> str:
    """``mean [interval]``."""
    mean, low, high = (signed(value, digits) for value in (difference.mean, *difference.interval))
    return f"{mean} [{low}, {high}]"


def short(value: float) -> str:
    """Three digits, for costs.

    >>> short(123456.0), short(0.001234), short(6.39e9), short(12.0)
    ('123,456', '0.00123', '6.39e+09', '12')
    """
    if value >= 1e7:
        return f"{value:.2e}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
