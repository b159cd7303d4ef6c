"""Segmentation on Hugging Face Inference Endpoints: this file lies in the model's repository as handler.py.

A request is an image as its body (`Content-Type: image/...`), or JSON:

    {"inputs": "<base64 of an image file>", "parameters": {"threshold": 0.2}}

`inputs` may be a list of images; the answer is then a list of answers. The answer for an image is a list as
`InferenceClient.image_segmentation` reads it: `label`, `score`, `mask` (base64 of a PNG of the image's size, 255 inside).

A backbone answers with parts, most pixels first, which also have `box`, `area`, `register`, `registers` and `head` as in the
pipeline "part-segmentation". If the repository has a part dictionary in its folder `dictionary`, parts are labelled by its
entries (`name` and `name_score`, too). A model that was fine-tuned to segment answers as transformers' pipeline
"image-segmentation"; without a `subtask`, with the task that it was trained for. Semantic segments have no score (null).
"""

import base64
import binascii
import io
import json
import os
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import pipeline

MAX_IMAGES = 16  # in one request
MAX_FILE_BYTES = 20_000_000  # of an image file
MAX_PIXELS = 40_000_000  # of an image
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # others, such as EPS, start programs to be read
MAX_INPUT_PX = 1024  # of a side at which the model sees an image
MAX_SEGMENTED_PX = 1333  # of a side at which queries get their masks, each of this size; larger images are shrunk for it
DICTIONARY = "dictionary"  # folder of the repository
PARTS, SEGMENTS = "part-segmentation", "image-segmentation"  # pipelines
PARAMETERS = {
    PARTS: ("size", "threshold", "mask_threshold", "merge_threshold", "max_parts", "min_area", "upsample_similarities"),
    SEGMENTS: ("subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold"),
}


class EndpointHandler:
    """What an endpoint loads and calls.

    Args:
        path: The repository's folder.
    """

    task: Any = PARTS  # which the repository's config.json makes known

    def __init__(self, path: str = ""):
        device = 0 if torch.cuda.is_available() else -1
        self.defaults: dict[str, Any] = {}
        if _read(path, "config.json")["model_type"] == "rats_universal_segmentation":
            self.task = SEGMENTS
            if os.path.isfile(os.path.join(path, "training.json")):
                self.defaults = {"subtask": _read(path, "training.json")["settings"]["task"]}
        folder = os.path.join(path, DICTIONARY)
        options: Any = {"dictionary": folder} if self.task == PARTS and os.path.isdir(folder) else {}
        self.segmenter: Any = pipeline(self.task, model=path, trust_remote_code=True, device=device, **options)

    def __call__(self, data: dict[str, Any]) -> list:
        """Answer one request.

        Args:
            data: `inputs` (an image, or a list of them), and maybe `parameters`.

        Raises:
            ValueError: With a reason for the sender, if an input is no image, too large or too many, or a parameter is wrong.
        """
        inputs = data.get("inputs")
        if inputs is None:
            raise ValueError("The request has no 'inputs'; send an image as the body, or JSON with base64 of an image file.")
        many = inputs if isinstance(inputs, list) else [inputs]
        if len(many) > MAX_IMAGES:
            raise ValueError(f"{len(many)} images were sent; one request takes {MAX_IMAGES}. Send several requests.")
        parameters = _checked(data.get("parameters") or {}, PARAMETERS[self.task])
        # One after the other: all images and masks of a request at once may not fit into memory.
        answers = [self._masks(_image(one, f"Image {place} of the request"), parameters) for place, one in enumerate(many)]
        return answers if isinstance(inputs, list) else answers[0]

    def _masks(self, image: Image.Image, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        given = image
        if self.task == SEGMENTS:
            given = image.copy()
            given.thumbnail((MAX_SEGMENTED_PX, MAX_SEGMENTED_PX))
        try:
            return [_answer(found, image.size) for found in self.segmenter(given, **self.defaults | parameters)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"The parameters {parameters} do not fit: {error}") from error


def _read(folder: str, name: str) -> dict[str, Any]:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


def _checked(parameters: Any, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(parameters, dict):
        raise ValueError(f"'parameters' is a {type(parameters).__name__}; it must be an object such as {{'threshold': 0.2}}.")
    unknown = sorted(parameters.keys() - {*known})
    if unknown:
        raise ValueError(f"Parameters {', '.join(unknown)} are not known; there are {', '.join(known)}.")
    size = parameters.get("size")
    is_size = isinstance(size, dict) and size.keys() == {"height", "width"}
    if size is not None and not (is_size and all(type(side) is int and 0 < side <= MAX_INPUT_PX for side in size.values())):
        raise ValueError(
            f"size={size} must be {{'height': pixels, 'width': pixels}}, each at most {MAX_INPUT_PX}; the masks have the "
            "image's own size whatever it is."
        )
    return parameters


def _image(given: Any, name: str) -> Image.Image:
    """An image as it is displayed. Paths and addresses are not followed: they would be this machine's and its network's."""
    if not isinstance(given, Image.Image):
        given = _open(given, name)
    if given.format is not None and given.format not in FORMATS:
        raise ValueError(f"{name} is of the format {given.format}; send one of {', '.join(FORMATS)}.")
    if given.width * given.height > MAX_PIXELS:  # known from the file's head, before anything is decoded
        raise ValueError(f"{name} has {given.width} x {given.height} pixels; at most {MAX_PIXELS:,} are taken. Shrink it.")
    try:
        return ImageOps.exif_transpose(given).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be decoded ({error}); the file is damaged or was cut off. Send it again.") from error


def _open(given: Any, name: str) -> Image.Image:
    what = "it must be base64 of an image file, such as PNG or JPEG"
    if not isinstance(given, str):
        raise ValueError(f"{name} is a {type(given).__name__}; {what}.")
    if len(given) > MAX_FILE_BYTES * 4 // 3:
        raise ValueError(f"{name} has more than {MAX_FILE_BYTES:,} bytes; shrink it.")
    text = given.partition(",")[2] if given.startswith("data:") else given
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is no base64 ({error}); {what}.") from error
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is no image that can be read ({error}); {what}.") from error


def _answer(found: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    mask, png = found["mask"], io.BytesIO()
    (mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)).save(png, format="PNG")
    return {**found, "mask": base64.b64encode(png.getvalue()).decode("ascii")}
