"""Pictures from strangers: checked before anything of them is decoded, and every refusal told."""

import warnings
from abc import ABCMeta
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio_client.utils import strip_invalid_filename_characters
from PIL import Image, UnidentifiedImageError

from modeling_rats.image_inputs_rats import rgb_image

MAX_FILE_BYTES = 20_000_000
MAX_PIXELS = 25_000_000
MAX_NAME_BYTES, UNNAMED = 100, "picture.png"
MIN_SIDE_PX, MAX_ASPECT_RATIO = 16, 16
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # others, such as EPS, start programs to be read


@dataclass(frozen=True)
class Upload:
    """A picture that was read: RGB and upright, and the name of its file."""

    image: Image.Image
    name: str


class UploadRefused(gr.Error):
    """Says what is wrong with a picture; nothing of the server's."""

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


async def _take_no_address(self: gr.Image, path: Any) -> str | None:
    """Gradio would fetch what is an address."""
    if "://" in str(path):
        raise UploadRefused("Addresses are not fetched. Download the picture, and send its file.")
    return await gr.Image.async_move_resource_to_block_cache(self, path)


def _read_payload(self: gr.Image, payload: Any) -> "Upload | UploadRefused | None":
    """Gradio would decode whatever it is given, and have no words for what it cannot decode.

    A refusal is handed on, not raised: raised here it would mark every view of the page as failed.
    """
    if payload is None:
        return None
    try:
        if payload.path is None:
            raise UploadRefused("Send the picture as a file; text, such as a data URL, is not read.")
        path = Path(payload.path).resolve()
        # Gradio checks what bears its mark, which one may leave out.
        if not path.is_relative_to(Path(self.GRADIO_CACHE).resolve()):
            raise UploadRefused("Send the picture as a file; paths of the server are not read.")
        if not path.is_file():  # deleted after a while
            raise UploadRefused("This picture is not kept any more. Pick it again, or send it again.")
        name = strip_invalid_filename_characters(Path(payload.orig_name or path.name).name, MAX_NAME_BYTES)
        return Upload(read_upload(path), name if name[:1] not in ("", ".") else UNNAMED)
    except UploadRefused as refusal:
        return refusal


# A field for a picture, whose value arrives as `Upload`, or as what refuses it. Made without a class statement and without the
# metaclass's own work, since that writes a stub file beside the source of every component.
PictureField: Any = ABCMeta.__new__(
    ComponentMeta,
    "PictureField",
    (gr.Image,),
    {
        "__module__": __name__,
        "is_template": True,  # the browser shows it as the class that it is made of
        "preprocess": _read_payload,
        "async_move_resource_to_block_cache": _take_no_address,
    },
)


def read_upload(path: Path) -> Image.Image:
    """Read a picture's file; of an animation or several pages the first.

    Raises:
        UploadRefused: If it is too large, too small, or no picture that can be read.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UploadRefused(f"The file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are taken. Shrink the picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of what MAX_PIXELS refuses below
            opened = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UploadRefused(f"The picture has too many pixels; at most {MAX_PIXELS:,} are taken. Shrink it.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UploadRefused(f"This is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file. Send one of these.") from error
    with opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:  # known from the file's head, before anything is decoded
            raise UploadRefused(f"The picture has {width} x {height} pixels; at most {MAX_PIXELS:,} are taken. Shrink it.")
        if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise UploadRefused(
                f"The picture is {width} x {height} pixels; a side must have {MIN_SIDE_PX} at least, and be no more than "
                f"{MAX_ASPECT_RATIO} times as long as the other. Crop it."
            )
        try:
            return rgb_image(opened)
        except Exception as error:  # each of Pillow's decoders has its own
            raise UploadRefused("The file is damaged or was cut off. Save the picture anew, and send that.") from error
