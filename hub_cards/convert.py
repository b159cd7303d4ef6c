"""Makes a model folder of the weights that the authors of RATS published.

    python -m hub_cards.convert TimingYang/RATS --file base/checkpoint_teacher_ep0388.pth --output rats-vitb
    python -m hub_cards.convert TimingYang/RATS --file base/checkpoint_teacher_ep0388.pth --output rats-vitb-series --all

The folder holds what a pretrained one does: weights, configuration, code, image processor, and a card, which says whose weights
they are. `hub_cards.push` publishes it. The files and the authors' code were never at hand here: see
`modeling_rats/original_checkpoint_rats.py` for how a checkpoint is read, and `evaluation.check_reading` to measure whether the
reading is right.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import disable_progress_bars

from hub_cards.card import write_card
from hub_cards.model_folder import write_folder
from hub_cards.records import HUB_NAME
from hub_cards.weight_source import WeightSource, add_reading_options, find_series, find_weights, reading_options
from modeling_rats import RatsImageProcessor, load_original_checkpoint
from modeling_rats.original_checkpoint_rats import ConversionReport

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: WeightSource,
    output: Path,
    *,
    with_head: bool = False,
    dtype: str = "float32",
    image_size: int | None = None,
    licence: str | None = None,
    base_model: str | None = None,
    **reading: Any,
) -> ConversionReport:
    """Write the model folder of one checkpoint, with its card.

    Args:
        source: The checkpoint.
        output: The folder; files of an earlier conversion are replaced.
        with_head: Keep the DINO head, as `RatsForPreTraining`.
        dtype: Of the weights that are written: float32, float16 or bfloat16.
        image_size: Side in px of the square that the image processor makes; that of the learned positions if None.
        licence: Of the weights, as an identifier of the Hub; what the source's card says if None.
        base_model: Repository that a file on this machine was downloaded from.
        reading: As `read_original_checkpoint` takes it.

    Returns:
        What became of each tensor.

    Raises:
        ValueError: If the checkpoint cannot be read as RATS, the patch does not divide `image_size`, or a weight is too large
            for `dtype`.
    """
    model, report = load_original_checkpoint(source.path, with_head=with_head, **reading)
    height, width = (side * patch for side, patch in zip(model.config.grid_size, model.config.patch_height_width, strict=True))
    if image_size is not None:
        height = width = image_size
    if any(side % patch or side < patch for side, patch in zip((height, width), model.config.patch_height_width, strict=True)):
        step = math.lcm(*model.config.patch_height_width)
        nearest = max(round((image_size or step) / step), 1) * step
        raise ValueError(
            f"image_size={image_size} must be a multiple of the patch, {model.config.patch_size} px; use {nearest}."
        )
    model.to(dtype=DTYPES[dtype])  # type: ignore[call-arg]  # whose annotation lost its arguments
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} does not fit into {dtype}: a value is too large. Use float32 or bfloat16.")
    processor = RatsImageProcessor(size={"height": height, "width": width})
    told = source.record()
    if licence:
        told |= {"licence": {"license": licence}, "licence_is_stated": True}  # by whoever converts, and not looked up
    if base_model:
        told |= {"repo_id": base_model, "repo_id_is_stated": True}
    write_folder(output, model, processor, conversion_record(told, report, {"dtype": dtype, **reading}))
    write_card(output, licence=licence)
    return report


def conversion_record(source: Mapping[str, Any], report: ConversionReport, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What training.json says of weights that were trained elsewhere."""
    return {
        "source": dict(source),
        "assumed": report.assumed,
        "adapted": report.adapted,
        "not_taken": report.not_taken,
        "settings": dict(settings),
        "versions": {name: version(name) for name in ("modeling-rats", "torch", "transformers")},
    }


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Command line of `convert`; what the user can mend ends it with a message and no traceback.

    Returns:
        The folders.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.base_model is not None and HUB_NAME.fullmatch(given.base_model) is None:
        parser.error(f"--base_model {given.base_model} must be a repository on the Hub, owner/name.")
    if given.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    options = {name: getattr(given, name) for name in ("with_head", "dtype", "image_size", "licence", "base_model")}
    options |= reading_options(given)
    folders = []
    try:
        if given.output.is_file():
            raise FileExistsError(f"--output {given.output} is a file; name a folder.")
        named = (given.source, given.file, given.revision)
        for source in find_series(*named) if given.all else [find_weights(*named)]:
            folder = given.output / Path(source.file).stem if given.all else given.output
            if (folder / "config.json").exists() and not given.overwrite:
                if not given.all:
                    raise FileExistsError(f"{folder} holds a model already; name another --output, or add --overwrite.")
                print(f"{source.file}: {folder} is there already, skipped (--overwrite converts it again)")
                continue
            report = convert(source, folder, **options)
            folders.append(folder)
            if not given.quiet:
                print(report if not given.all else f"{source.file} -> {folder}")
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if not given.quiet:
        print(f"{len(folders)} model folders written to {given.output}" if given.all else f"Model folder: {given.output}")
    return folders


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hub_cards.convert", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="repository on the Hub (TimingYang/RATS), or a checkpoint file")
    parser.add_argument(
        "--file", metavar="PATH", help="checkpoint in the repository; without it those that are there are listed"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="model folder, with --all a folder of them"
    )
    parser.add_argument(
        "--all", action="store_true", help="convert each checkpoint of its folder that differs in the last number only"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that --output holds")
    parser.add_argument("--with_head", action="store_true", help="keep the DINO head, to go on pretraining")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights that are written (%(default)s)")
    parser.add_argument(
        "--image_size", type=int, metavar="PX", help="side that the image processor resizes to (default: that of pretraining)"
    )
    parser.add_argument(
        "--licence", metavar="ID", help="licence of the weights (mit, apache-2.0 ...), if the source's card names none"
    )
    parser.add_argument("--base_model", metavar="OWNER/NAME", help="repository that a local file was downloaded from")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    add_reading_options(parser)
    return parser


if __name__ == "__main__":
    main()
