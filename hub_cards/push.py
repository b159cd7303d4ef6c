"""Pushes a model folder to the Hub in one commit: model, code, processor, pipeline, handler, results and card.

    python -m hub_cards.push MODEL_FOLDER --repo_id OWNER/NAME [--results scores.json ...]
    python -m hub_cards.push --repo_id OWNER/NAME --results_only --results scores.json ...

Nothing in the folder is changed, so that after a failure the same command goes on. A second push of the same makes no commit;
results that others pushed meanwhile stay, and so does what a person wrote into the card.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from hub_cards.assets import KINDS, outdated_pictures
from hub_cards.card import build_card, personal_parts
from hub_cards.card_text import Evaluation
from hub_cards.contents import CARD, gather
from hub_cards.records import ModelRecord, read_model, read_model_without_weights
from hub_cards.repository import (
    MAIN,
    Change,
    PushError,
    Snapshot,
    check_name,
    check_rights,
    commit,
    look,
    prepare_repository,
    refusals_told,
)
from hub_cards.results import FOLDER as RESULTS
from hub_cards.results import adopt_all, as_files, check_weights, is_of, parse, read_results

Prose = Literal["hub", "folder"]
WEIGHTS = (".safetensors", ".safetensors.index.json")
MODEL_FILES = ("config.json", "preprocessor_config.json", "training.json")


@dataclass(frozen=True)
class Pushed:
    """What a push has done.

    Attributes:
        url: Of the commit or pull request; without a change of the commit that is there.
        change: What was changed; empty if all was there already.
    """

    url: str
    change: Change


def push_model(
    folder: str | Path,
    repo_id: str,
    results: Sequence[str | Path] = (),
    *,
    any_model: bool = False,
    revision: str = MAIN,
    create_pr: bool = False,
    private: bool | None = None,
    prose: Prose | None = None,
    message: str = "Upload model",
) -> Pushed:
    """Push a model folder, with its card made from what is measured here and there.

    Args:
        folder: Folder that save_pretrained wrote, with weights and image processor; it is left as it is.
        repo_id: Repository of models, owner/name; made if it is not there. What else is in it stays, but for results and
            pictures of other weights.
        results: Records of evaluation.part_segmentation, beside those that the folder and the repository hold.
        any_model: Accept results of other weights, see `hub_cards.results.adopt`.
        revision: Branch to push to; made from main if it is not there.
        create_pr: Open a pull request for main, instead.
        private: Make the repository private if it is made; None leaves that to its owner's default.
        prose: Whose card's own prose and metadata to keep, where folder and repository both have some that differ.
        message: Of the commit.

    Raises:
        FileNotFoundError: If it is no model folder, or a record is missing.
        ValueError: If the folder holds pickles or secrets, a record is not of this model, both cards have prose of their own
            and `prose` is None, or a name is malformed.
        PushError: If the Hub cannot be reached or refuses.
    """
    check_name(repo_id)
    work_out = changes_of_model(Path(folder), repo_id, results, any_model, prose)  # first: a folder that is refused
    prepare_repository(repo_id, private)  # leaves no empty repository
    return Pushed(*commit(repo_id, work_out, message, revision, create_pr))


def push_results(
    repo_id: str,
    results: Sequence[str | Path],
    *,
    any_model: bool = False,
    revision: str = MAIN,
    create_pr: bool = False,
    message: str = "Add results",
) -> Pushed:
    """Add results to a model that is on the Hub, and to its card; arguments and errors as in `push_model`."""
    check_rights(repo_id)
    return Pushed(*commit(repo_id, changes_of_results(repo_id, results, any_model), message, revision, create_pr))


def changes_of_model(
    folder: Path, repo_id: str, results: Sequence[str | Path], any_model: bool, prose: Prose | None
) -> Callable[[Snapshot], Change]:
    """What a push of a folder changes, for each state of the repository; errors that the folder decides come at once."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"Folder {folder} has no config.json; only a model folder that save_pretrained wrote is pushed. Check the path."
        )
    model = read_model(folder)
    files = gather(folder, model)
    known = read_results(folder)
    check_weights(known, model)
    added = adopt_all(results, model, any_model)
    card = (folder / CARD).read_text(encoding="utf-8-sig") if (folder / CARD).is_file() else None

    def work_out(snapshot: Snapshot) -> Change:
        evaluations = _merge(_results_in(snapshot, model), known, added)
        wanted = {**files, **as_files(evaluations)}
        outdated = _outdated(snapshot, wanted, model)
        pictures = (snapshot.hashes.keys() | files.keys()) - outdated
        existing = _choose(card, _card_in(snapshot), prose)
        wanted[CARD] = build_card(model, evaluations, pictures, repo_id, existing).encode()
        return _change(snapshot, wanted, outdated)

    return work_out


