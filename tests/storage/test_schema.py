import re

import pytest

from moviegen.storage import schema

FORM = {"step": schema.count, "meta": dict, "shapes": {str: schema.shape}, "scale": [schema.number]}
GOOD = {"step": 3, "meta": {"any": None}, "shapes": {"a": [2, 3], "b": []}, "scale": [1.0, -2], "more": 5}


def test_what_has_the_form_passes_and_may_hold_more():
    schema.check(GOOD, FORM, "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "it/step is -1, expected a whole number from 0 on"),
        ({"step": True}, "it/step is True"),
        ({"step": 2.0}, "it/step is 2.0"),
        ({"step": 1 << 63}, "it/step is 9223372036854775808"),
        ({"meta": []}, "it/meta is [], expected dict"),
        ({"shapes": {"a": [2, -3]}}, "it/shapes/a is [2, -3], expected the sizes of an array's axes, 32 at most"),
        ({"shapes": {"a": [1] * 33}}, "it/shapes/a is [1, 1, 1, 1, 1, 1, ...]"),
        ({"shapes": {"a": [0, 1 << 40, 1 << 40]}}, "it/shapes/a is [0, "),
        ({"shapes": "text"}, "it/shapes is 'text', expected dict"),
        ({"scale": [1.0, float("nan")]}, "it/scale[1] is nan, expected a finite number"),
        ({"scale": [10**400]}, "it/scale[0] is 1000"),
        ({"scale": "text"}, "it/scale is 'text', expected list"),
    ],
)
def test_what_has_not_is_named_with_its_place(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schema.check(GOOD | change, FORM, "it")
    with pytest.raises(ValueError, match="it is 5, expected dict"):
        schema.check(5, FORM, "it")
    with pytest.raises(ValueError, match="it has no step"):
        schema.check({}, FORM, "it")
