"""Everything the page shows of a picture, as PIL pictures, HTML and files' contents; knows nothing of how it is served."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from modeling_rats.image_parts import ImageParts, attention_maps, look
from modeling_rats.part_dictionary import PartDictionary
from modeling_rats.part_files import coco_annotations, part_map_image
from modeling_rats.register_colors import register_colors
from modeling_rats.visualization import (
    draw_entry,
    draw_matrix,
    draw_part_map,
    draw_similarity,
    grid,
    similarity_range,
    thumbnail,
)

MAX_SIDE_PX = 1024  # of a picture as it is kept while somebody looks at it
SHOWN_SIDE_PX = 640  # of a picture as it is drawn
TILE_PX = 240  # of a picture in a gallery
EXAMPLE_COLUMNS = 5
ENTRY_COLOR = (255, 200, 0)  # of any entry: registers have theirs


@dataclass(frozen=True)
class PartOptions:
    """Which parts there are, as the controls of the page set it.

    Attributes:
        max_parts: The most parts; None for all.
        merge_threshold: Correlation from which registers are one part; None merges nothing.
        min_area_percent: Of a part, of the picture.
        smooth: Decide pixel by pixel, not patch by patch.
        named: Call parts by the entries of the dictionary.
    """

    max_parts: int | None = None
    merge_threshold: float | None = None
    min_area_percent: float = 0.0
    smooth: bool = False
    named: bool = False

    @classmethod
    def of(cls, max_parts: float, merge_threshold: float, min_area_percent: float, smooth: bool, named: bool) -> "PartOptions":
        """From the values of the page's controls; a threshold of 1 merges nothing."""
        return cls(int(max_parts), None if merge_threshold >= 1 else merge_threshold, min_area_percent, smooth, named)


@dataclass(frozen=True)
class ViewedPicture:
    """A picture that somebody looks at.

    Attributes:
        name: Of its file.
        size: Width and height as it came.
        input_px: Side of the square whose area the model saw it at.
        parts: What the model sees in it, at most `MAX_SIDE_PX` large.
        shown: At `SHOWN_SIDE_PX`.
        options: Which parts there are.
        segmentation: Part map of `shown`, (height, width).
        segments: What is known of each part.
        names: Of parts that the dictionary knows.
    """

    name: str
    size: tuple[int, int]
    input_px: int
    parts: ImageParts
    shown: Image.Image
    options: PartOptions
    segmentation: torch.Tensor
    segments: Sequence[Mapping[str, Any]]
    names: Mapping[int, str]

    def register_at(self, x: float, y: float) -> int:
        """The register of the part at a pixel of `shown`; where there is no part, the most similar one."""
        register = self.parts.register_at(
            x * self.parts.image.width / self.shown.width, y * self.parts.image.height / self.shown.height
        )
        part = int(self.segmentation[int(y), int(x)])
        return part if part >= 0 else register


