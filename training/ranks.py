"""What goes wrong on one rank ends all: nobody waits for a rank that has left."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import gather_object

T = TypeVar("T")


def on_all_ranks(do: Callable[[], T]) -> T:
    """Does it, and raises on every rank if any has failed; all ranks must call it.

    Raises:
        OSError: What this rank's `do` has raised.
        ValueError: Likewise; or, on a rank where it has not failed, with the words of one where it has.
    """
    problem: OSError | ValueError | None = None
    try:
        result = do()
    except (OSError, ValueError) as error:
        problem = error
    told = [message for message in gather_object([problem and str(problem)]) if message is not None]
    if told:
        raise problem or ValueError(told[0])
    return result
