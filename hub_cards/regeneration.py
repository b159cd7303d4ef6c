"""Writes a card anew without losing what a person wrote in it.

The generated sections of a card's body stand between markers. On regeneration each is replaced by the new section of the
same heading; everything else is a person's and stays where it was, between the same sections.
"""

import re

START = "<!-- generated: start -->"
END = "<!-- generated: end -->"
_SECTION = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)


def merge_body(generated: str, existing: str) -> str:
    """Put new generated sections into an existing body.

    A section that is no longer generated goes; one that is new comes after the section it follows in `generated`. A body
    without any section, written by hand, comes after them all.

    Args:
        generated: New body, all of it between markers.
        existing: Body of the card to replace; empty if there is none.

    Returns:
        The merged body; merging the same sections again gives the same bytes.

    Raises:
        ValueError: If the existing body's markers do not stand in pairs.
    """
    existing = existing.replace("\r\n", "\n")
    _check_pairs(existing)
    new = {_heading(section): section for section in _SECTION.findall(generated)}
    pieces: list[tuple[str | None, str]] = []  # (heading of a generated section, None for prose; text)
    for piece in re.split(f"({_SECTION.pattern})", existing, flags=re.DOTALL):
        if not piece.startswith(START):
            pieces.append((None, piece.strip("\n")))
        elif (heading := _heading(piece)) in new:
            pieces.append((heading, new[heading]))
    previous: str | None = None
    for heading, section in new.items():
        places = [place for place, _ in pieces]
        if heading not in places:
            pieces.insert(places.index(previous) + 1 if previous else 0, (heading, section))
        previous = heading
    return "\n\n".join(text for _, text in pieces if text.strip()) + "\n"


def prose_of(body: str) -> list[str]:
    """What stands outside of the generated sections, in order: a person's; errors as in `merge_body`."""
    body = body.replace("\r\n", "\n")
    _check_pairs(body)
    return [piece.strip() for piece in _SECTION.split(body) if piece.strip()]


def _heading(section: str) -> str:
    """The first heading; titles are one and the same, since the model's name in them may change."""
    match = re.search(r"^(#+) .*$", section, flags=re.MULTILINE)
    if match is None:
        return ""
    return "#" if match[1] == "#" else match[0].strip()


def _check_pairs(body: str) -> None:
    markers = re.findall(f"{re.escape(START)}|{re.escape(END)}", body)
    if markers != [START, END] * (len(markers) // 2):
        raise ValueError(
            f"The existing card's markers are {', '.join(markers)}; each {START} must be followed by its {END}, or one cannot "
            "tell a person's prose from the generated. Restore the missing marker, or move the card away."
        )
