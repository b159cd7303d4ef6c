"""What of a model folder belongs on the Hub, and what must never get there."""

import json
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import requires
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import get_token

from hub_cards.records import ModelRecord, without_places
from hub_cards.results import FOLDER as RESULTS

CARD = "README.md"
HANDLER = Path(__file__).with_name("handler.py")
# Optimiser states, checkpoints of training and other pickles, which run code where they are loaded.
REFUSED_SUFFIXES = {".bin", ".ckpt", ".dill", ".distcp", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
# What a key of somebody's looks like: the Hub, GitHub, AWS, OpenAI, Google, Slack, and the head of a private key.
SECRET = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bAKIA[0-9A-Z]{16}\b|\bsk-[\w-]{30,}"
    rb"|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
MAX_SEARCHED_BYTES = 10_000_000  # of one file; what is larger holds weights or pictures


def gather(folder: Path, model: ModelRecord) -> dict[str, bytes | Path]:
    """The files of a model folder as its repository holds them, without card and results.

    Hidden files and `__pycache__` stay behind. The model's code is added if the folder has none, with handler.py and
    requirements.txt for Inference Endpoints; the record of training tells no place of its machine.

    Args:
        folder: Folder that save_pretrained wrote.
        model: What it says of itself.

    Returns:
        Content or file, by path in the repository.

    Raises:
        ValueError: If it holds pickles or secrets.
    """
    files: dict[str, bytes | Path] = {}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            files["/".join(parts)] = file
    _refuse_pickles(folder, files)
    own = {path: content for path, content in files.items() if path != CARD and Path(path).parts[0] != RESULTS}
    gathered: dict[str, bytes | Path] = {HANDLER.name: HANDLER, "requirements.txt": requirements().encode(), **own}
    if not any(path.startswith("modeling_") and path.endswith(".py") for path in own):
        gathered |= code_of(model)
    if model.training is not None:
        gathered["training.json"] = _as_json(without_places(model.training))
    refuse_secrets(gathered)
    return gathered


def code_of(model: ModelRecord) -> dict[str, bytes]:
    """The files that let a repository be loaded without this package, and config.json if it does not name them yet."""
    from modeling_rats import RatsConfig  # takes seconds, and results alone do not need it
    from modeling_rats.remote_code import AUTO_MAP, CUSTOM_PIPELINES

    with TemporaryDirectory() as empty:
        RatsConfig().save_pretrained(empty)  # lays the code of all classes beside it (modeling_rats/remote_code.py)
        code = {file.name: file.read_bytes() for file in Path(empty).glob("*.py")}
    tables = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    if tables.keys() <= model.config.keys():
        return code
    return code | {"config.json": _as_json(tables | model.config)}


def requirements() -> str:
    """What Inference Endpoints install beside their own: the libraries that the package itself asks for."""
    return "".join(f"{line}\n" for line in requires("modeling-rats") or [] if "extra ==" not in line)


def refuse_secrets(files: Mapping[str, bytes | Path]) -> None:
    """Look for keys and tokens before anything is sent.

    Raises:
        ValueError: If one is found; it tells the file and the line, and not the secret.
    """
    token = (get_token() or "").encode()
    for path, content in files.items():
        if isinstance(content, Path):
            if content.stat().st_size > MAX_SEARCHED_BYTES:
                continue
            content = content.read_bytes()
        found = SECRET.search(content)
        start = found.start() if found else content.find(token) if token else -1
        if start >= 0:
            line = content[:start].count(b"\n") + 1
            raise ValueError(
                f"{path} holds what looks like a secret key or token in line {line}; what is pushed others can read. Take "
                "it out, and revoke it if it has been shared."
            )


def _refuse_pickles(folder: Path, files: Iterable[str]) -> None:
    refused = [path for path in files if REFUSED_SUFFIXES & {suffix.lower() for suffix in Path(path).suffixes}]
    if refused:
        raise ValueError(
            f"Folder {folder} holds {', '.join(refused)}; a model folder on the Hub holds its weights as safetensors, and no "
            "optimiser states or pickles, which run code where they are loaded. Move them away."
        )


def _as_json(record: Mapping) -> bytes:
    return json.dumps(record, indent=2, allow_nan=False).encode() + b"\n"
