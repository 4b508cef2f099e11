"""Tables of typed entries.  A number in a table stays a number until ``render`` writes a page or a CSV file.

On a page an entry is a few spans of text; in a CSV file it is one value or several, by name and in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fogzo.evidence.compare import Difference
from fogzo.evidence.numbers import DASH, directed_range, mean_std, p_text, short, signed, spread
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
    kind: Literal["plain", "strong", "code", "link", "word"] = "plain"
    target: str = ""
    word: Word | None = None


class Entry:
    """What stands in a cell of a table."""

    def spans(self) -> list[Span]:
        """Return its text for a page."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans())

    def values(self, name: str) -> dict[str, Value]:
        """Return its values for a CSV file, by names that are made of its column's."""
        raise NotImplementedError


@dataclass(frozen=True)
class Shown(Entry):
    """A value that has another text on pages."""

    value: Value
    label: str

    def spans(self) -> list[Span]:
        return [Span(self.label)]

    def values(self, name: str) -> dict[str, Value]:
        return {name: self.value}


@dataclass(frozen=True)
class Quantity(Entry):
    """A value for each seed, shown as ``mean ± std``, with their number where they are ``counted``."""

    seeds: Sequence[float]
    digits: int
    sign: str = ""
    counted: bool = False

    def spans(self) -> list[Span]:
        count = f" ({len(self.seeds)})" if self.counted else ""
        return [Span(spread(self.seeds, self.digits) + (self.sign + count if self.seeds else ""))]

    def values(self, name: str) -> dict[str, Value]:
        mean, std = mean_std(self.seeds)
        return {f"{name}mean": mean, f"{name}std": std, f"{name}n": len(self.seeds)}


@dataclass(frozen=True)
class Cost(Entry):
    """A mean cost, and how many times the baseline's it is."""

    mean: float | None
    times: float | None = None

    def spans(self) -> list[Span]:
        if self.mean is None:
            return [Span(DASH)]
        return [Span(short(self.mean) + (f" ({short(self.times)}×)" if self.times is not None else ""))]

    def values(self, name: str) -> dict[str, Value]:
        return {name: self.mean}


@dataclass(frozen=True)
class Effect(Entry):
    """Paired differences of two methods: one, or the smallest to the greatest of several; positive is better.

    Attributes:
        means: of one or several settings; none where there is nothing to compare.
        interval: of the mean, or how far all intervals reach.
        unit: whether it is shown.
        outcome, after: what stands behind the numbers.
        strong: in bold.
        difference: the one that stands in a CSV file.
        directed: whether the direction is said in words, as in "92.82 ppl worse".
    """

    means: Sequence[float]
    metric: Metric
    interval: tuple[float, float] | None = None
    unit: bool = True
    outcome: Word | None = None
    after: str = ""
    strong: bool = False
    difference: Difference | None = None
    directed: bool = False

    def spans(self) -> list[Span]:
        return [Span(self._text(), "strong" if self.strong else "plain")]

    def _text(self) -> str:
        if not self.means:
            return DASH
        low, high, digits = min(self.means), max(self.means), self.metric.digits
        if self.directed:
            text = directed_range(low, high, digits, self.metric.unit)
            interval = directed_range(*self.interval, digits) if self.interval else ""
        else:
            text = " to ".join(dict.fromkeys([signed(low, digits), signed(high, digits)]))
            text += f" {self.metric.unit}" if self.unit else ""
            interval = ", ".join(signed(end, digits) for end in self.interval or ())
        said = self.directed and self.outcome in (Word.BETTER, Word.WORSE)
        outcome = f", {self.outcome.short}" if self.outcome and not said else ""
        return text + (f" [{interval}]" if interval else "") + outcome + self.after

    def values(self, name: str) -> dict[str, Value]:
        d = self.difference
        if d is None:
            return dict.fromkeys(DIFFERENCE)
        numbers = (d.mean, d.low, d.high, d.t_low, d.t_high, d.pairs, d.p, d.least_p, d.p_t, str(d.outcome))
        return dict(zip(DIFFERENCE, numbers, strict=True))


