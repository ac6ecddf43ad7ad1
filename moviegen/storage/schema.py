"""Checks what a file says of itself, such as its JSON, before anything relies on it."""

import math
import reprlib
from typing import Any

# numpy 1.26 has 32 axes at most, and counts bytes in 63 bits, of 16 a number at most.
_AXES, _NUMBERS = 32, 1 << 59


def check(value: Any, form: Any, where: str) -> None:
    """Raises ValueError, which names the place below `where`, unless `value` is of the form.

    A form is a type, or a function that says whether a value will do and whose docstring says what will; [the form of
    every item]; {key: its form} of the keys that must be there; {str: the form of every value}.
    """
    if isinstance(form, list | dict):
        check(value, type(form), where)
    if isinstance(form, list):
        for number, item in enumerate(value):
            check(item, form[0], f"{where}[{number}]")
    elif isinstance(form, dict):
        for key in value if str in form else form:
            if key not in value:
                raise ValueError(f"{where} has no {key}")
            check(value[key], form.get(str) or form[key], f"{where}/{key}")
    elif not (isinstance(value, form) if isinstance(form, type) else form(value)):
        expected = form.__name__ if isinstance(form, type) else form.__doc__
        raise ValueError(f"{where} is {reprlib.repr(value)}, expected {expected}")


def count(value: Any) -> bool:
    """a whole number from 0 on"""
    return type(value) is int and 0 <= value < 1 << 63


def number(value: Any) -> bool:
    """a finite number"""
    return type(value) in (int, float) and -1e300 < value < 1e300


def shape(value: Any) -> bool:
    """the sizes of an array's axes, 32 at most"""
    sizes = isinstance(value, list | tuple) and len(value) <= _AXES and all(map(count, value))
    return sizes and math.prod(max(1, size) for size in value) < _NUMBERS
