"""Writes a model folder: weights, configuration, code, image processor, and the record of where the weights come from."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, PreTrainedModel


def write_folder(folder: Path, model: PreTrainedModel, processor: BaseImageProcessor, record: Mapping[str, Any]) -> None:
    """Replaces the files of a model folder one by one by whole ones; others in it stay."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    (temporary / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        os.replace(file, folder / file.name)
    temporary.rmdir()
