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
MAX_READ_BYTES = 10_000_000  # of one file; what is larger holds weights or pictures


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
    files: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            files["/".join(parts)] = file
    _refuse_pickles(folder, files)
    own = {path: _content(file) for path, file in files.items() if path != CARD and Path(path).parts[0] != RESULTS}
    added = {HANDLER.name: HANDLER.read_bytes(), "requirements.txt": requirements(model).encode()}
    gathered: dict[str, bytes | Path] = {**added, **_code_of(model), **own}
    tables = _tables_of_code(model)
    if missing := tables.keys() - model.config.keys():
        gathered["config.json"] = _as_json(model.config | {name: tables[name] for name in sorted(missing)})
    if model.training is not None:
        gathered["training.json"] = _as_json(without_places(model.training))
    refuse_secrets(gathered)
    return gathered


def _code_of(model: ModelRecord) -> dict[str, bytes]:
    """The files that let a repository be loaded without this package; none if the folder has code of its own."""
    if any(model.folder.glob("modeling_*.py")):
        return {}
    from transformers.dynamic_module_utils import custom_object_save  # takes seconds, and results alone do not need it

    from modeling_rats import RatsForUniversalSegmentation, RatsModel

    with TemporaryDirectory() as empty:
        # As saving does: the class's file and all that it imports, among them those of modeling_rats/remote_code.py.
        custom_object_save(RatsForUniversalSegmentation if model.is_segmenter else RatsModel, empty)
        return {file.name: file.read_bytes() for file in Path(empty).glob("*.py")}


def _tables_of_code(model: ModelRecord) -> dict[str, Mapping]:
    """What config.json says of where the classes are."""
    from modeling_rats.remote_code import AUTO_MAP, CUSTOM_PIPELINES, UNIVERSAL_SEGMENTATION_AUTO_MAP

    if model.is_segmenter:
        return {"auto_map": UNIVERSAL_SEGMENTATION_AUTO_MAP}
    return {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}


def requirements(model: ModelRecord) -> str:
    """What Inference Endpoints install beside their own: the libraries that the package asks for; SciPy for Mask2Former's loss,
    without which there is no segmenter."""
    lines = requires("modeling-rats") or []
    needed = [line for line in lines if "extra ==" not in line]
    if model.is_segmenter:
        needed += sorted({line.partition(";")[0].strip() for line in lines if line.startswith("scipy")})
    return "".join(f"{line}\n" for line in needed)


def refuse_secrets(files: Mapping[str, bytes | Path]) -> None:
    """Look for keys and tokens before anything is sent.

    Raises:
        ValueError: If one is found; it tells the file and the line, and not the secret.
    """
    token = (get_token() or "").encode()
    for path, content in files.items():
        if isinstance(content, Path):
            continue
        found = SECRET.search(content)
        start = found.start() if found else content.find(token) if token else -1
        if start >= 0:
            line = content[:start].count(b"\n") + 1
            raise ValueError(
                f"{path} holds what looks like a secret key or token in line {line}; what is pushed others can read. Take "
                "it out, and revoke it if it has been shared."
            )


def _content(file: Path) -> bytes | Path:
    """What is in a file now, so that all fits together whatever happens to the folder; a large one is read when it is sent."""
    return file if file.stat().st_size > MAX_READ_BYTES else file.read_bytes()


def _refuse_pickles(folder: Path, files: Iterable[str]) -> None:
    refused = [path for path in files if REFUSED_SUFFIXES & {suffix.lower() for suffix in Path(path).suffixes}]
    if refused:
        raise ValueError(
            f"Folder {folder} holds {', '.join(refused)}; a model folder on the Hub holds its weights as safetensors, and no "
            "optimiser states or pickles, which run code where they are loaded. Move them away."
        )


def _as_json(record: Mapping) -> bytes:
    return json.dumps(record, indent=2, allow_nan=False).encode() + b"\n"
