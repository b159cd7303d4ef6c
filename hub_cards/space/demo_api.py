"""The page for programs: `/segment` and `/click`, with the page's controls as parameters and with its limits."""

import base64
import io
from typing import Any

import gradio as gr
from part_viewer import PartOptions, PartViewer, ViewedPicture
from picture_upload import Upload, UploadRefused
from PIL import Image


class DemoApi:
    """Answers for programs. The names of parameters are those that they use.

    Args:
        viewer: With the model.
    """

    def __init__(self, viewer: PartViewer):
        self.viewer = viewer

    def segment(
        self,
        picture: Upload | UploadRefused | None,
        size: int,
        max_parts: int,
        merge_threshold: float,
        min_area_percent: float,
        smooth: bool,
        named: bool,
    ) -> dict:
        """The parts of a picture: COCO's JSON, and as `part_map` base64 of a PNG of register numbers + 1."""
        viewed = self._look(picture, size, max_parts, merge_threshold, min_area_percent, smooth, named)
        part_map, told = self.viewer.mask_files(viewed)
        return {**told, "part_map": _base64_png(part_map)}

    def click(
        self,
        picture: Upload | UploadRefused | None,
        x: float,
        y: float,
        size: int,
        max_parts: int,
        merge_threshold: float,
        min_area_percent: float,
        smooth: bool,
        named: bool,
    ) -> dict:
        """The register of the part at a pixel of a picture, and as `map` base64 of a PNG of where it is similar."""
        viewed = self._look(picture, size, max_parts, merge_threshold, min_area_percent, smooth, named)
        width, height = viewed.size
        if x >= width or y >= height:
            raise gr.Error(f"x={x}, y={y} is not in the picture, {width} x {height} pixels.", print_exception=False)
        register = viewed.register_at(x * viewed.shown.width / width, y * viewed.shown.height / height)
        (found,) = [part for part in viewed.segments if part["register"] == register] or [{"head": None, "score": None}]
        return {
            "register": register,
            "head": found["head"],
            "score": found["score"],
            "name": viewed.names.get(register),
            "map": _base64_png(self.viewer.register_map(viewed, register)),
        }

    def _look(self, picture: Upload | UploadRefused | None, size: int, *controls: Any) -> ViewedPicture:
        if picture is None:
            raise gr.Error("No picture was sent; send a file.", print_exception=False)
        if isinstance(picture, UploadRefused):
            raise picture
        return self.viewer.view(picture.image, picture.name, int(size), PartOptions.of(*controls))


def offer_api(viewer: PartViewer, picture: Any, controls: list[Any], **shared: Any) -> None:
    """Make `/segment` and `/click` part of the page that is being built; its fields tell kinds, ranges and defaults.

    Args:
        viewer: With the model.
        picture: The field of the picture.
        controls: Those of the settings.
        shared: Options of both events.
    """
    api = DemoApi(viewer)
    answer, button = gr.JSON(visible=False), gr.Button(visible=False)
    x, y = gr.Number(0, minimum=0, visible=False), gr.Number(0, minimum=0, visible=False)
    button.click(api.segment, [picture, *controls], answer, api_name="segment", **shared)
    button.click(api.click, [picture, x, y, *controls], answer, api_name="click", **shared)


def _base64_png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