def whole_effect(difference: Difference | None, metric: Metric) -> Effect:
    """Return a difference in full: its mean, interval and p; of one pair the mean alone."""
    if difference is None:
        return Effect([], metric)
    alone = difference.pairs == 1
    interval, after = (None, " (1 pair)") if alone else (difference.interval, f"; {p_text(difference)}")
    return Effect([difference.mean], metric, interval, unit=False, after=after, difference=difference)


@dataclass(frozen=True)
class Words(Entry):
    """Words of a verdict, with what stands before each and after all of them."""

    words: Sequence[Word] = ()
    before: str = ""
    after: str = ""

    def spans(self) -> list[Span]:
        words = [[Span(f"{self.before}{word}", "word", word=word)] for word in self.words]
        after = [Span(self.after)] if self.after else []
        return _joined(words or [[Span(self.before)]], "; ") + after

    def values(self, name: str) -> dict[str, Value]:
        return {name: self.text}


@dataclass(frozen=True)
class Several(Entry):
    """Several entries in one cell."""

    entries: Sequence[Entry | Value]
    between: str = ", "

    def spans(self) -> list[Span]:
        return _joined([spans_of(entry) for entry in self.entries], self.between) or [Span(DASH)]


@dataclass(frozen=True)
class Link(Entry):
    label: str
    target: str

    def spans(self) -> list[Span]:
        return [Span(self.label, "link", self.target)]


@dataclass(frozen=True)
class Commands(Entry):
    """Commands that are run one after the other."""

    commands: Sequence[str]

    def spans(self) -> list[Span]:
        return _joined([[Span(command, "code")] for command in self.commands], ", then ") or [Span(DASH)]

    def values(self, name: str) -> dict[str, Value]:
        return {name: " && ".join(self.commands)}


def _joined(parts: Sequence[Sequence[Span]], between: str) -> list[Span]:
    return [span for part in parts for span in (Span(between), *part)][1:]


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

    def shown(self) -> list[list[list[Span]]]:
        """Return the spans of every entry that stands on pages, row by row."""
        return [[spans_of(entry) for column, entry in row if column.header is not None] for row in self.rows]

    def texts(self) -> list[list[str]]:
        """Return the plain text of every entry that stands on pages, row by row."""
        return [["".join(span.text for span in spans) for spans in row] for row in self.shown()]

    def values(self) -> list[dict[str, Value]]:
        """Return the values of the CSV file by name, row by row."""
        return [
            {name: value for column, entry in row for name, value in values_of(entry, column.name).items()}
            for row in self.rows
        ]

    def directed(self) -> Table:
        """Return the table with the direction of every difference in words."""
        return replace(self, rows=[[(column, _directed(entry)) for column, entry in row] for row in self.rows])


def _directed(entry: Entry | Value) -> Entry | Value:
    if isinstance(entry, Several):
        return replace(entry, entries=[_directed(part) for part in entry.entries])
    return replace(entry, directed=True) if isinstance(entry, Effect) else entry


def spans_of(entry: Entry | Value) -> list[Span]:
    """Return the text of an entry, or of a plain value, for a page."""
    return entry.spans() if isinstance(entry, Entry) else [Span(DASH if entry is None else str(entry))]


def values_of(entry: Entry | Value, name: str | None) -> dict[str, Value]:
    """Return the values of an entry, or a plain value, for a CSV file; none if its column has no name there."""
    if name is None:
        return {}
    return entry.values(name) if isinstance(entry, Entry) else {name: entry}


def on_page(headers: Sequence[str], entries: Sequence[Entry | Value]) -> Row:
    """Return a row of columns that stand on pages alone."""
    return [(Column(header), entry) for header, entry in zip(headers, entries, strict=True)]
