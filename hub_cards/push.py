"""Pushes a model folder to the Hub, all of it in one commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

# Optimiser states, checkpoints of training and other pickles, which run code where they are loaded.
REFUSED_SUFFIXES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


class PushError(RuntimeError):
    """The Hub did not take what it was given; the message says why and what to do."""


def push_folder(folder: Path, repo_id: str, private: bool | None = None, commit_message: str = "Upload model") -> str:
    """Pushes the files of a model folder; what else is in the repository stays.

    Args:
        folder: Folder that save_pretrained wrote. Hidden files and `__pycache__` stay behind.
        repo_id: Repository of models, owner/name; made if it is not there.
        private: Make it private if it is made; None leaves that to its owner's default.

    Returns:
        The commit's address.

    Raises:
        FileNotFoundError: If it is no model folder.
        ValueError: If it holds pickles, or its card or `repo_id` is malformed.
        PushError: If the Hub cannot be reached or refuses.
    """
    files = files_to_push(folder)  # first: a folder that is refused leaves no empty repository
    prepare_repository(repo_id, private)
    additions = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    with _refusals_told(repo_id):
        # Not upload_folder, which makes several commits of an upload that is large or slow.
        return HfApi().create_commit(repo_id, additions, commit_message=commit_message).commit_url


def files_to_push(folder: Path) -> list[Path]:
    """What of a model folder belongs on the Hub; errors as in `push_folder`."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"Folder {folder} has no config.json; only a model folder that save_pretrained wrote is pushed. Check the path."
        )
    files = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            files.append(file)
    refused = [str(file.relative_to(folder)) for file in files if file.suffix in REFUSED_SUFFIXES]
    if refused:
        raise ValueError(
            f"Folder {folder} holds {', '.join(refused)}; a model folder on the Hub holds its weights as safetensors, and no "
            "optimiser states or pickles, which run code where they are loaded. Move them away."
        )
    return files


def prepare_repository(repo_id: str, private: bool | None = None) -> None:
    """Makes the repository if it is not there, and makes sure that the token may write to it; errors as in `push_folder`."""
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"Repository {repo_id!r} must be named owner/name; put your user name or organisation in front.")
    api = HfApi()
    with _refusals_told(repo_id):
        api.whoami()  # tells an invalid token from a missing right, which the calls below do not
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(repo_id, write=True)
        is_public = not api.model_info(repo_id).private
    if private and is_public:
        raise PushError(
            f"Repository {repo_id} exists and is public, and a private one is asked for. Make it private in its settings "
            "(https://huggingface.co/" + repo_id + "/settings), name another one, or do not ask for a private one."
        )


@contextmanager
def _refusals_told(repo_id: str) -> Iterator[None]:
    """Errors of the client as `PushError`s that say what to do."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PushError(
            "No token of the Hub was found; pushing needs one that may write. Run `hf auth login`, or set HF_TOKEN."
        ) from error
    except OfflineModeIsEnabled as error:
        raise PushError("HF_HUB_OFFLINE is set, and pushing needs the Hub. Unset it, or push later.") from error
    except HfHubHTTPError as error:
        raise PushError(_reason(error, repo_id)) from error
    except HTTPError as error:
        raise PushError(
            f"The Hub ({HfApi().endpoint}) cannot be reached: {error}. Check the network, or push later."
        ) from error
    except RuntimeError as error:  # of a large file, around what went wrong
        raise PushError(f"{error} {error.__cause__ or ''}".strip()) from error


def _reason(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    if status == 401 and error.response.request.url.path.endswith("/whoami-v2"):
        return "The Hub does not know the token (401). Run `hf auth login` anew, or set HF_TOKEN to a valid one."
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return (
            f"The token may not write to {repo_id} ({status}). Take one with write access "
            "(https://huggingface.co/settings/tokens), or name a repository of yours: owner/name."
        )
    return f"The Hub refused {repo_id} ({status}): {error.server_message or error}. Push again later."
