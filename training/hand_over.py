"""Hands the exported model over to the Hub: looks before the first step whether that can be done, and does it at the end."""

import shlex
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub.utils import disable_progress_bars

from hub_cards.card import Assets, write_card
from hub_cards.push import push_model
from hub_cards.repository import PushError, prepare_repository
from training.run_settings import RunSettings


def check_push(training: RunSettings, unfit: str | None = None) -> None:
    """Makes the repository and tries the token before the first step: a run of days should not fail at its end.

    All ranks must call it, with an Accelerator started; the main process asks the Hub. Without `push_to_hub` nothing is asked.

    Args:
        training: Of the run.
        unfit: Why its model has no place on the Hub; None if it has.

    Raises:
        SystemExit: On all ranks, if `push` would fail.
    """
    if not training.push_to_hub:
        return
    is_main_process = PartialState().is_main_process
    problem = _problem(training, unfit) if is_main_process else None
    (problem,) = broadcast_object_list([problem])  # or the others would wait for the main process' next step
    if problem:
        raise SystemExit(problem if is_main_process else 1)


def _problem(training: RunSettings, unfit: str | None) -> str | None:
    if training.hub_model_id is None:
        return "push_to_hub=True needs the repository to push to: add --hub_model_id owner/name."
    if unfit:
        return f"push_to_hub=True pushes a RATS with its card, and {unfit}; leave push_to_hub out."
    try:
        prepare_repository(training.hub_model_id, training.hub_private_repo or None)
    except (PushError, ValueError) as error:
        return f"push_to_hub=True, hub_model_id={training.hub_model_id}: {error}"
    return None


def push(folder: Path, training: RunSettings, message: str, assets: Assets) -> str:
    """Writes the model folder's card, with what the run has drawn, and pushes the folder.

    For the main process, at the very end: an upload may take longer than other ranks wait for one that is late.

    Args:
        folder: The model folder.
        training: Of the run.
        message: Of the commit.
        assets: What the card shows.

    Returns:
        The commit's address.

    Raises:
        SystemExit: With where the model is and how to push it later, whatever went wrong: the training is not lost.
    """
    repo_id, private = training.hub_model_id, training.hub_private_repo
    assert repo_id is not None  # see check_push
    if training.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        write_card(folder, assets=assets, repo_id=repo_id)
        return push_model(folder, repo_id, private=private or None, message=message).url
    except Exception as error:
        kind = "" if isinstance(error, PushError) else f"{type(error).__name__}: "
        again = shlex.join(
            ["python", "-m", "hub_cards.push", str(folder), "--repo_id", repo_id, *["--private"] * bool(private)]
        )
        raise SystemExit(
            f"The training is done, but its model was not pushed to {repo_id}: {kind}{error}\n"
            f"The model folder is safe at {folder}. To push it later:\n  {again}"
        ) from error


def drawn(output: Path) -> Assets:
    """The curves and the newest picture of part maps, as far as the run has drawn them."""
    curves = output / "curves.png"
    return Assets(curves if curves.exists() else None, tuple(sorted(output.glob("parts/step_*.png"))[-1:]))
