"""What a push changes in a repository, worked out on one of its commits; nothing is written, there or here."""

import difflib
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from hub_cards.assets import kind_of, outdated_pictures
from hub_cards.card import build_card, parse_card, personal_parts, with_metadata_of
from hub_cards.contents import CARD, gather, refuse_secrets
from hub_cards.measurement_kinds import WRITERS
from hub_cards.measurements import Evaluation
from hub_cards.records import WEIGHT_FILE, ModelRecord, read_model, read_model_without_weights
from hub_cards.repository import Change, Snapshot
from hub_cards.results import FOLDER as RESULTS
from hub_cards.results import (
    LEADERBOARD_FOLDER,
    adopt_all,
    as_eval_results,
    as_files,
    check_weights,
    is_of,
    is_result,
    merge,
    parse,
    read_results,
)

Prose = Literal["hub", "folder"]
MODEL_FILES = ("config.json", "preprocessor_config.json", "training.json")


class UnknownLicenceError(ValueError):
    """Weights that others trained have no licence that is known."""


def changes_of_model(
    folder: Path,
    repo_id: str,
    results: Sequence[str | Path] = (),
    any_model: bool = False,
    eval_results: Mapping[str, str] | None = None,
    prose: Prose | None = None,
    licence: str | None = None,
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
        evaluations = merge([*_results_in(snapshot, model), *known], added)
        wanted = {**files, **_result_files(evaluations, snapshot, eval_results)}
        outdated = _outdated(snapshot, wanted, model)
        if not any_model:
            _refuse_what_is_left(snapshot, files, model)
        pictures = (snapshot.hashes.keys() | files.keys()) - outdated
        existing = _choose(card, _card_in(snapshot), prose)
        text = build_card(model, evaluations, pictures, repo_id, existing, licence)
        if model.source and not parse_card(text).data.get("license"):
            raise UnknownLicenceError(
                f"The weights in {folder} were trained by others ({model.base_model or 'a file without a repository'}), and "
                "their licence is not known. Ask the owners, then pass it with --licence ID."
            )
        wanted[CARD] = text.encode()
        return replace(_change(snapshot, wanted, outdated), digests=model.weight_files)

    return work_out


def changes_of_results(
    repo_id: str, results: Sequence[str | Path], any_model: bool = False, eval_results: Mapping[str, str] | None = None
) -> Callable[[Snapshot], Change]:
    """What new results change, for each state of the repository."""
    if not results:
        raise ValueError(f"--results_only needs --results JSON ...: records of {WRITERS}. Name some.")

    def work_out(snapshot: Snapshot) -> Change:
        model = read_model_in(snapshot)
        evaluations = merge(_results_in(snapshot, model), adopt_all(results, model, any_model))
        wanted: dict[str, bytes | Path] = {**_result_files(evaluations, snapshot, eval_results)}
        wanted[CARD] = build_card(model, evaluations, snapshot.hashes, repo_id, _card_in(snapshot)).encode()
        return _change(snapshot, wanted, set())

    return work_out


def read_model_in(snapshot: Snapshot) -> ModelRecord:
    """What a model on the Hub says of itself; its weights are not fetched, their header is.

    Raises:
        FileNotFoundError: If something of a model is missing.
        ValueError: If it is no RATS model.
    """
    for name in MODEL_FILES[:2]:
        if name not in snapshot.hashes:
            raise FileNotFoundError(
                f"Repository {snapshot.repo_id} has no {name}; results are added to a model that is there. Push it first."
            )
    with TemporaryDirectory() as folder:
        for name in MODEL_FILES:
            if name in snapshot.hashes:
                (Path(folder) / name).write_bytes(snapshot.read(name))
        model = read_model_without_weights(Path(folder))
    try:
        metadata = HfApi().get_safetensors_metadata(snapshot.repo_id, revision=snapshot.commit)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ValueError(
            f"The weights of {snapshot.repo_id} cannot be read ({error}); they must be safetensors. Push the model anew."
        ) from error
    return replace(
        model,
        folder=Path(snapshot.repo_id),
        num_parameters=sum(metadata.parameter_count.values()),
        weight_files=_weights_in(snapshot),
    )


def _results_in(snapshot: Snapshot, model: ModelRecord) -> list[Evaluation]:
    """The results of these weights; those of earlier ones stay in the repository's history."""
    evaluations = [parse(snapshot.read(path), f"{snapshot.repo_id}/{path}") for path in _result_paths(snapshot)]
    return [evaluation for evaluation in evaluations if is_of(evaluation, model)]


def _result_paths(snapshot: Snapshot) -> list[str]:
    """The results that hub_cards has written; files of the same folder that others have put there are theirs."""
    paths = [path for path in sorted(snapshot.hashes) if path.startswith(f"{RESULTS}/") and path.endswith(".json")]
    return [path for path in paths if is_result(snapshot.read(path))]


def _weights_in(snapshot: Snapshot) -> dict[str, str]:
    """SHA-256 of the model's own weights by name; of a small file, that the Hub keeps in git, it is computed here."""
    names = sorted(path for path in snapshot.hashes if WEIGHT_FILE.fullmatch(path))
    return {
        name: snapshot.hashes[name] if len(snapshot.hashes[name]) == 64 else hashlib.sha256(snapshot.read(name)).hexdigest()
        for name in names
    }


def _outdated(snapshot: Snapshot, wanted: Collection[str], model: ModelRecord) -> set[str]:
    """What is of weights that are replaced: their files, records and pictures; else pictures of which there are newer ones."""
    outdated = outdated_pictures(snapshot.hashes, wanted)
    for path in set(_result_paths(snapshot)) - set(wanted):  # of other weights, or another configuration
        outdated |= {path, f"{LEADERBOARD_FOLDER}/{Path(path).stem}.yaml"}
    if (weights := _weights_in(snapshot)) != model.weight_files:
        outdated |= {"training.json", "model.safetensors.index.json", *weights}
        outdated |= {path for path in snapshot.hashes if kind_of(path)}
    return (outdated & snapshot.hashes.keys()) - set(wanted)


def _refuse_what_is_left(snapshot: Snapshot, files: Mapping[str, bytes | Path], model: ModelRecord) -> None:
    """
    Raises:
        ValueError: If weights are new and the folder has the pictures or the record of training of those on the Hub.
    """
    if not (weights := _weights_in(snapshot)) or weights == model.weight_files:
        return
    told = [path for path in files if kind_of(path) or path == "training.json"]
    left = [path for path in told if snapshot.holds(path, files[path])]
    if left:
        raise ValueError(
            f"{', '.join(left)} of {model.folder} are those of the weights on the Hub, and its weights are others; a card "
            "shows what these did. Draw or train anew, or delete them; or add --any_model if both are the same in your eyes."
        )


def _result_files(
    evaluations: Sequence[Evaluation], snapshot: Snapshot, eval_results: Mapping[str, str] | None
) -> dict[str, bytes]:
    """The results and, on request, what leaderboards read of them.

    Raises:
        ValueError: If a leaderboard's file would tell the scores of a record that is replaced.
    """
    files = as_files(evaluations)
    leaderboards = as_eval_results(evaluations, snapshot.repo_id, eval_results) if eval_results else {}
    changed = {f"{LEADERBOARD_FOLDER}/{Path(path).stem}.yaml" for path in files if not snapshot.holds(path, files[path])}
    stale = sorted((changed & snapshot.hashes.keys()) - leaderboards.keys())
    if stale:
        raise ValueError(
            f"{', '.join(stale)} of {snapshot.repo_id} would tell scores of a record that is replaced; what a leaderboard "
            "ranks is for you to say. Add --eval_results TASK=SCORE, or delete the file there."
        )
    return files | leaderboards


def _card_in(snapshot: Snapshot) -> str | None:
    return snapshot.read(CARD).decode("utf-8-sig") if CARD in snapshot.hashes else None


def _choose(folder_card: str | None, hub_card: str | None, prose: Prose | None) -> str | None:
    """The card whose own prose and metadata are kept."""
    if folder_card is None or hub_card is None:
        return hub_card or folder_card
    if prose == "hub":
        return hub_card
    in_folder, on_hub = personal_parts(folder_card), personal_parts(hub_card)
    if prose is None and in_folder and on_hub and in_folder != on_hub:
        differing = [name for name in {**in_folder, **on_hub} if in_folder.get(name) != on_hub.get(name)]
        raise ValueError(
            f"The cards in the folder and on the Hub both hold what a person wrote, and differ in {', '.join(differing)}; "
            "one has to be kept. Add --prose hub or --prose folder, or copy into the folder's card what is to stay."
        )
    if prose == "folder" or (in_folder and not on_hub):
        return with_metadata_of(folder_card, hub_card)
    return hub_card


def _change(snapshot: Snapshot, wanted: dict[str, bytes | Path], deletions: set[str]) -> Change:
    additions = {path: content for path, content in wanted.items() if not snapshot.holds(path, content)}
    refuse_secrets(additions)  # card and results, too
    return Change(additions, frozenset(deletions))


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
