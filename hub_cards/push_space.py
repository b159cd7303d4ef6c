"""Publishes the demo of a model as a Space of the Hub, in one commit.

    python -m hub_cards.push_space --repo_id OWNER/SPACE --model OWNER/NAME

The Space gets the app, this package's library, which it imports, and example pictures. A second push of the same makes no
commit, and files that are not ours stay.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi, RepoCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars

import modeling_rats
from hub_cards.changes import describe_change
from hub_cards.contents import CARD, refuse_secrets
from hub_cards.demo import SPACE as APP
from hub_cards.push import Pushed
from hub_cards.repository import (
    MAIN,
    SPACE,
    Change,
    PushError,
    Snapshot,
    check_name,
    commit,
    look,
    prepare_repository,
    refusals_told,
)
from modeling_rats import read_image

EXAMPLES = "examples"  # folder of the Space
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of the pictures that the app looks for there
PLACEHOLDER = "OWNER/NAME"  # of the Space, in its README.md
HIDDEN = {"__pycache__", ".gradio"}


def push_space(
    repo_id: str,
    model: str,
    *,
    revision: str | None = None,
    dictionary: str | None = None,
    examples: Path | None = None,
    private: bool | None = None,
    message: str = "Upload demo",
) -> Pushed:
    """Push the demo, and set which model it shows.

    Args:
        repo_id: The Space, owner/name; made if it is not there.
        model: Hub name of the model; it must be there.
        revision: Branch, tag or commit of the model; by default main, as it changes.
        dictionary: Hub name of its part dictionary; by default that in the model's own repository, if it has one.
        examples: Folder of example pictures in place of the rendered ones. Mind their licence.
        private: Make the Space private if it is made; None leaves that to its owner's default.
        message: Of the commit.

    Raises:
        ValueError: If a name is malformed, or `examples` holds no pictures or one that cannot be read.
        PushError: If the Hub cannot be reached or refuses, or there is no such model.
    """
    work_out = changes_of_space(repo_id, model, examples)
    work_out(Snapshot(repo_id))  # what is refused whatever is there leaves no empty Space
    _check_model(model, revision)
    prepare_repository(repo_id, private, SPACE)
    with refusals_told(repo_id):  # before the files, so that the app finds them when it starts
        _set_variables(repo_id, _variables(model, revision, dictionary))
    return Pushed(*commit(repo_id, work_out, message, repo_type=SPACE))


def changes_of_space(repo_id: str, model: str, examples: Path | None = None):
    """What works out the change that makes a Space the demo of a model; arguments and errors as in `push_space`."""
    check_name(repo_id)
    check_name(model)
    files = gather_space(repo_id, model, examples)

    def work_out(snapshot: Snapshot) -> Change:
        additions = {path: content for path, content in files.items() if not snapshot.holds(path, content)}
        gone = {path for path in snapshot.hashes if path.split("/")[0] in (EXAMPLES, "modeling_rats")} - files.keys()
        return Change(additions, frozenset(gone))

    return work_out


def gather_space(repo_id: str, model: str, examples: Path | None = None) -> dict[str, bytes]:
    """Every file of the Space by its path; arguments and errors as in `push_space`."""
    library = Path(modeling_rats.__file__).parent
    files = {f"modeling_rats/{path.name}": path.read_bytes() for path in sorted(library.glob("*.py"))}
    for path in sorted(APP.rglob("*")):
        parts = path.relative_to(APP).parts
        if path.is_file() and not HIDDEN & {*parts} and (examples is None or parts[0] != EXAMPLES):
            files["/".join(parts)] = path.read_bytes()
    if examples is not None:
        pictures = sorted(path for path in examples.glob("*") if path.suffix.lower() in SUFFIXES)
        if not pictures:
            raise ValueError(
                f"Folder {examples} holds no {', '.join(SUFFIXES)} files; it must hold the demo's example pictures."
            )
        for path in pictures:
            read_image(path)
        chosen = {f"{EXAMPLES}/{path.name}": path.read_bytes() for path in pictures}
        files |= chosen
    card = RepoCard((APP / CARD).read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id))
    card.data["models"] = [model]
    files[CARD] = str(card).encode()
    refuse_secrets(files)
    return files


def _check_model(model: str, revision: str | None) -> None:
    try:
        with refusals_told(model):
            HfApi().model_info(model, revision=revision)
    except PushError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise PushError(f"There is no model {model} on the Hub that the token may see; push it first.") from error
        raise


def _set_variables(repo_id: str, settings: Mapping[str, str | None]) -> None:
    """Set variables of a Space that are not so already, since each change restarts it; None removes one."""
    api = HfApi()
    there = {name: variable.value for name, variable in api.get_space_variables(repo_id).items()}
    for name, value in settings.items():
        if value is None and name in there:
            api.delete_space_variable(repo_id, name)
        elif value is not None and there.get(name) != value:
            api.add_space_variable(repo_id, name, value)


def _variables(model: str, revision: str | None, dictionary: str | None) -> dict[str, str | None]:
    return {"RATS_MODEL": model, "RATS_REVISION": revision or MAIN, "RATS_DICTIONARY": dictionary}


def dry_run(
    repo_id: str, model: str, *, revision: str | None = None, dictionary: str | None = None, examples: Path | None = None
) -> str:
    """What a push would do; nothing is changed, on the Hub or here. Arguments and errors as in `push_space`."""
    work_out = changes_of_space(repo_id, model, examples)
    _check_model(model, revision)
    with refusals_told(repo_id):
        try:
            snapshot = look(repo_id, repo_type=SPACE)
        except RepositoryNotFoundError:
            snapshot = Snapshot(repo_id, repo_type=SPACE)
    variables = _variables(model, revision, dictionary)
    told = ", ".join(f"{name}={value}" for name, value in variables.items() if value is not None)
    return f"Variables: {told}\n{describe_change(snapshot, work_out(snapshot))}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `push_space`; what the user can mend ends it with a message and no traceback."""
    given = _parser().parse_args(arguments)
    if given.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        shared = {"revision": given.revision, "dictionary": given.dictionary, "examples": given.examples}
        if given.dry_run:
            print(dry_run(given.repo_id, given.model, **shared))
            return
        pushed = push_space(given.repo_id, given.model, private=given.private or None, **shared)
    except (OSError, ValueError, PushError) as error:
        raise SystemExit(str(error)) from error
    if not given.quiet:
        print(pushed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hub_cards.push_space", description=__doc__.split("\n")[0])
    parser.add_argument("--repo_id", required=True, metavar="OWNER/SPACE", help="Space; made if it is not there")
    parser.add_argument("--model", required=True, metavar="OWNER/NAME", help="the model that it shows")
    parser.add_argument("--revision", help="branch, tag or commit of the model (main)")
    parser.add_argument("--dictionary", metavar="OWNER/NAME", help="its part dictionary (the model's own, if it has one)")
    parser.add_argument("--examples", type=Path, metavar="FOLDER", help="example pictures (rendered ones)")
    parser.add_argument("--private", action="store_true", help="make a private Space")
    parser.add_argument("--dry_run", action="store_true", help="show what would be changed, and change nothing")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    return parser


if __name__ == "__main__":
    main()
