"""Ids for parametrized tests."""


def readable(value):
    """``repr``, unless it shows a memory address: pytest-xdist wants the same ids in every process."""
    return None if " at 0x" in repr(value) else repr(value)
