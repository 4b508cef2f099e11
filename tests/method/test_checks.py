"""What a constructor is given is checked where it enters, in one sentence that names key, value and rule."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from fogzo import checks
from fogzo.errors import ArgumentError, UserError, explained, keys_of


class Made:
    def __init__(
        self,
        layers: list,
        size: int = 1,
        rate: float = 0.1,
        on: bool = True,
        maybe: bool | None = None,
        grid: Literal["symmetric", "twos_complement"] = "symmetric",
        betas: tuple[float, float] = (0.9, 0.99),
        widths: "list[int]" = (),
        beta: "float | Callable[[int], float]" = 1.0,
        root: "Path | None" = None,
        text: str = "",
        hidden: "OnlyForTypeCheckers" = None,  # noqa: F821
        untyped=None,
    ):
        pass


FITTING = [
    *({"size": 3}, {"rate": 1}, {"rate": 1e-9}, {"on": False}, {"maybe": None}, {"maybe": True}, {"text": "no"}),
    *({"grid": "twos_complement"}, {"betas": [0.9, 1]}, {"widths": [1, 2]}, {"widths": ()}, {"root": "data"}),
    *({"beta": abs}, {"beta": 0}, {"hidden": 3}, {"untyped": "no"}, {"root": None}, {"layers": []}),
]


@pytest.mark.parametrize("arguments", FITTING, ids=str)
def test_what_fits_its_annotation_passes(arguments):
    checks.check_arguments(Made, arguments)


REFUSED = [
    *(({"on": value}, f"on={value!r} is not possible: give true or false") for value in ("no", "off", "nein", 1, None)),
    *(({"maybe": value}, f"maybe={value!r} is not possible: give true or false or null") for value in ("no", 0)),
    *(({"size": value}, f"size={value!r} is not possible: give a whole number") for value in (True, 1.0, "1", None)),
    *(({"rate": value}, f"rate={value!r} is not possible: give a number") for value in (True, "1e-3", None, [1])),
    ({"grid": "foo"}, "grid='foo' is not known: choose one of symmetric, twos_complement"),
    ({"betas": [0.9]}, "betas=[0.9] is not possible: give a list of 2"),
    ({"betas": [0.9, "no"]}, "betas=[0.9, 'no'] is not possible: give a list of 2"),
    ({"widths": [1, 2.5]}, "widths=[1, 2.5] is not possible: give a list, each a whole number"),
    ({"beta": "0.9"}, "beta='0.9' is not possible: give a number or a function"),
    ({"root": 3}, "root=3 is not possible: give a Path or null"),
    ({"text": False}, "text=False is not possible: give text"),
    ({"width": []}, "width is no argument of Made: it has layers, size"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=str)
def test_what_does_not_fit_is_refused_with_key_value_and_rule(arguments, message):
    with pytest.raises(UserError) as refusal:
        checks.check_arguments(Made, arguments)
    assert str(refusal.value).startswith(message)


def test_a_misspelt_argument_is_told_from_one_that_nothing_is_like():
    with pytest.raises(UserError, match=r"untyped; did you mean widths\?$"):
        checks.check_arguments(Made, {"width": []})
    with pytest.raises(UserError, match=r"untyped$"):
        checks.check_arguments(Made, {"xyz": []})


def test_arguments_that_a_function_hands_on_are_left_to_whom_it_hands_them():
    def handing_on(size: int, **options: object) -> None: ...

    checks.check_arguments(handing_on, {"size": 1, "other": "no"})


def test_a_key_gets_the_name_of_its_group_and_keeps_it_through_a_worker_process():
    with pytest.raises(ArgumentError, match=r"^estimator\.samples=0 is not possible") as refusal, keys_of("estimator"):
        checks.whole(0, "samples")
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)


@pytest.mark.parametrize(
    ("check", "fitting", "refused"),
    [
        (checks.flag, [True, False], ["no", "off", 1, 0, None]),
        (checks.whole, [1, 10**12], [0, 1.0, True, "1", None, math.nan]),
        (checks.positive, [1, 1e-300], [0, -1, math.inf, math.nan, True, "1", None]),
        (checks.share, [0, 1, 0.5], [-0.1, 1.1, math.nan, True, "1", None]),
        (lambda value, name: checks.number(value, name, lowest=0), [0, 7.5], [-1, math.inf, math.nan, True, "1"]),
        (lambda value, name: checks.whole(value, name, lowest=2, highest=8), [2, 8], [1, 9]),
        (lambda value, name: checks.choice(value, name, ("a", 1)), ["a", 1], ["b", True, None]),
    ],
)
def test_a_check_returns_what_fits_and_names_what_does_not(check, fitting, refused):
    for value in fitting:
        assert check(value, "key") == value
    for value in refused:
        with pytest.raises(UserError) as refusal:
            check(value, "key")
        assert str(refusal.value).startswith(f"key={value!r} ")


def test_errors_of_files_and_parsers_become_one_sentence(tmp_path):
    class DataError(UserError):
        pass

    missing = tmp_path / "none.json"
    with pytest.raises(DataError) as refusal, explained(missing, "make it again", kind=DataError):
        missing.read_text()
    assert str(refusal.value) == f"{missing} cannot be read (No such file or directory): make it again"
    message = r"^table is damaged \(of two lines\): run it again$"
    with pytest.raises(UserError, match=message), explained("table", "run it again", problem="is damaged"):
        raise ValueError("of two\nlines")
    with pytest.raises(UserError, match=r"^better said$"), explained("table", "run it again"):
        raise UserError("better said")
    with pytest.raises(ZeroDivisionError), explained("table", "run it again"):
        raise ZeroDivisionError
