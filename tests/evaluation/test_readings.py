"""Readings: from words and back, and refusals."""

import pytest

from evaluation.readings import PAPER, Reading


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("layer-1", PAPER),
        ("layer-2", Reading(-2)),
        ("before_norm", Reading(normed=False)),
        ("centered", Reading(centered=True)),
        ("layer-12+before_norm+centered", Reading(-12, False, True)),
        ("layer-2+means", Reading(-2, means=True)),
    ],
)
def test_words_make_a_reading_and_a_reading_its_words(text, reading):
    assert Reading.parse(text) == reading
    assert str(reading) == ("" if reading == PAPER else text)
    assert Reading.parse("+".join(text.split("+")[::-1])) == reading


@pytest.mark.parametrize("text", ["", "layer2", "layer-0", "layer-", "layer-2+layer-3", "centered+centered", "after_norm", "+"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=r"Reading .* is unknown; .*layer-2\+centered"):
        Reading.parse(text)
