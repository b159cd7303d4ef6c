"""Generated sections change, come and go; prose stays between the sections where a person put it."""

import pytest

from hub_cards.regeneration import END, START, merge_body


def section(heading, text="text"):
    return f"{START}\n{heading}\n\n{text}\n{END}"


def body(*pieces):
    return "\n\n".join(pieces) + "\n"


TITLE, USE, RESULTS, LICENCE = section("# rats"), section("## Use"), section("## Results"), section("## Licence")
GENERATED = body(TITLE, USE, RESULTS, LICENCE)


def test_a_new_card_is_the_generated_one_and_merging_again_changes_nothing():
    assert merge_body(GENERATED, "") == GENERATED == merge_body(GENERATED, GENERATED)


def test_sections_are_replaced_around_prose():
    existing = body("before", section("# old name", "old"), "between", section("## Use", "old"), "after\n\n\n  indented")
    merged = merge_body(body(TITLE, USE), existing)
    assert merged == body("before", TITLE, "between", USE, "after\n\n\n  indented")
    assert merge_body(body(TITLE, USE), merged) == merged


def test_a_section_without_data_goes_and_comes_back_after_the_one_before():
    without = merge_body(body(TITLE, USE, LICENCE), body(TITLE, USE, "mine", RESULTS, LICENCE))
    assert without == body(TITLE, USE, "mine", LICENCE)
    assert merge_body(GENERATED, without) == body(TITLE, USE, RESULTS, "mine", LICENCE)


def test_a_person_may_move_sections():
    moved = body(TITLE, RESULTS, "mine", USE, LICENCE)
    assert merge_body(GENERATED, moved) == moved


def test_windows_line_ends_are_understood():
    assert merge_body(GENERATED, body(TITLE, "mine", USE).replace("\n", "\r\n")) == body(TITLE, "mine", USE, RESULTS, LICENCE)


@pytest.mark.parametrize("broken", [f"{START}\nmine", f"mine\n{END}", f"{START}{START}{END}{END}", f"{END}{START}"])
def test_markers_that_do_not_pair_are_refused(broken):
    with pytest.raises(ValueError, match="must be followed by its"):
        merge_body(GENERATED, broken)