def changes_of_results(repo_id: str, results: Sequence[str | Path], any_model: bool) -> Callable[[Snapshot], Change]:
    """What new results change, for each state of the repository."""
    if not results:
        raise ValueError("--results_only needs --results JSON ...: records of evaluation.part_segmentation. Name some.")

    def work_out(snapshot: Snapshot) -> Change:
        model = read_model_in(snapshot)
        evaluations = _merge(_results_in(snapshot, model), adopt_all(results, model, any_model))
        wanted: dict[str, bytes | Path] = {**as_files(evaluations)}
        wanted[CARD] = build_card(model, evaluations, snapshot.hashes, repo_id, _card_in(snapshot)).encode()
        return _change(snapshot, wanted, set())

    return work_out


def read_model_in(snapshot: Snapshot) -> ModelRecord:
    """What a model on the Hub says of itself; its weights are not fetched, their header is.

    Raises:
        FileNotFoundError: If something of a model is missing.
        ValueError: If it is no RATS model.
    """
    with TemporaryDirectory() as folder:
        for name in MODEL_FILES:
            if name in snapshot.hashes:
                (Path(folder) / name).write_bytes(snapshot.read(name))
        model = read_model_without_weights(Path(folder))
    metadata = HfApi().get_safetensors_metadata(snapshot.repo_id, revision=snapshot.commit)
    return replace(
        model,
        folder=Path(snapshot.repo_id),
        num_parameters=sum(metadata.parameter_count.values()),
        weight_files=_weights_in(snapshot),
    )


def _results_in(snapshot: Snapshot, model: ModelRecord) -> list[Evaluation]:
    """The results of these weights; those of earlier ones stay in the repository's history."""
    paths = [path for path in sorted(snapshot.hashes) if path.startswith(f"{RESULTS}/") and path.endswith(".json")]
    evaluations = [parse(snapshot.read(path), f"{snapshot.repo_id}/{path}") for path in paths]
    return [evaluation for evaluation in evaluations if is_of(evaluation, model.weight_files)]


def _weights_in(snapshot: Snapshot) -> dict[str, str]:
    return {path: known for path, known in sorted(snapshot.hashes.items()) if path.endswith(".safetensors")}


def _outdated(snapshot: Snapshot, wanted: Collection[str], model: ModelRecord) -> set[str]:
    """What is of weights that are replaced: their files, results and pictures; else pictures of which there are newer ones."""
    if _weights_in(snapshot) == model.weight_files:
        return outdated_pictures(snapshot.hashes, wanted)
    of_weights = {path for path in snapshot.hashes if path.endswith(WEIGHTS) or path.startswith((f"{RESULTS}/", *KINDS))}
    return of_weights - set(wanted)


def _merge(*sources: Iterable[Evaluation]) -> list[Evaluation]:
    """Each measurement once, in the order of their names: a later source replaces an earlier one's."""
    merged = {evaluation.name: evaluation for source in sources for evaluation in source}
    return [merged[name] for name in sorted(merged)]


def _card_in(snapshot: Snapshot) -> str | None:
    return snapshot.read(CARD).decode("utf-8-sig") if CARD in snapshot.hashes else None


