"""Pictures of part maps, without true masks.

python -m evaluation.visualize IMAGE... --model FOLDER_OR_ID --output DIR
python -m evaluation.visualize --dataset NAME_OR_PATH --model FOLDER_OR_ID --output DIR
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image
from transformers.utils.logging import disable_progress_bar

from evaluation.data_sets import decode_image, open_images
from evaluation.segmenters import ImageBatch, load_rats, rats_segmenter
from modeling_rats.image_inputs_rats import rgb_image
from modeling_rats.visualization import draw_part_map, side_by_side


def draw_part_maps(images: Iterator[tuple[str, Image.Image]], segment, folder: Path) -> list[Path]:
    """Draws each named RGB image beside its part map, as PNG.

    Args:
        images: Name and RGB image.
        segment: A segmenter of `evaluation.segmenters`.
        folder: Where the pictures go; made if missing.

    Returns:
        The paths of the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, image in images:
        (label_map,) = segment(ImageBatch([image], [(image.height, image.width)], []))
        paths.append(folder / f"{name}.png")
        side_by_side([image, draw_part_map(image, label_map)], captions=["image", "parts"]).save(paths[-1])
    return paths


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Runs the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> list[Path]:
    """Runs the command line; returns the paths of the pictures."""
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
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    if bool(given.images) == bool(given.dataset):
        parser.error("name either image files or a --dataset.")
    if len({path.stem for path in given.images}) < len(given.images):
        parser.error("two images have the same name, and their pictures would too; draw them into different folders.")
    if not sys.stderr.isatty():
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    segment = rats_segmenter(*load_rats(given.model), given.image_size)
    if given.images:
        images = _read_files(given.images)
    else:
        rows, column = open_images(
            given.dataset, given.config, given.split or "train", given.image_column, given.dataset_revision
        )
        images = _read_rows(islice(rows, given.num_pictures), column)
    paths = draw_part_maps(images, segment, given.output)
    print(f"{len(paths)} pictures in {given.output}")
    return paths


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
