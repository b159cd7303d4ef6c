"""Where weights that others trained come from: a file in a repository on the Hub, or one on this machine."""

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import sha_fileobj

from hub_cards.records import HUB_NAME, LICENCE_KEYS
from modeling_rats.checkpoint_file_rats import CHECKPOINT_SUFFIXES, is_checkpoint_file
from modeling_rats.original_tokens_rats import RegisterOrder

AUTHORS = "TimingYang/RATS"  # the repository of the paper's authors


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint file and what is known of it.

    Attributes:
        path: The file on this machine.
        file: Its path in the repository; its name where there is none.
        repo_id: Repository on the Hub, owner/name.
        commit: Of the repository.
        licence: What the repository's card says of it, by `LICENCE_KEYS`; empty if it says nothing.
    """

    path: Path
    file: str
    repo_id: str | None = None
    commit: str | None = None
    licence: Mapping[str, str] | None = None

    def record(self) -> dict[str, Any]:
        """As training.json holds it."""
        with self.path.open("rb") as content:
            digest = sha_fileobj(content).hex()
        epochs = re.search(r"_ep(\d+)\b", Path(self.file).stem)
        told = {"repo_id": self.repo_id, "commit": self.commit, "file": self.file, "sha256": digest}
        return {**told, "epochs": int(epochs[1]) if epochs else None, "licence": dict(self.licence or {})}


def find_weights(source: str, file: str | None = None, revision: str | None = None) -> WeightSource:
    """The checkpoint that a user names; one on the Hub is downloaded, or found in the cache.

    Args:
        source: Repository on the Hub, owner/name, or a file.
        file: Path in the repository.
        revision: Branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: If there is no such file, repository or revision.
        ValueError: If `file` is missing, or given with a file.
        OSError: If the Hub cannot be reached or refuses.
    """
    if is_checkpoint_file(source):
        if file is not None:
            raise ValueError(f"{source} is a file, and file={file} names one in a repository; leave one of them out.")
        if revision is not None:
            raise ValueError(f"{source} is a file, and revision={revision} is of a repository; leave that out.")
        if not Path(source).is_file():
            raise FileNotFoundError(f"There is no file {source}; check the path, or name a repository on the Hub (owner/name).")
        return WeightSource(Path(source), Path(source).name)
    repository = _Repository.of(source, revision)
    if file is None:
        raise ValueError(f"{source} is a repository; say which of its files holds the weights (--file). {repository.choice()}")
    return repository.fetch(file)


def find_series(source: str, file: str | None = None, revision: str | None = None) -> Iterator[WeightSource]:
    """The checkpoints beside that of `find_weights` whose names differ in the last number alone, in its order.

    Each is downloaded when its turn comes; arguments and errors as in `find_weights`.

    Raises:
        ValueError: Also if the name has no number.
    """
    named = find_weights(source, file, revision)
    place = Path(named.file)
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", place.name)
    if match is None:
        raise ValueError(f"{place.name} has no number in its name, so that it is one of no series; leave --all out.")
    wanted = re.compile(f"{re.escape(match[1])}(\\d+){re.escape(match[3])}")
    if named.repo_id is None:
        beside = [path.name for path in named.path.parent.iterdir()]
    else:
        repository = _Repository.of(source, named.commit)
        beside = [Path(path).name for path in repository.files if Path(path).parent == place.parent]
    numbers = {name: int(found[1]) for name in beside if (found := wanted.fullmatch(name))}
    for name in sorted(numbers, key=lambda name: numbers[name]):
        if named.repo_id is None:
            yield WeightSource(named.path.with_name(name), name)
        else:
            yield repository.fetch((place.parent / name).as_posix())


@dataclass(frozen=True)
class _Repository:
    repo_id: str
    commit: str
    files: list[str]
    licence: dict[str, str]

    @classmethod
    def of(cls, repo_id: str, revision: str | None) -> "_Repository":
        if HUB_NAME.fullmatch(repo_id) is None:
            raise FileNotFoundError(
                f"{repo_id!r} is neither a file nor a repository on the Hub (owner/name); check the spelling."
            )
        with _errors_explained(repo_id):
            info = HfApi().model_info(repo_id, revision=revision)
        card = info.card_data.to_dict() if info.card_data else {}
        licence = {key: str(card[key]) for key in LICENCE_KEYS if card.get(key)}
        return cls(repo_id, str(info.sha), [file.rfilename for file in info.siblings or []], licence)

    def fetch(self, file: str) -> WeightSource:
        if file not in self.files:
            raise FileNotFoundError(f"{self.repo_id} has no file {file}. {self.choice()}")
        with _errors_explained(self.repo_id):
            path = hf_hub_download(self.repo_id, file, revision=self.commit)
        return WeightSource(Path(path), file, self.repo_id, self.commit, self.licence)

    def choice(self) -> str:
        found = [file for file in self.files if file.endswith(CHECKPOINT_SUFFIXES)]
        return f"Its checkpoints: {', '.join(found)}." if found else "It has no checkpoint files."


@contextmanager
def _errors_explained(repo_id: str) -> Iterator[None]:
    """Errors of the client as those of files, with a way out."""
    try:
        yield
    except GatedRepoError as error:  # before its parent
        raise PermissionError(
            f"{repo_id} is gated: accept its conditions on its page on the Hub, and run `hf auth login` or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no repository {repo_id} that the token may see; check the name, or run `hf auth login` if it is private."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no such revision; check --revision.") from error
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo_id!r} is no name of a repository ({error}).") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise ConnectionError(
            f"{repo_id} cannot be reached: {error}. Check the network, or give the path of a file that was downloaded before."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no such file: {error}") from error
    except (HfHubHTTPError, HTTPError) as error:
        raise ConnectionError(
            f"{repo_id} cannot be fetched: {error}. Try again later, or give the path of a file that was downloaded before."
        ) from error


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command that reads a checkpoint of the authors'."""
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the repository (default: main)")
    parser.add_argument("--registers", metavar="NAME", help="tensor that holds the registers, where its shape does not tell")
    parser.add_argument("--num_registers", type=int, metavar="N", help="refuse a checkpoint with another number of registers")
    parser.add_argument(
        "--register_order",
        choices=get_args(RegisterOrder),
        default="head_major",
        help="which registers belong to which head: in blocks by head, or in turn (%(default)s, an assumption)",
    )
    parser.add_argument("--num_attention_heads", type=int, metavar="H", help="default: one for each 64 channels, as in DINO")
    parser.add_argument(
        "--position_grid", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="grid of the learned positions, if not square"
    )
    parser.add_argument("--leave_out", nargs="+", default=[], metavar="NAME", help="tensors to ignore")


def reading_options(given: argparse.Namespace) -> dict[str, Any]:
    """Those of `add_reading_options` as `read_original_checkpoint` takes them."""
    names = ("registers", "num_registers", "register_order", "num_attention_heads", "position_grid", "leave_out")
    return {name: getattr(given, name) for name in names}
