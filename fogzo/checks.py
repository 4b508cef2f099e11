"""Values are checked where they enter: each check returns the value, or raises an error that names key, value and rule.

``no``, ``off`` and ``nein`` reach a constructor as strings, and strings are true; ``check_arguments`` holds any
constructor's arguments against its annotations, so that no key needs a check of its kind written for it.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from fogzo.errors import ArgumentError, UserError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def flag(value: Any, name: str) -> bool:
    """Return ``value`` if it is ``True`` or ``False``.

    >>> flag("no", "quantizer.per_channel")
    Traceback (most recent call last):
    fogzo.errors.ArgumentError: quantizer.per_channel='no' is not possible: give true or false
    """
    if value is not True and value is not False:
        raise ArgumentError(name, value, "is not possible: give true or false")
    return bool(value)


def whole(value: Any, name: str, *, lowest: int = 1, highest: int | None = None, hint: str = "") -> int:
    """Return ``value`` if it is a whole number of at least ``lowest`` and at most ``highest``; ``hint`` ends the error.

    >>> whole(2.5, "samples")
    Traceback (most recent call last):
    fogzo.errors.ArgumentError: samples=2.5 is not possible: give a whole number of at least 1
    """
    if not _fits(value, int) or value < lowest or (highest is not None and value > highest):
        bounds = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ArgumentError(name, value, f"is not possible: give a whole number {bounds}{hint}")
    return int(value)


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes of a network that are not positive whole numbers, by name and value.

    >>> check_sizes(width=128, heads=0)
    Traceback (most recent call last):
    fogzo.errors.ArgumentError: heads=0 is not possible: give a whole number from 1 to 2147483648
    """
    for name, value in sizes.items():
        whole(value, name, highest=2**31)


def number(value: Any, name: str, *, lowest: float = -math.inf, highest: float = math.inf, hint: str = "") -> float:
    """Return ``value`` if it is a finite number from ``lowest`` to ``highest``; ``hint`` ends the error."""
    if not _fits(value, float) or not math.isfinite(value) or not lowest <= value <= highest:
        bounds = [f"at least {lowest:g}"] * (lowest > -math.inf) + [f"at most {highest:g}"] * (highest < math.inf)
        given = f" of {' and '.join(bounds)}" if bounds else ""
        raise ArgumentError(name, value, f"is not possible: give a number{given}{hint}")
    return float(value)


def positive(value: Any, name: str, *, hint: str = "") -> float:
    """Return ``value`` if it is a finite number above 0; ``hint`` ends the error."""
    if not _fits(value, float) or not 0 < value < math.inf:
        raise ArgumentError(name, value, f"is not possible: give a positive number{hint}")
    return float(value)


def share(value: Any, name: str, *, hint: str = "") -> float:
    """Return ``value`` if it is a number in [0, 1]; ``hint`` ends the error."""
    if not _fits(value, float) or not 0 <= value <= 1:  # also for nan
        raise ArgumentError(name, value, f"is not possible: give a number in [0, 1]{hint}")
    return float(value)


def choice(value: T, name: str, choices: Collection[T], *, hint: str = "") -> T:
    """Return ``value`` if it is one of ``choices``; ``hint`` ends the error.

    >>> choice("l2", "guide_norm", ("global", "rms"))
    Traceback (most recent call last):
    fogzo.errors.ArgumentError: guide_norm='l2' is not known: choose one of global, rms
    """
    if not any(value == known and type(value) is type(known) for known in choices):
        raise ArgumentError(name, value, f"is not known: choose one of {', '.join(map(str, choices))}{hint}")
    return value


def choices_of(literal: Any) -> tuple[Any, ...]:
    """Return the values of a ``Literal``, in their order."""
    return get_args(literal)


