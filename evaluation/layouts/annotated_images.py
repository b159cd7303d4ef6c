"""What all layouts share: a list of images that know where their masks are, and how the two are decoded."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import ExifTags, Image

from evaluation.mask_samples import MaskSample, check_sample
from modeling_rats.image_inputs_rats import rgb_image


class ImageFiles(Protocol):
    """Anything with the file of an image, and that of its mask where it has one."""

    @property
    def image(self) -> Path: ...
    @property
    def mask(self) -> Path | None: ...


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderTree:
    """Where the files of a data set are.

    Attributes:
        name: For tables and messages.
        tree: The folders and files that are read, as they are shown to users.
        folder: Name of the data set's folder. The root may be this folder or the one that holds it.
    """

    name: str
    tree: str
    folder: str | None = None

    @contextmanager
    def opened(self, root: str | Path) -> Iterator[Path]:
        """Gives the data set's folder, and adds the tree to what is said within of files that are missing.

        Raises:
            FileNotFoundError: If `root` is no folder, or from within.
        """
        root = Path(root).expanduser()
        try:
            if not root.is_dir():
                raise FileNotFoundError(f"root={root} is no folder; it must hold the data set.")
            yield root / self.folder if self.folder and (root / self.folder).is_dir() else root
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} Expected layout ({self.name}):\n{self.tree}") from error

    def check_files(self, folder: Path, images: Sequence[ImageFiles]) -> None:
        """Refuse a data set without images, or with holes, before an hour is spent on it.

        Raises:
            FileNotFoundError: If the file of an image or mask is missing.
            ValueError: If there are no images.
        """
        if not images:
            raise ValueError(
                f"The split below {folder} holds no images, so there is nothing to read; expected layout ({self.name}):\n"
                f"{self.tree}"
            )
        files = [path for image in images for path in (image.image, image.mask) if path is not None]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} images and masks are missing, the first is {missing[0]}; all that are read "
                "must be there. Unpack the archive again, or limit the number of images where that can be done."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout(FolderTree):
    """How a data set lies on disk.

    Attributes:
        read: Lists the images below the data set's folder, in a fixed order, from annotations and folder listings alone.
    """

    read: Callable[[Path], list[AnnotatedImage]]

    def annotated_images(self, root: str | Path, limit: int | None = None) -> list[AnnotatedImage]:
        """The first `limit` images (all by default) below `root`; nothing is decoded.

        Raises:
            FileNotFoundError: If a folder or an annotation file is missing, or the image or mask of one of these images.
            ValueError: If the annotations contradict themselves, or there are no images.
        """
        with self.opened(root) as folder:
            images = self.read(folder)[:limit]
            self.check_files(folder, images)
        return images


def decode_sample(annotated: AnnotatedImage, ignore_label: int | None) -> MaskSample:
    """Image and mask of one entry of a layout.

    Raises:
        ValueError: If one of them cannot be decoded, or they do not belong together.
    """
    try:
        mask = annotated.read_mask()
        image = image_like(annotated.image, mask.shape)
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


def image_like(path: Path, mask_shape: tuple[int, ...]) -> Image.Image:
    """The image as RGB, upright unless its mask was drawn on the pixels as stored, which its shape tells."""
    with Image.open(path) as file:
        image = rgb_image(file)
        stored_shape, upright_shape = (file.height, file.width), (image.height, image.width)
        if upright_shape != mask_shape == stored_shape:
            file.getexif()[ExifTags.Base.Orientation] = 1
            image = rgb_image(file)
    return image
