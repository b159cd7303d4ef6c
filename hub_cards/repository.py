"""A repository of the Hub at one commit, and changes to it that no other change gets lost by.

A change is worked out on a commit and made on top of that very commit. If another one came between, or the Hub failed on
the way, all is worked out anew on what is there then; so a change that had arrived unheard is found there and not repeated.
"""

import io
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, RepoFile, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

MAIN = "main"
MODEL, SPACE = "model", "space"  # types of repositories
MAX_TRIES = 8  # of one change; with the waits below, some two minutes of a Hub that fails
MAX_WAIT_S = 30.0
CONFLICT = 412  # the branch has moved on
TRANSIENT = {429, 500, 502, 503, 504}
# Of a request; around one that fetches a file; around one that sends a large file; of a failure that is told in HTML.
RETRIED = (HTTPError, LocalEntryNotFoundError, RuntimeError, json.JSONDecodeError)


class PushError(RuntimeError):
    """The Hub did not take what it was given; the message says why and what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Attributes:
        repo_id: owner/name.
        commit: None if there is no such repository yet.
        hashes: Of each file the SHA-256 if it is a large one, else its hash in git.
        repo_type: model or space.
    """

    repo_id: str
    commit: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    repo_type: str = MODEL

    def read(self, path: str) -> bytes:
        """The content of one of its files."""
        return Path(hf_hub_download(self.repo_id, path, revision=self.commit, repo_type=self.repo_type)).read_bytes()

    def holds(self, path: str, content: bytes | Path) -> bool:
        """Whether it has this very file."""
        known = self.hashes.get(path)
        if known is None:
            return False
        if len(known) == 40:
            return known == git_hash(content if isinstance(content, bytes) else content.read_bytes())
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as opened:
            return known == sha_fileobj(opened).hex()


@dataclass(frozen=True)
class Change:
    """What a commit is to do.

    Attributes:
        additions: Files to write, new or other than those that are there.
        deletions: Files to remove.
        digests: SHA-256 that files to write must have, if they are there, for others tell of them.
    """

    additions: Mapping[str, bytes | Path]
    deletions: frozenset[str] = frozenset()
    digests: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.additions or self.deletions)

    def is_in(self, snapshot: Snapshot) -> bool:
        """Whether it was made already."""
        written = all(snapshot.holds(path, content) for path, content in self.additions.items())
        return written and not self.deletions & snapshot.hashes.keys()


def look(repo_id: str, revision: str = MAIN, repo_type: str = MODEL) -> Snapshot:
    """A repository as it is now.

    Raises:
        RepositoryNotFoundError: If it is not there, or nothing that the token may see.
        RevisionNotFoundError: If it has no such branch.
    """
    api = HfApi()
    commit = api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    hashes = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
    return Snapshot(repo_id, commit, hashes, repo_type)


def commit(
    repo_id: str,
    work_out: Callable[[Snapshot], Change],
    message: str,
    revision: str = MAIN,
    create_pr: bool = False,
    repo_type: str = MODEL,
) -> tuple[str, Change]:
    """Make a change to a repository that is there (see `prepare_repository`).

    Args:
        repo_id: owner/name.
        work_out: Gives the change for a snapshot; called anew whenever the repository may have changed.
        message: Of the commit.
        revision: Branch; made from main if it is not there.
        create_pr: Propose the change in a pull request to main, unless there is an open one of the same user that does.
        repo_type: model or space; of a space no pull request is opened.

    Returns:
        The address of the commit or the pull request, and the change; without a change that of the commit that is there.

    Raises:
        PushError: If the Hub cannot be reached or refuses.
    """
    with refusals_told(repo_id):
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return _commit_once(repo_id, work_out, message, revision, create_pr, repo_type)
            except RETRIED as error:
                wait_s = _wait_s(error, attempt)
                if wait_s is None or attempt == MAX_TRIES:
                    raise
                time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def prepare_repository(repo_id: str, private: bool | None = None, repo_type: str = MODEL) -> None:
    """Make the repository if it is not there, and make sure that the token may write to it.

    Args:
        repo_id: owner/name.
        private: Make it private if it is made; None leaves that to its owner's default.
        repo_type: model or space (one that runs gradio).

    Raises:
        ValueError: If `repo_id` is malformed.
        PushError: If the Hub cannot be reached or refuses, or a private repository is asked for and it is public.
    """
    check_name(repo_id)
    api = HfApi()
    with refusals_told(repo_id):
        patiently(api.whoami)
        sdk = "gradio" if repo_type == SPACE else None
        patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk))
    check_rights(repo_id, repo_type=repo_type)
    check_privacy(repo_id, private, repo_type)


def check_privacy(repo_id: str, private: bool | None, repo_type: str = MODEL) -> None:
    """Make sure that a repository that is there is private if that is asked for; errors as in `prepare_repository`."""
    if not private:
        return
    with refusals_told(repo_id):
        is_public = not patiently(lambda: HfApi().repo_info(repo_id, repo_type=repo_type)).private
    if is_public:
        raise PushError(
            f"Repository {repo_id} exists and is public, and a private one is asked for. Make it private in its settings "
            f"({_address(repo_id, repo_type)}/settings), name another one, or do not ask for a private one."
        )


