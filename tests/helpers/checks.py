"""What a message must be, and ids for parametrized tests."""

from contextlib import contextmanager

import pytest

from fogzo.data.base import DataError


@contextmanager
def refused_with(*parts, kind=DataError):
    """Within: an error whose message is one line and holds ``parts``."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if str(part) not in message] == [], message


def assert_refused(answer, *named, by="error: "):
    """Of (exit code, output, complaint): code 1 and one line, which names the value, the rule or the way out."""
    code, _, err = answer
    assert (code, err.count("\n"), err[: len(by)]) == (1, 1, by), err
    assert [part for part in named if part not in err] == [], err


def readable(value):
    """``repr``, unless it shows a memory address: pytest-xdist wants the same ids in every process."""
    return None if " at 0x" in repr(value) else repr(value)