class PartViewer:
    """A model with example pictures, and perhaps a dictionary.

    Args:
        model: A `RatsForPartSegmentation` in evaluation mode, with eager attention.
        image_processor: Its own.
        examples: Names and RGB pictures, among which a register or an entry is shown.
        dictionary: Of this model, or None.
        model_name: As it is told to visitors.

    Raises:
        ValueError: If the processor does not say height and width.
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        examples: Sequence[tuple[str, Image.Image]],
        dictionary: PartDictionary | None = None,
        model_name: str = "RATS",
    ):
        self.model, self.image_processor, self.dictionary = model, image_processor, dictionary
        self.config, self.model_name = model.config, model_name
        size = image_processor.size
        if not (size.get("height") and size.get("width")):
            raise ValueError(f"The image processor's size={dict(size)} must have height and width; save it with both.")
        self.input_px = (size["height"] + size["width"]) // 2
        self.examples = list(examples)
        self.example_parts = [self._look(image, self.input_px) for _, image in self.examples]
        self.colors = register_colors(self.config.num_registers)

    def view(self, image: Image.Image, name: str, input_px: int, options: PartOptions) -> ViewedPicture:
        """Look at a new picture (RGB, upright)."""
        kept = image.copy()
        kept.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        parts = self._look(kept, input_px)
        scale = SHOWN_SIDE_PX / max(image.size)
        shown = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        viewed = ViewedPicture(name, image.size, input_px, parts, shown, options, torch.empty(0), [], {})
        return self.view_again(viewed, options)

    def view_again(self, picture: ViewedPicture, options: PartOptions) -> ViewedPicture:
        """The same picture with other parts."""
        segmentation, segments = self._segment(picture, options, (picture.shown.height, picture.shown.width))
        names: dict[int, str] = {}
        if options.named and self.dictionary is not None:
            (found,) = self.dictionary.name_parts(picture.parts.outputs, segmentation)
            names = {part: name for part, (name, _) in found.items() if name is not None}
        return replace(picture, options=options, segmentation=segmentation, segments=segments, names=names)

    # Parts

    def overlay(self, picture: ViewedPicture) -> Image.Image:
        """The picture under its parts, each with its number or name."""
        labels = {part["id"]: picture.names.get(part["id"], str(part["register"])) for part in picture.segments}
        return draw_part_map(picture.shown, picture.segmentation, labels=labels)

    def legend(self, picture: ViewedPicture) -> str:
        """HTML: a line a part, largest first."""
        pixels = picture.segmentation.numel()
        lines = []
        for part in picture.segments:
            color = "#{:02x}{:02x}{:02x}".format(*self.colors[part["register"]])
            told = [f"{100 * part['area'] / pixels:.0f} %", f"similarity {part['score']:.2f}"]
            told += [] if part["head"] is None else [f"head {part['head']}"]
            others = [str(register) for register in part["registers"][1:]]
            told += [f"with {', '.join(others)}"] if others else []
            name = html.escape(self.name_of(picture, part["register"]))
            lines.append(
                f'<li><span class="swatch" style="background:{color}"></span><b>{name}</b> {html.escape(", ".join(told))}</li>'
            )
        return f'<ul class="legend">{"".join(lines)}</ul>' if lines else "<p>No part is left with these settings.</p>"

    def name_of(self, picture: ViewedPicture, register: int) -> str:
        """What a part is called: its register's number, with the entry of the dictionary that it is."""
        known = picture.names.get(register)
        return f"register {register}" if known is None else f"{known} (register {register})"

    # Registers

    def register_map(self, picture: ViewedPicture, register: int) -> Image.Image:
        """Where one register is similar to the picture."""
        low, high = self._range(picture, register)
        return draw_similarity(picture.shown, picture.parts.similarities[register], self._color(register), low, high)

    def register_in_examples(self, picture: ViewedPicture | None, register: int) -> Image.Image:
        """Where it is similar to the example pictures, on the same scale."""
        low, high = self._range(picture, register)
        return grid(
            [
                draw_similarity(thumbnail(parts.image), parts.similarities[register], self._color(register), low, high)
                for parts in self.example_parts
            ],
            EXAMPLE_COLUMNS,
        )

    def gallery(self, picture: ViewedPicture) -> list[tuple[Image.Image, str]]:
        """The map of each register in use, and what it is called."""
        small = picture.shown.copy()
        small.thumbnail((TILE_PX, TILE_PX))
        drawn = []
        for part in picture.segments:
            low, high = self._range(picture, part["register"])
            similarity = picture.parts.similarities[part["register"]]
            tile = draw_similarity(small, similarity, self._color(part["register"]), low, high)
            drawn.append((tile, self.name_of(picture, part["register"])))
        return drawn

    # The dictionary

    def entries(self, picture: ViewedPicture | None) -> list[list[Any]]:
        """A row for each entry: name, share of the picture and score if it is there, segments it was made of, registers."""
        if self.dictionary is None:
            return []
        found = (
            {} if picture is None else {one["name"]: one for one in self.dictionary.search(picture.parts.outputs, k=None)[0]}
        )
        rows = []
        for entry in self.dictionary:
            here = found.get(entry.name)
            share, score = ("", "") if here is None else (f"{100 * here['area']:.0f} %", f"{here['score']:.2f}")
            registers = ", ".join(f"{register} ({100 * part:.0f} %)" for register, part in list(entry.registers.items())[:3])
            rows.append([entry.name, share, score, entry.support, registers])
        return sorted(rows, key=lambda row: row[1] == "")  # those that are there come first

    def entry_map(self, picture: ViewedPicture, name: str) -> Image.Image:
        """Where an entry's part is in the picture."""
        return self._draw_entry(picture.shown, picture.parts, name)

    def entry_in_examples(self, name: str) -> Image.Image:
        """Where it is in the example pictures."""
        return grid([self._draw_entry(thumbnail(one.image), one, name) for one in self.example_parts], EXAMPLE_COLUMNS)

    # Attention

    def attention(
        self, picture: ViewedPicture, layer: int, head: int
    ) -> tuple[list[tuple[Image.Image, str]], Image.Image, list[tuple[Image.Image, str]]]:
        """The three steps of one head: compress and broadcast a map a register, communicate a table."""
        maps = attention_maps(picture.parts.image, self.model, self.image_processor, **self._input(picture.input_px))
        registers = self._registers_of(head)
        small = picture.shown.copy()
        small.thumbnail((TILE_PX, TILE_PX))

        def drawn(of_head: torch.Tensor) -> list[tuple[Image.Image, str]]:
            return [
                (
                    draw_similarity(small, one, self._color(register), 0.0, max(one.max().item(), 1e-9)),
                    f"register {register}, {one.max().item():.2g} at most",
                )
                for register, one in zip(registers, of_head, strict=True)
            ]

        matrix = draw_matrix(maps.communicate[layer][head], [str(register) for register in registers])
        return drawn(maps.compress[layer][head]), matrix, drawn(maps.broadcast[layer][head])

    # Files

    def mask_files(self, picture: ViewedPicture) -> tuple[Image.Image, dict[str, Any]]:
        """The parts at the picture's own size: the part map (see `part_map_image`), and COCO's layout as plain values."""
        segmentation, segments = self._segment(picture, picture.options, picture.size[::-1])
        told = coco_annotations(picture.name, segmentation, segments, picture.names)
        description = f"Parts by {self.model_name}, without labels"
        return part_map_image(segmentation), {"info": {"description": description}, **told}

    def _look(self, image: Image.Image, input_px: int) -> ImageParts:
        return look(image, self.model, self.image_processor, **self._input(input_px))

    def _input(self, input_px: int) -> dict[str, Any]:
        """The picture keeps its aspect ratio, at about this area, in whole patches."""
        patch = max(self.config.patch_height_width)
        return {"size": {"height": input_px, "width": input_px}, "ensure_multiple_of": patch}

    def _segment(self, picture: ViewedPicture, options: PartOptions, size: tuple[int, int]) -> tuple[torch.Tensor, list]:
        result = picture.parts.segment(
            size,
            max_parts=options.max_parts,
            merge_threshold=options.merge_threshold,
            min_area=round(options.min_area_percent / 100 * size[0] * size[1]),
            upsample_similarities=options.smooth,
        )
        return result["segmentation"], result["segments_info"]

    def _range(self, picture: ViewedPicture | None, register: int) -> tuple[float, float]:
        looked = self.example_parts if picture is None else [picture.parts, *self.example_parts]
        return similarity_range([parts.similarities[register] for parts in looked])

    def _color(self, register: int) -> list[int]:
        return self.colors[register].tolist()

    def _draw_entry(self, image: Image.Image, parts: ImageParts, name: str) -> Image.Image:
        assert self.dictionary is not None
        (heat,) = self.dictionary.localize(parts.outputs, name)
        return draw_entry(image, heat, self.dictionary[name].threshold, ENTRY_COLOR)

    def _registers_of(self, head: int) -> range:
        """The registers that a head holds: its own, or all of them if heads own none."""
        if not self.config.partition_registers:
            return range(self.config.num_registers)
        count = self.config.num_registers // self.config.num_attention_heads
        return range(head * count, (head + 1) * count)
