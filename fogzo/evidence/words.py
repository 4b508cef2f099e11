"""The words for what records say, each with its tone: good, bad or open."""

from __future__ import annotations

from enum import StrEnum


class Word(StrEnum):
    """What a comparison, a claim or a published cell came to."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "not to be told apart"
    TOO_FEW = "too few pairs"
    NOT_RUN = "not run"
    DIVERGED = "diverged"

    # several settings together
    BETTER_IN_PART = "better in part"
    WORSE_IN_PART = "worse in part"
    MIXED = "mixed"
    CONFIRMED = "confirmed"
    CONFIRMED_IN_PART = "confirmed in part"
    OPPOSITE = "opposite"
    OPPOSITE_IN_PART = "opposite in part"

    # a ratio of compute
    LARGER_HERE = "larger here"
    SMALLER_HERE = "smaller here"
    NOT_REACHED_HERE = "not reached here"

    # a published cell
    REPRODUCED = "reproduced"
    DEVIATES = "deviates"
    SAME_DIRECTION = "same direction"
    OPPOSITE_DIRECTION = "opposite direction"
    NOTHING_TO_COMPARE = "nothing to compare with"

    @property
    def short(self) -> str:
        """The word where there is little room."""
        return "open" if self is Word.UNDECIDED else str(self)

    @property
    def in_part(self) -> bool:
        return self in PARTS.values()

    @property
    def tone(self) -> str:
        """How it is coloured: good, bad or open."""
        return "good" if self in GOOD else "bad" if self in BAD else "open"


OUTCOMES = (Word.BETTER, Word.WORSE, Word.UNDECIDED, Word.TOO_FEW)  # of one comparison
PARTS = {
    Word.BETTER: Word.BETTER_IN_PART,
    Word.WORSE: Word.WORSE_IN_PART,
    Word.CONFIRMED: Word.CONFIRMED_IN_PART,
    Word.OPPOSITE: Word.OPPOSITE_IN_PART,
}
GOOD = {
    Word.BETTER, Word.BETTER_IN_PART, Word.CONFIRMED, Word.CONFIRMED_IN_PART, Word.REPRODUCED, Word.SAME_DIRECTION,
}  # fmt: skip
BAD = {
    Word.WORSE, Word.WORSE_IN_PART, Word.OPPOSITE, Word.OPPOSITE_IN_PART, Word.DEVIATES, Word.OPPOSITE_DIRECTION,
    Word.DIVERGED,
}  # fmt: skip