def check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse ``arguments`` that ``make`` does not have, or that are not of the kinds that its annotations name.

    Known are ``bool``, ``int``, ``float`` (whole numbers too), ``None``, ``Literal``, lists, tuples, classes,
    mappings, callables and their unions; anything else passes, for ``make`` to judge.  Ranges are ``make``'s own.

    Raises:
        ArgumentError: for a value of another kind.
        UserError: for an argument that ``make`` lacks, with the ones that it has.
    """
    parameters = inspect.signature(make).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in arguments.items():
        if name in parameters:
            annotation = _evaluated(parameters[name].annotation, make)
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ArgumentError(name, value, "has more than 63 bits, which no tensor holds: give a smaller number")
            if not _fits(value, annotation):
                raise ArgumentError(name, value, _rule(annotation))
        elif not takes_any:
            meant = did_you_mean(name, parameters).replace(":", ";")
            raise UserError(f"{name} is no argument of {make.__name__}: it has {', '.join(parameters)}{meant}")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return ``: did you mean KEY?`` for the one of ``known`` that resembles ``key``, or nothing if none does.

    A key of a group resembles keys of that group; one without a group also ``estimator.beta_min``.
    """
    listed = list(known)
    group, _, end = key.rpartition(".")
    for others in ([other for other in listed if other.rpartition(".")[0] == group], [] if group else listed):
        ends = {other.rpartition(".")[2]: other for other in others}
        if similar := get_close_matches(end, ends, 1, 0.65):
            return f": did you mean {ends[similar[0]]}?"
    return ""


def options_of(other: Callable[..., Any], *, without: Collection[str] = ()) -> Callable[[F], F]:
    """Return a decorator of functions whose ``**options`` are keywords of ``other``: their signature then says so.

    ``without``: keywords that they leave out.
    """

    def declared(function: F) -> F:
        signature = inspect.signature(function, eval_str=True)
        named = {name: one for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD}
        more = dict(inspect.signature(other, eval_str=True).parameters)
        more = {name: one for name, one in more.items() if name not in {*named, *without}}
        together = {**named, **more}
        function.__signature__ = signature.replace(parameters=list(together.values()))  # type: ignore[attr-defined]
        return function

    return declared


def _evaluated(annotation: Any, make: Callable[..., Any]) -> Any:
    """Return what an annotation written as text means; ``Any`` for a name that only type checkers import."""
    if not isinstance(annotation, str):
        return annotation
    function = inspect.unwrap(make.__init__ if isinstance(make, type) else make)  # type: ignore[misc]
    try:
        return eval(annotation, getattr(function, "__globals__", {}))
    except (NameError, AttributeError, TypeError):
        return Any


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is bool:
        return isinstance(value, bool)
    if annotation in (int, float):  # numpy's count too
        return isinstance(value, Integral if annotation is int else Real) and not isinstance(value, bool)
    if annotation is Path:
        return isinstance(value, str | Path)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin in SEQUENCES:
        return isinstance(value, list | tuple) and _all_fit(value, parts, fixed=origin is tuple and ... not in parts)
    if origin is collections.abc.Mapping:
        return isinstance(value, collections.abc.Mapping)
    if annotation is None or _is_class(annotation):
        return isinstance(value, annotation or types.NoneType)
    return True


def _all_fit(values: Sequence[Any], parts: Sequence[Any], *, fixed: bool) -> bool:
    if fixed:
        return len(values) == len(parts) and all(map(_fits, values, parts))
    return not parts or all(_fits(value, parts[0]) for value in values)


def _is_class(annotation: Any) -> bool:
    """Return whether values can be held against it: a protocol or a missing annotation says nothing at run time."""
    return (
        isinstance(annotation, type)
        and annotation not in (Any, inspect.Parameter.empty)
        and not getattr(annotation, "_is_protocol", False)
    )


def _rule(annotation: Any) -> str:
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if all(get_origin(part) is Literal for part in parts):
        return f"is not known: choose one of {', '.join(str(value) for part in parts for value in get_args(part))}"
    return f"is not possible: give {' or '.join(dict.fromkeys(map(_words, parts)))}"


def _words(annotation: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if origin is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Mapping:
        return "keys with values"
    if origin in SEQUENCES:
        parts = get_args(annotation)
        if origin is tuple and ... not in parts:
            return f"a list of {len(parts)}"
        return f"a list, each {_words(parts[0])}" if parts and parts[0] is not Any else "a list"
    return words.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")