def check_rights(repo_id: str, write: bool = True, repo_type: str = MODEL) -> None:
    """Make sure that a repository is there and that the token may see it, or write to it; errors as in `prepare_repository`."""
    check_name(repo_id)
    api = HfApi()
    with refusals_told(repo_id):
        patiently(api.whoami)  # tells an invalid token from a missing right, which the other calls do not
        patiently(lambda: api.auth_check(repo_id, write=write, repo_type=repo_type))


def check_name(repo_id: str) -> None:
    """Make sure that a name is owner/name.

    Raises:
        ValueError: If it is not.
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"Repository {repo_id!r} must be named owner/name; put your user name or organisation in front.")


def _commit_once(
    repo_id: str, work_out: Callable[[Snapshot], Change], message: str, revision: str, create_pr: bool, repo_type: str
) -> tuple[str, Change]:
    api = HfApi()
    try:
        snapshot = look(repo_id, revision, repo_type)
        is_new = False
    except RevisionNotFoundError:
        snapshot, is_new = look(repo_id, repo_type=repo_type), True
    change = work_out(snapshot)
    if is_new:
        api.create_branch(repo_id, branch=revision, revision=snapshot.commit, exist_ok=True, repo_type=repo_type)
    if not change:
        return f"{_address(repo_id, repo_type)}/commit/{snapshot.commit}", change
    if create_pr and (proposed := _proposed(repo_id, change)):
        return proposed, Change({})
    additions = [CommitOperationAdd(path, content) for path, content in sorted(change.additions.items())]
    _check_digests(additions, change.digests)
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *additions,
        *(CommitOperationDelete(path) for path in sorted(change.deletions)),
    ]
    # Not upload_folder, which makes several commits of an upload that is large or slow.
    made = api.create_commit(
        repo_id,
        operations,
        commit_message=message,
        revision=None if revision == MAIN else revision,
        parent_commit=snapshot.commit,
        create_pr=create_pr,
        repo_type=repo_type,
    )
    return made.pr_url or made.commit_url, change


def _address(repo_id: str, repo_type: str) -> str:
    return "/".join([HfApi().endpoint, *(["spaces"] if repo_type == SPACE else []), repo_id])


def _proposed(repo_id: str, change: Change) -> str | None:
    """Address of an open pull request of the same user that makes this very change: every other would open one more."""
    api = HfApi()
    mine = api.get_repo_discussions(
        repo_id, author=api.whoami()["name"], discussion_type="pull_request", discussion_status="open"
    )
    for proposed in mine:
        assert proposed.git_reference is not None  # a pull request has one
        if change.is_in(look(repo_id, proposed.git_reference)):
            return proposed.url
    return None


def _check_digests(additions: Iterable[CommitOperationAdd], digests: Mapping[str, str]) -> None:
    sent = {addition.path_in_repo: addition.upload_info.sha256.hex() for addition in additions}
    changed = [path for path, digest in sent.items() if digests.get(path, digest) != digest]
    if changed:
        raise PushError(
            f"{', '.join(changed)} changed while being pushed; card and results tell of what was there before. Nothing was "
            "sent. Push again when nothing writes to the folder any more."
        )


def patiently(ask):
    """The answer of a request that may be repeated, after the waits that the Hub asks for."""
    for attempt in range(1, MAX_TRIES):
        try:
            return ask()
        except HTTPError as error:
            wait_s = _wait_s(error, attempt)
            if wait_s is None:
                raise
            time.sleep(wait_s)
    return ask()


def _wait_s(error: BaseException, attempt: int) -> float | None:
    """How long to wait before the next try, in seconds; None if it would fail again."""
    grown_s = min(MAX_WAIT_S, 2.0 ** (attempt - 1))
    if isinstance(error, json.JSONDecodeError):
        return grown_s
    while not isinstance(error, HTTPError):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        return grown_s  # no answer
    if error.response.status_code == CONFLICT:
        return random.uniform(0, min(1.0, 0.1 * attempt))  # or two that meet would meet again
    if error.response.status_code not in TRANSIENT:
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    asked_s = error.response.headers.get("Retry-After", "")
    if asked_s.isdigit():
        return float(asked_s)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else grown_s


@contextmanager
def refusals_told(repo_id: str) -> Iterator[None]:
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
    except (ConnectionError, TimeoutError) as error:  # of Xet, which has tried again for minutes
        raise PushError(f"Large files could not be sent to {repo_id}: {error}. Push again later.") from error
    except json.JSONDecodeError as error:
        raise PushError(
            f"The Hub answered for {repo_id} with what is no JSON: {error.doc[:100]!r}. Push again later."
        ) from error
    except PushError:
        raise
    except (RuntimeError, LocalEntryNotFoundError) as error:
        raise PushError(f"{error} {error.__cause__ or ''}".strip()) from error


def _reason(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    if status == 401 and error.response.request.url.path.endswith("/whoami-v2"):
        return "The Hub does not know the token (401). Run `hf auth login` anew, or set HF_TOKEN to a valid one."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no repository {repo_id} that the token may see ({status}). Check the name; push a model first."
    if status in (401, 403):
        return (
            f"The token may not write to {repo_id} ({status}), be it a commit or a pull request. Take a token with write "
            "access (https://huggingface.co/settings/tokens), or name a repository of yours: owner/name."
        )
    remedy = " Push again later." if status in TRANSIENT or status == CONFLICT else ""
    return f"The Hub refused {repo_id} ({status}): {error.server_message or error}.{remedy}"
