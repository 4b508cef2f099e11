"""The words for what records say, each with its tone: good, bad or open."""

from __future__ import annotations

from enum import StrEnum


class Word(StrEnum):
    """What a comparison, a claim or a published cell came to; ``tone``: how it is coloured."""

    tone: str

    def __new__(cls, text: str, tone: str = "open") -> Word:
        """Return a word that is its own text."""
        word = str.__new__(cls, text)
        word._value_, word.tone = text, tone
        return word

    BETTER = "better", "good"
    WORSE = "worse", "bad"
    UNDECIDED = "not to be told apart"
    TOO_FEW = "too few pairs"
    NOT_RUN = "not run"
    DIVERGED = "diverged", "bad"

    # several settings together
    BETTER_IN_PART = "better in part", "good part"
    WORSE_IN_PART = "worse in part", "bad part"
    MIXED = "mixed"
    CONFIRMED = "confirmed", "good"
    CONFIRMED_IN_PART = "confirmed in part", "good part"
    OPPOSITE = "opposite", "bad"
    OPPOSITE_IN_PART = "opposite in part", "bad part"

    # a ratio of compute
    LARGER_HERE = "larger here"
    SMALLER_HERE = "smaller here"
    NOT_REACHED_HERE = "not reached here"

    # a published cell
    REPRODUCED = "reproduced", "good"
    DEVIATES = "deviates", "bad"
    SAME_DIRECTION = "same direction", "good"
    OPPOSITE_DIRECTION = "opposite direction", "bad"
    NOTHING_TO_COMPARE = "nothing to compare with"

    @property
    def short(self) -> str:
        """The word where there is little room."""
        return "open" if self is Word.UNDECIDED else str(self)


OUTCOMES = (Word.BETTER, Word.WORSE, Word.UNDECIDED, Word.TOO_FEW)  # of one comparison
PARTS = {
    Word.BETTER: Word.BETTER_IN_PART,
    Word.WORSE: Word.WORSE_IN_PART,
    Word.CONFIRMED: Word.CONFIRMED_IN_PART,
    Word.OPPOSITE: Word.OPPOSITE_IN_PART,
}
