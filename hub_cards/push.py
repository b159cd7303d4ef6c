"""Pushes a model folder to the Hub in one commit: model, code, processor, pipeline, handler, results and card.

    python -m hub_cards.push MODEL_FOLDER --repo_id OWNER/NAME [--results scores.json ...]
    python -m hub_cards.push --repo_id OWNER/NAME --results_only --results scores.json ...

Nothing in the folder is changed, so that after a failure the same command goes on. A second push of the same makes no commit;
results that others pushed meanwhile stay, and so does what a person wrote into the card.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from hub_cards.changes import Prose, UnknownLicenceError, changes_of_model, changes_of_results, describe_change
from hub_cards.measurement_kinds import WRITERS
from hub_cards.repository import (
    MAIN,
    Change,
    PushError,
    Snapshot,
    check_name,
    check_privacy,
    check_rights,
    commit,
    look,
    patiently,
    prepare_repository,
    refusals_told,
)


@dataclass(frozen=True)
class Pushed:
    """What a push has done.

    Attributes:
        url: Of the commit or pull request; without a change of the commit that is there.
        change: What was changed; empty if all was there already.
    """

    url: str
    change: Change

    def __str__(self) -> str:
        if not self.change:
            return f"Nothing to push, all is there: {self.url}"
        return f"{len(self.change.additions) + len(self.change.deletions)} files changed: {self.url}"


def push_model(
    folder: str | Path,
    repo_id: str,
    results: Sequence[str | Path] = (),
    *,
    any_model: bool = False,
    eval_results: Mapping[str, str] | None = None,
    revision: str = MAIN,
    create_pr: bool = False,
    private: bool | None = None,
    prose: Prose | None = None,
    licence: str | None = None,
    message: str = "Upload model",
) -> Pushed:
    """Push a model folder, with its card made from what is measured here and there.

    Args:
        folder: Folder that save_pretrained wrote, with weights and image processor; it is left as it is.
        repo_id: Repository of models, owner/name; made if it is not there. What else is in it stays, but for results and
            pictures of other weights.
        results: Records of evaluations, beside those that the folder and the repository hold.
        any_model: Accept results of other weights, see `hub_cards.results.adopt`.
        eval_results: Tasks of leaderboards and their scores, see `hub_cards.results.as_eval_results`.
        revision: Branch to push to; made from main if it is not there.
        create_pr: Open a pull request for main instead, for which one need not have the right to write; the repository must
            be there. None is opened where an open one of the same user makes the same change.
        private: Make the repository private if it is made; None leaves that to its owner's default.
        prose: Whose card's own prose and metadata to keep, where folder and repository both have some that differ.
        licence: Of the weights, as an identifier of the Hub. Weights that others trained need one, from their repository's
            card or from here.
        message: Of the commit.

    Raises:
        FileNotFoundError: If it is no model folder, or a record is missing.
        ValueError: If the folder holds pickles or secrets, a record is not of this model, both cards have prose of their own
            and `prose` is None, or a name is malformed.
        PushError: If the Hub cannot be reached or refuses.
    """
    check_name(repo_id)
    _check_target(revision, create_pr, private)
    work_out = changes_of_model(Path(folder), repo_id, results, any_model, eval_results, prose, licence)
    try:
        work_out(Snapshot(repo_id))  # what is refused whatever is there leaves no empty repository
    except UnknownLicenceError:
        work_out(_as_it_is(repo_id, revision, create_pr))  # whose card may name one
    if create_pr:
        check_rights(repo_id, write=False)
    else:
        prepare_repository(repo_id, private)
    return Pushed(*commit(repo_id, work_out, message, revision, create_pr))


def push_results(
    repo_id: str,
    results: Sequence[str | Path],
    *,
    any_model: bool = False,
    eval_results: Mapping[str, str] | None = None,
    revision: str = MAIN,
    create_pr: bool = False,
    message: str = "Add results",
) -> Pushed:
    """Add results to a model that is on the Hub, and to its card; arguments and errors as in `push_model`."""
    _check_target(revision, create_pr)
    check_rights(repo_id, write=not create_pr)
    work_out = changes_of_results(repo_id, results, any_model, eval_results)
    return Pushed(*commit(repo_id, work_out, message, revision, create_pr))


def _check_target(revision: str, create_pr: bool, private: bool | None = None) -> None:
    if create_pr and revision != MAIN:
        raise ValueError(f"create_pr opens a pull request for main, and revision={revision} was given; leave one of them out.")
    if create_pr and private:
        raise ValueError(
            "create_pr proposes a change to a repository that is there, and private makes one; leave one of them out."
        )
    if re.fullmatch("[0-9a-f]{7,40}", revision):
        raise ValueError(f"revision={revision} looks like a commit; only a branch can be pushed to. Name one.")


def dry_run(
    repo_id: str,
    work_out: Callable[[Snapshot], Change],
    revision: str = MAIN,
    create_pr: bool = False,
    private: bool | None = None,
) -> str:
    """What a push would do; nothing is changed, on the Hub or here. Arguments and errors as in `push_model`."""
    check_name(repo_id)
    _check_target(revision, create_pr, private)
    snapshot = _as_it_is(repo_id, revision, create_pr)
    with refusals_told(repo_id):
        if snapshot.commit is not None:
            check_privacy(repo_id, private)
        return describe_change(snapshot, work_out(snapshot))


def _as_it_is(repo_id: str, revision: str, must_exist: bool) -> Snapshot:
    """The branch, or what it would be made from: main, or an empty repository."""
    with refusals_told(repo_id):
        try:
            return patiently(lambda: look(repo_id, revision))
        except RevisionNotFoundError:
            return patiently(lambda: look(repo_id))
        except RepositoryNotFoundError:
            if must_exist:
                raise
            return Snapshot(repo_id)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `push_model` and `push_results`; what the user can mend ends it with a message and no traceback."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.folder is None) != given.results_only:
        parser.error("name a MODEL_FOLDER, or --results_only for a model that is on the Hub.")
    if given.results_only and (given.private or given.prose or given.licence):
        parser.error("--private, --prose and --licence are for a MODEL_FOLDER; leave them out with --results_only.")
    if given.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    of_results = {"any_model": given.any_model, "eval_results": dict(given.eval_results)}
    of_folder = {"prose": given.prose, "licence": given.licence}
    shared = {**of_results, "revision": given.revision, "create_pr": given.create_pr}
    if given.commit_message is not None:
        shared["message"] = given.commit_message
    try:
        if given.dry_run:
            if given.results_only:
                work_out = changes_of_results(given.repo_id, given.results, **of_results)
            else:
                work_out = changes_of_model(given.folder, given.repo_id, given.results, **of_results, **of_folder)
            print(dry_run(given.repo_id, work_out, given.revision, given.create_pr, given.private or None))
            return
        if given.results_only:
            pushed = push_results(given.repo_id, given.results, **shared)
        else:
            private = given.private or None
            pushed = push_model(given.folder, given.repo_id, given.results, private=private, **of_folder, **shared)
    except (OSError, ValueError, PushError) as error:
        raise SystemExit(str(error)) from error
    if not given.quiet:
        print(pushed)


def _task_and_score(text: str) -> tuple[str, str]:
    task, _, score = text.partition("=")
    if not task or not score:
        raise argparse.ArgumentTypeError(f"{text!r} must be TASK=SCORE, such as parts=m2o_miou_foreground")
    return task, score


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hub_cards.push", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="MODEL_FOLDER", help="that save_pretrained or pretraining wrote"
    )
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="repository; made if it is not there")
    parser.add_argument("--results", nargs="+", default=[], metavar="JSON", help=f"outputs of {WRITERS}")
    parser.add_argument("--results_only", action="store_true", help="add results to a model that is on the Hub, and no more")
    parser.add_argument("--any_model", action="store_true", help="accept results of other weights")
    parser.add_argument(
        "--eval_results",
        nargs="+",
        type=_task_and_score,
        default=[],
        metavar="TASK=SCORE",
        help="also write the files that leaderboards of data sets on the Hub read, such as parts=m2o_miou_foreground",
    )
    parser.add_argument("--revision", default=MAIN, metavar="BRANCH", help="made from main if it is not there (%(default)s)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request for main instead")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--prose", choices=["hub", "folder"], help="whose own words to keep, where both cards have some")
    parser.add_argument("--licence", metavar="ID", help="of the weights (mit, apache-2.0 ...), in place of the card's")
    parser.add_argument("--commit_message", metavar="TEXT", help="also the title of a pull request")
    parser.add_argument("--dry_run", action="store_true", help="show what would be changed, and change nothing")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    return parser


if __name__ == "__main__":
    main()
