"""What a person can put right is said in one sentence: the value, the rule and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Something that a person gave cannot be used; the message is one sentence that says what to do about it."""


class ArgumentError(UserError):
    """A value that its key cannot take.

    Attributes:
        key: the argument's name, with its group in front where there is one (``estimator.samples``).
        value: what was given.
        rule: what is wrong with it, and what is possible: ``is not possible: give a whole number of at least 1``.
    """

    def __init__(self, key: str, value: object, rule: str) -> None:
        super().__init__(key, value, rule)  # all three, so that it survives the way out of a worker process
        self.key, self.value, self.rule = key, value, rule

    def __str__(self) -> str:
        return f"{self.key}={self.value!r} {self.rule}"


@contextmanager
def keys_of(group: str) -> Iterator[None]:
    """Within: the keys of :class:`ArgumentError` get ``group`` in front: ``samples`` becomes ``estimator.samples``."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(f"{group}.{error.key}", error.value, error.rule) from None


@contextmanager
def explained(
    path: Path | str,
    way_out: str,
    *,
    problem: str = "cannot be read",
    kind: type[UserError] = UserError,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Within: errors of the file system and of parsers become one sentence, ``path problem (reason): way_out``.

    Args:
        path: the file or folder that is worked on; an ``OSError`` that names another one is about that one.
        problem: ``cannot be read``, ``cannot be written``, ``is damaged``.
        kind: the class to raise.
        also: kinds of errors to explain beside ``OSError``, ``EOFError`` and ``ValueError``, of a parser's own.

    Raises:
        UserError: as ``kind``.  Those from within pass as they are: they say it better.
    """
    known: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, *also)
    try:
        yield
    except UserError:
        raise
    except known as error:
        named = getattr(error, "filename", None)
        raise kind(f"{named or path} {problem} ({one_line(error)}): {way_out}") from error


def one_line(error: BaseException, longest: int = 200) -> str:
    """Return what ``error`` says as one line of at most ``longest`` characters, without its number and file name."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
