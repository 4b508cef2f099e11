"""Tables of typed entries.  A number in a table stays a number until ``render`` writes a page or a CSV file.

On a page an entry is a few spans of text; in a CSV file it is one value or several, by name and in full.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fogzo.evidence.compare import Difference
from fogzo.evidence.numbers import DASH, Effect, mean_std, p_text, short
from fogzo.evidence.words import Word
from fogzo.runs.schema import Metric

Value = str | int | float | None  # None is a dash on a page, and empty in a CSV file
DIFFERENCE = (
    "difference", "low", "high", "t_low", "t_high", "pairs", "p_sign_flip", "p_least", "p_t", "outcome",
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A piece of text on a page; ``target`` is where a link leads, ``word`` what gives a word its colour."""

    text: str
    kind: Literal["plain", "code", "link", "word"] = "plain"
    target: str = ""
    word: Word | None = None


@dataclass(frozen=True)
class Entry:
    """What stands in a cell of a table.

    Attributes:
        spans: its text on a page.
        values: its values in a CSV file, by what their names have behind the column's.
    """

    spans: Sequence[Span]
    values: Mapping[str, Value] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


def shown(value: Value, label: str) -> Entry:
    """Return a value that has another text on pages."""
    return Entry([Span(label)], {"": value})


def quantity(seeds: Collection[float], digits: int, sign: str = "", *, counted: bool = False) -> Entry:
    """Return a value for each seed, shown as ``mean ± std``, with their number where they are ``counted``."""
    mean, std = mean_std(list(seeds))
    text = DASH if mean is None else f"{mean:,.{digits}f}" + (f" ± {std:,.{digits}f}" if std is not None else "")
    text += (sign + (f" ({len(seeds)})" if counted else "")) if seeds else ""
    return Entry([Span(text)], {"mean": mean, "std": std, "n": len(seeds)})


def whole_effect(difference: Difference | None, metric: Metric) -> Entry:
    """Return a difference in full: its mean, interval and p; of one pair the mean alone."""
    d = difference
    if d is None:
        return Entry([Span(DASH)], dict.fromkeys(DIFFERENCE))
    alone = d.pairs == 1
    effect, after = Effect([d.mean], metric, None if alone else d.interval), " (1 pair)" if alone else f"; {p_text(d)}"
    numbers = (d.mean, d.low, d.high, d.t_low, d.t_high, d.pairs, d.p, d.least_p, d.p_t, str(d.outcome))
    values: dict[str, Value] = dict(zip(DIFFERENCE, numbers, strict=True))
    return Entry([Span(effect.directed() + after)], values)


def cost(mean: float | None, times: float | None = None) -> Entry:
    """Return a mean cost, and how many times the baseline's it is."""
    text = DASH if mean is None else short(mean) + (f" ({short(times)}×)" if times is not None else "")
    return shown(mean, text)


def verdict(*words: Word, before: str = "", after: str = "") -> Entry:
    """Return words, with what stands before each and after all of them."""
    spans = _joined([Span(f"{before}{word}", "word", word=word) for word in words] or [Span(before)], "; ")
    spans += [Span(after)] if after else []
    return Entry(spans, {"": Entry(spans).text})


def link(label: str, target: str) -> Entry:
    """Return a link."""
    return Entry([Span(label, "link", target)])


def commands(every: Sequence[str]) -> Entry:
    """Return commands that are run one after the other."""
    spans = _joined([Span(command, "code") for command in every], ", then ")
    return Entry(spans or [Span(DASH)], {"": " && ".join(every)})


def _joined(spans: Sequence[Span], between: str) -> list[Span]:
    return [one for span in spans for one in (Span(between), span)][1:]


@dataclass(frozen=True)
class Column:
    """A column: its header on pages and its name in the CSV file; ``None`` where it does not stand."""

    header: str | None
    name: str | None = None


Row = Sequence[tuple[Column, Entry | Value]]


@dataclass(frozen=True)
class Table:
    """Rows of entries, or of plain values, each with its column.

    Attributes:
        notes: stand below it on pages, in Markdown.
        blocks: numbers of the rows before which a rule stands.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    blocks: Sequence[int] = ()

    @property
    def header(self) -> list[str]:
        """The headers of what stands on pages; none of a table without rows."""
        return [column.header for column, _ in (self.rows or [[]])[0] if column.header is not None]

    def shown(self) -> list[list[Sequence[Span]]]:
        """Return the spans of every entry that stands on pages, row by row."""
        return [[_spans_of(entry) for column, entry in row if column.header is not None] for row in self.rows]

    def texts(self) -> list[list[str]]:
        """Return the plain text of every entry that stands on pages, row by row."""
        return [["".join(span.text for span in spans) for spans in row] for row in self.shown()]

    def values(self) -> list[dict[str, Value]]:
        """Return the values of the CSV file by name, row by row."""
        return [
            {
                column.name + name: value
                for column, entry in row
                if column.name is not None
                for name, value in (entry.values if isinstance(entry, Entry) else {"": entry}).items()
            }
            for row in self.rows
        ]


def _spans_of(entry: Entry | Value) -> Sequence[Span]:
    return entry.spans if isinstance(entry, Entry) else [Span(DASH if entry is None else str(entry))]


def on_page(entries: Mapping[str, Any]) -> Row:
    """Return a row of columns that stand on pages alone, entries or plain values by header."""
    return [(Column(header), entry) for header, entry in entries.items()]
