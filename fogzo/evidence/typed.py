"""Files that people edit, held against the types of dataclasses: what does not fit is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fogzo.errors import UserError

CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # of a dataclass of pydantic's


def checked(kind: Any, content: Any, parts: Mapping[str, Any]) -> Any:
    """Return plain keys and values as a ``kind``.

    Args:
        kind: a dataclass, or a mapping of some.
        parts: the dataclass whose keys stand below a key of ``content``; below "" where no other does.

    Raises:
        UserError: for the first of what is wrong: which key, what is given, and what it must be.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place, wrong = first["loc"], first.get("ctx", {}).get("error")
    if isinstance(wrong, UserError):
        raise UserError(": ".join(filter(None, [".".join(map(str, place[:-1])), str(wrong)])))
    key = ".".join(map(str, place))
    if first["type"] == "missing":
        raise UserError(f"{key} is missing: give it")
    if first["type"] == "unexpected_keyword_argument":
        part = next((parts[str(one)] for one in reversed(place[:-1]) if one in parts), parts[""])
        raise UserError(f"{key} is not known: choose one of {', '.join(one.name for one in fields(part))}")
    raise UserError(f"{key}={first['input']!r} is not possible: {first['msg']}")
