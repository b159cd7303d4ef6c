"""Pictures of part maps and of registers, without true masks: what the demo shows, as files.

python -m evaluation.visualize IMAGE... --model FOLDER_OR_ID --output DIR
python -m evaluation.visualize --dataset NAME_OR_PATH --model FOLDER_OR_ID --output DIR
python -m evaluation.visualize IMAGE... --model FOLDER_OR_ID --output DIR --registers 3 7 --figure figure.pdf
python -m evaluation.visualize IMAGE... --model FOLDER_OR_ID --output DIR --video FOLDER_AT_STEP_100 FOLDER_AT_STEP_200 ...
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from evaluation.backbones import read_model_type
from evaluation.data_sets import decode_image, open_images
from evaluation.part_figure import SUFFIXES, draw_figure
from evaluation.part_video import draw_video
from evaluation.segmenters import ImageBatch, load_rats, rats_segmenter
from modeling_rats.configuration_rats import PartSimilarity
from modeling_rats.image_inputs_rats import rgb_image
from modeling_rats.image_parts import look
from modeling_rats.visualization import draw_part_map, draw_registers, side_by_side

GALLERY, VIDEO = "registers.png", "parts.gif"


def draw_part_maps(images: Iterable[tuple[str, Image.Image]], segment, folder: Path, with_numbers: bool = False) -> list[Path]:
    """Draws each named RGB image beside its part map, as PNG.

    Args:
        images: Name and RGB image.
        segment: A segmenter of `evaluation.segmenters`.
        folder: Where the pictures go; made if missing.
        with_numbers: Write each register's number on its part.

    Returns:
        The paths of the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, image in images:
        (label_map,) = segment(ImageBatch([image], [(image.height, image.width)], []))
        paths.append(folder / f"{name}.png")
        labels = {int(register): str(register) for register in np.unique(label_map)} if with_numbers else None
        side_by_side([image, draw_part_map(image, label_map, labels=labels)], captions=["image", "parts"]).save(paths[-1])
    return paths


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Runs the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> list[Path]:
    """Runs the command line; returns the paths of the pictures."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if problem := _problem(given):
        parser.error(problem)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    reading = {"part_layer": given.part_layer, "part_similarity": given.part_similarity}
    for name in given.video or []:
        read_model_type(name)  # before anything is drawn
    model, processor = load_rats(given.model, **reading)
    registers = range(model.config.num_registers)
    if not set(given.registers or []) <= set(registers):
        parser.error(f"--registers {given.registers} must be from 0 to {registers[-1]}, the model's last.")
    named = list(_images(given))
    images = [image for _, image in named]
    paths = draw_part_maps(named, rats_segmenter(model, processor, given.image_size), given.output, given.numbers)
    if given.figure is not None or given.registers is not None:
        size = {} if given.image_size is None else {"size": {"height": given.image_size, "width": given.image_size}}
        looked = [look(image, model, processor, **size) for image in images]
    if given.registers is not None and images:
        paths.append(given.output / GALLERY)
        draw_registers(images, [one.similarities for one in looked], given.registers or registers).save(paths[-1])
    if given.figure is not None:
        paths.append(given.output / given.figure)
        draw_figure(looked, paths[-1], given.registers or None)
    if given.video is not None:
        paths.append(given.output / VIDEO)
        draw_video(images, given.video, paths[-1], given.image_size, **reading)
    print(f"{len(paths)} pictures in {given.output}")
    return paths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation.visualize", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--dataset", help="or a data set: Hub name, folder or file")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub; default: its newest state")
    parser.add_argument("--split", help="default: train; a single file has none")
    parser.add_argument("--image_column", help="found when there is one")
    parser.add_argument("--num_pictures", type=int, default=8, help="images of the data set to draw")
    parser.add_argument("--model", required=True, help="folder or Hub name of a RATS model")
    parser.add_argument("--image_size", type=int, metavar="PX", help="side of the input; default: the processor's")
    parser.add_argument("--part_layer", type=int, metavar="L", help="hidden state to read parts from; default: the model's")
    parser.add_argument(
        "--part_similarity",
        choices=get_args(PartSimilarity),
        help="what patches are compared with (RatsConfig); default: the model's",
    )
    parser.add_argument(
        "--registers",
        type=int,
        nargs="*",
        metavar="R",
        help=f"draw these registers over all images, too, a row each, as {GALLERY}; all of them if no number is given",
    )
    parser.add_argument("--numbers", action="store_true", help="write each register's number on its part")
    parser.add_argument(
        "--figure",
        metavar="FILE",
        help="draw images, parts and registers for print (those of --registers, or the five of the most pixels), into this "
        ".pdf, .svg or .png of DIR",
    )
    parser.add_argument(
        "--video",
        nargs="+",
        metavar="MODEL",
        help=f"models of one training in order (training.export_checkpoints); their part maps of the images become {VIDEO}",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    return parser


def _problem(given: argparse.Namespace) -> str | None:
    """What of the options cannot be, told before anything is loaded."""
    if bool(given.images) == bool(given.dataset):
        return "name either image files or a --dataset."
    if given.figure is not None and (Path(given.figure).name != given.figure or Path(given.figure).suffix not in SUFFIXES):
        return f"--figure {given.figure} must be the name of a {', '.join(SUFFIXES)} file, which is written into --output."
    names = [f"{path.stem}.png" for path in given.images]
    names += [GALLERY] if given.registers is not None else []
    names += [given.figure] if given.figure is not None else []
    if len(set(names)) < len(names):
        return "two pictures would have the same name: of two images, or of one and of the gallery or figure. Rename one."
    return None


def _images(given: argparse.Namespace) -> Iterator[tuple[str, Image.Image]]:
    if given.images:
        return _read_files(given.images)
    split = given.split or "train"
    rows, column = open_images(given.dataset, given.config, split, given.image_column, given.dataset_revision)
    return _read_rows(islice(rows, given.num_pictures), column)


def _read_files(paths: Sequence[Path]) -> Iterator[tuple[str, Image.Image]]:
    for path in paths:
        try:
            yield path.stem, rgb_image(Image.open(path))
        except OSError as error:
            raise ValueError(f"{path} is no image that can be read ({error}); name image files.") from error


def _read_rows(rows, column: str) -> Iterator[tuple[str, Image.Image]]:
    for index, row in enumerate(rows):
        try:
            yield f"{index:04d}", decode_image(row[column])
        except Exception as error:  # a broken image is told of and passed over, as in pretraining
            print(f"skipped broken image {index}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
