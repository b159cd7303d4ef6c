"""Opens any data set of images that `datasets` can stream: a Hub name, a local folder, a parquet or webdataset file."""

from pathlib import Path

import PIL.Image
from datasets import Image, IterableDataset, Value, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetsError
from datasets.inspect import SplitsNotFoundError
from huggingface_hub.errors import HFValidationError

from modeling_rats.image_inputs_rats import rgb_image

# Among the OSErrors: datasets' kinds of FileNotFoundError, and ConnectionError without a network.
_NOT_FOUND = (OSError, DatasetsError, SplitsNotFoundError, HFValidationError)
_FILE_BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}


def open_rows(
    dataset: str, config: str | None = None, split: str | None = None, revision: str | None = None
) -> IterableDataset:
    """A stream of rows; nothing is decoded yet.

    Args:
        dataset: Hub name, local folder (parquet, arrow, webdataset, imagefolder), or a single .parquet, .tar or .arrow file.
        config: Configuration of a data set that has several.
        split: Name of the split; a single file has none.
        revision: Branch, tag or commit of a data set on the Hub; its newest state when None.

    Raises:
        FileNotFoundError: If there is no such data set, or it holds no data files.
        ValueError: If the split does not exist, or a local data set is asked for a revision.
    """
    path = Path(dataset).expanduser()
    if dataset and path.exists() and revision is not None:
        raise ValueError(
            f"revision={revision} was given for {dataset}, which is a local file or folder; only data sets on the Hub have "
            "revisions. Leave it out, or name a data set on the Hub (owner/name)."
        )
    if path.is_file():
        return _open_file(path)
    if path.is_dir() and not any(path.iterdir()):
        raise FileNotFoundError(f"dataset={dataset} is an empty folder; it must hold images or parquet, arrow or tar files.")
    try:
        if not dataset:
            raise FileNotFoundError("an empty name")
        dataset = str(path) if path.exists() else dataset
        splits = get_dataset_split_names(dataset, config, revision=revision)
        if split not in splits:
            raise ValueError(f"split={split} is not in {dataset}; it has: {', '.join(splits)}. Name one of them.")
        return load_dataset(dataset, name=config, split=split, revision=revision, streaming=True)
    except _NOT_FOUND as error:
        raise FileNotFoundError(
            f"dataset={dataset} was not found or holds no data ({error}); it must be a Hub name (owner/name), a folder or a "
            "file. Check the spelling, the working folder and, for the Hub, the connection and the revision."
        ) from error


def open_images(
    dataset: str, config: str | None, split: str, image_column: str | None, revision: str | None = None
) -> tuple[IterableDataset, str]:
    """A stream of rows with the image alone, left undecoded, so that a broken image cannot end the stream.

    Args:
        dataset: As in `open_rows`.
        config: As in `open_rows`.
        split: As in `open_rows`.
        image_column: Name of the column; when None, the only column of images there is. Without any, columns of bytes, or of
            bytes and path, are taken for images.
        revision: As in `open_rows`.

    Returns:
        The stream, and the name of its image column.

    Raises:
        ValueError: If the column does not exist, or if none or several could be meant.
    """
    rows = open_rows(dataset, config, split, revision)
    features = rows._resolve_features().features if rows.features is None else rows.features
    image_columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    # What other tools write holds files of images without saying so.
    image_columns = image_columns or [name for name, feature in features.items() if _holds_bytes(feature)]
    if image_column is None and len(image_columns) != 1:
        # A data set with masks has two image columns; by convention the picture is `image`.
        if "image" not in image_columns:
            raise ValueError(
                f"{dataset} has {len(image_columns)} image columns; the one to read must be clear. Its columns: "
                f"{', '.join(features)}. Name it with --image_column."
            )
        image_column = "image"
    column = image_column or image_columns[0]
    if column not in image_columns:
        raise ValueError(
            f"{dataset} has no image column {column}; its image columns: {', '.join(image_columns) or 'none'} "
            f"(all columns: {', '.join(features)}). Name one of them with --image_column."
        )
    return rows.select_columns([column]).cast_column(column, Image(decode=False)), column


def _holds_bytes(feature: object) -> bool:
    """Whether values are bytes, or bytes and a path, as `datasets` stores images."""
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def decode_image(image: dict) -> PIL.Image.Image:
    """An undecoded row of `datasets.Image` (bytes or path) as `rgb_image` gives it to models: RGB, upright."""
    try:
        return rgb_image(Image().decode_example(image))
    except PIL.UnidentifiedImageError as error:  # whose message is the address of the bytes in memory
        raise PIL.UnidentifiedImageError("it is of no known image format") from error


def _open_file(path: Path) -> IterableDataset:
    if path.suffix not in _FILE_BUILDERS:
        raise ValueError(
            f"dataset={path} is a {path.suffix or 'file without a suffix'}; a single file must be one of "
            f"{', '.join(_FILE_BUILDERS)}. Other formats are read from their folder."
        )
    return load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=True)