def _choose(folder_card: str | None, hub_card: str | None, prose: Prose | None) -> str | None:
    """The card whose own prose and metadata are kept."""
    if folder_card is None or hub_card is None:
        return hub_card or folder_card
    in_folder, on_hub = personal_parts(folder_card), personal_parts(hub_card)
    if prose is None and in_folder and on_hub and in_folder != on_hub:
        differing = [name for name in {**in_folder, **on_hub} if in_folder.get(name) != on_hub.get(name)]
        raise ValueError(
            f"The cards in the folder and on the Hub both hold what a person wrote, and differ in {', '.join(differing)}; "
            "one has to be kept. Add --prose hub or --prose folder, or copy into the folder's card what is to stay."
        )
    return folder_card if prose == "folder" or not on_hub else hub_card


def _change(snapshot: Snapshot, wanted: dict[str, bytes | Path], deletions: set[str]) -> Change:
    return Change(
        {path: content for path, content in wanted.items() if not snapshot.holds(path, content)}, frozenset(deletions)
    )


def describe_change(snapshot: Snapshot, change: Change) -> str:
    """What a push would do, with the difference of the card, as text."""
    if not change:
        return f"{snapshot.repo_id} holds all of it already; there is nothing to push."
    where = f"on top of {snapshot.commit[:7]}" if snapshot.commit else "which would be made"
    lines = [f"One commit to {snapshot.repo_id}, {where}:"]
    for path, content in sorted(change.additions.items()):
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        lines.append(f"  {'change' if path in snapshot.hashes else 'add'} {path} ({size:,} bytes)")
    lines += [f"  delete {path}" for path in sorted(change.deletions)]
    card = change.additions.get(CARD)
    if isinstance(card, bytes):
        before = (_card_in(snapshot) or "").splitlines()
        lines += difflib.unified_diff(before, card.decode().splitlines(), f"{CARD} on the Hub", f"{CARD} pushed", lineterm="")
    return "\n".join(lines)


def dry_run(repo_id: str, work_out: Callable[[Snapshot], Change], revision: str = MAIN) -> str:
    """What a push would do; nothing is changed, on the Hub or here."""
    with refusals_told(repo_id):
        try:
            snapshot = look(repo_id, revision)
        except RevisionNotFoundError:
            snapshot = look(repo_id)
        except RepositoryNotFoundError:
            snapshot = Snapshot(repo_id)
        return describe_change(snapshot, work_out(snapshot))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `push_model` and `push_results`; what the user can mend ends it with a message and no traceback."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.folder is None) != given.results_only:
        parser.error("name a MODEL_FOLDER, or --results_only for a model that is on the Hub.")
    if given.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    shared = {"any_model": given.any_model, "revision": given.revision, "create_pr": given.create_pr}
    try:
        if given.dry_run:
            check_name(given.repo_id)
            if given.results_only:
                work_out = changes_of_results(given.repo_id, given.results, given.any_model)
            else:
                work_out = changes_of_model(given.folder, given.repo_id, given.results, given.any_model, given.prose)
            print(dry_run(given.repo_id, work_out, given.revision))
            return
        if given.results_only:
            pushed = push_results(given.repo_id, given.results, **shared)
        else:
            private = given.private or None
            pushed = push_model(given.folder, given.repo_id, given.results, private=private, prose=given.prose, **shared)
    except (OSError, ValueError, PushError) as error:
        raise SystemExit(str(error)) from error
    if not given.quiet:
        count = len(pushed.change.additions) + len(pushed.change.deletions)
        print(f"{count} files changed: {pushed.url}" if pushed.change else f"Nothing to push, all is there: {pushed.url}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hub_cards.push", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="MODEL_FOLDER", help="that save_pretrained or pretraining wrote"
    )
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="repository; made if it is not there")
    parser.add_argument("--results", nargs="+", default=[], metavar="JSON", help="outputs of evaluation.part_segmentation")
    parser.add_argument("--results_only", action="store_true", help="add results to a model that is on the Hub, and no more")
    parser.add_argument("--any_model", action="store_true", help="accept results of other weights")
    parser.add_argument("--revision", default=MAIN, metavar="BRANCH", help="made from main if it is not there (%(default)s)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request for main instead")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--prose", choices=["hub", "folder"], help="whose own words to keep, where both cards have some")
    parser.add_argument("--dry_run", action="store_true", help="show what would be changed, and change nothing")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    return parser


if __name__ == "__main__":
    main()
