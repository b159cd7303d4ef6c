"""What all layouts share: a list of images that know where their masks are, and how the two are decoded."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from evaluation.mask_samples import MaskSample, check_sample
from modeling_rats.image_inputs_rats import rgb_image


class AnnotatedImage(NamedTuple):
    """An image of a layout, nothing decoded.

    Attributes:
        subject: How errors speak of it: its file name below the data set's folder.
        image: Its file.
        read_mask: Decodes its mask, (height, width) integers; raises ValueError that names `subject`, or OSError.
        mask: The file of its mask; None where the mask is in the annotations.
    """

    subject: str
    image: Path
    read_mask: Callable[[], np.ndarray]
    mask: Path | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes:
        name: For tables and messages.
        tree: The folders and files that are read, as they are shown to users.
        read: Lists the images below the data set's folder, in a fixed order, from annotations and folder listings alone.
        folder: Name of the data set's folder. The root may be this folder or the one that holds it.
    """

    name: str
    tree: str
    read: Callable[[Path], list[AnnotatedImage]]
    folder: str | None = None

    def annotated_images(self, root: str | Path, limit: int | None = None) -> list[AnnotatedImage]:
        """The first `limit` images (all by default) below `root`; nothing is decoded.

        Raises:
            FileNotFoundError: If a folder or an annotation file is missing, or the image or mask of one of these images.
            ValueError: If the annotations contradict themselves, or there are no images.
        """
        root = Path(root).expanduser()
        try:
            if not root.is_dir():
                raise FileNotFoundError(f"root={root} is no folder; it must hold the data set.")
            if self.folder and (root / self.folder).is_dir():
                root = root / self.folder
            images = self.read(root)[:limit]
            self._check_files(images)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} Expected layout ({self.name}):\n{self.tree}") from error
        if not images:
            raise ValueError(
                f"The split below {root} holds no images, so there is nothing to score; expected layout ({self.name}):\n"
                f"{self.tree}"
            )
        return images

    def _check_files(self, images: list[AnnotatedImage]) -> None:
        """Refuse a data set with holes before an hour is spent on it."""
        files = [path for image in images for path in (image.image, image.mask) if path is not None]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} images and masks are missing, the first is {missing[0]}; all that are scored "
                "must be there. Unpack the archive again, or limit the number of images."
            )


def decode_sample(annotated: AnnotatedImage, ignore_label: int | None) -> MaskSample:
    """Image and mask of one entry of a layout.

    Raises:
        ValueError: If one of them cannot be decoded, or they do not belong together.
    """
    try:
        mask = annotated.read_mask()
        image = _image_like(annotated.image, mask.shape)
    except (OSError, SyntaxError) as error:  # the second is what Pillow raises for some broken PNG files
        raise ValueError(
            f"The image or mask of {annotated.subject} cannot be decoded ({error}); all images that are scored must be "
            "readable. Unpack the archive again."
        ) from error
    return check_sample(image, mask, annotated.subject, ignore_label)


def paired_files(root: Path, images: str, masks: str) -> list[tuple[str, Path, Path]]:
    """Images (.jpg, .jpeg in any case) and masks (.png) of the same name in two folders and their subfolders.

    Returns:
        (name below the folder of images, image, mask), in order of the names.

    Raises:
        FileNotFoundError: If a folder is missing, or an image or mask has no partner.
        ValueError: If two images have the same name.
    """
    image_files = _by_name(root / images, (".jpg", ".jpeg"))
    mask_files = _by_name(root / masks, (".png",))
    alone = sorted(image_files.keys() ^ mask_files.keys())
    if alone:
        folder = images if alone[0] in image_files else masks
        raise FileNotFoundError(
            f"{len(alone)} images or masks have no partner, the first is {alone[0]} of {root / folder}; each image in {images} "
            f"needs a mask of its name in {masks} and the reverse. Unpack both archives again."
        )
    return [(path.relative_to(root / images).as_posix(), path, mask_files[name]) for name, path in sorted(image_files.items())]


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder and its subfolders by their name without suffix; hidden ones are passed over."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing.")
    files: dict[str, Path] = {}
    for path in folder.rglob("*"):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{path} and {files[name].name} have the same name, so a mask of it is ambiguous; keep one.")
        files[name] = path
    return files


def read_labels(path: Path) -> np.ndarray:
    """A mask whose pixels are the labels themselves, grey or indices of a palette; (height, width) integers."""
    with Image.open(path) as file:
        return np.asarray(file)


def read_colour_codes(path: Path, subject: str) -> np.ndarray:
    """A mask whose pixels are numbers written as colours, R + 256 G + 65536 B; (height, width) int32.

    Raises:
        ValueError: If it is no RGB image.
    """
    with Image.open(path) as file:
        if file.mode != "RGB":
            raise ValueError(
                f"The mask of {subject} is a PNG of mode {file.mode}; this layout writes ids as colours, so it must be RGB. "
                "Use the published files, not converted ones."
            )
        red, green, blue = np.moveaxis(np.asarray(file).astype(np.int32), 2, 0)
    return red + 256 * green + 65536 * blue  # (height, width)


def _image_like(path: Path, mask_shape: tuple[int, ...]) -> Image.Image:
    """The image as RGB, upright unless its mask was drawn on the pixels as stored, which its shape tells."""
    with Image.open(path) as file:
        image = rgb_image(file)
        stored_shape, upright_shape = (file.height, file.width), (image.height, image.width)
        if upright_shape != mask_shape == stored_shape:
            file.getexif()[ExifTags.Base.Orientation] = 1
            image = rgb_image(file)
    return image
