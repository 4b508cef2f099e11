"""How a command refuses."""


def assert_refused(answer, *named, by="error: "):
    """Exit code 1 and one line, which names the value, the rule or the way out."""
    code, _, err = answer
    assert (code, err.count("\n"), err[: len(by)]) == (1, 1, by), err
    assert [part for part in named if part not in err] == [], err
