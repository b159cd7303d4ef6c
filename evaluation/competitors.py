"""Who competes in a part segmentation: the model, its untrained self, and whatever a list of specifications names."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import cached_file

from evaluation.backbones import Backbone, load_backbone
from evaluation.baselines import BASELINE_TITLES, BASELINES
from evaluation.label_maps import label_map_segmenter, read_description
from evaluation.readings import PAPER, Reading
from evaluation.records import short_name
from evaluation.segmenters import Segmenter, baseline_segmenter, rats_segmenter, untrained_like
from evaluation.token_segmenters import (
    InputSize,
    TokenReader,
    attention_segmenter,
    input_size,
    patch_kmeans_segmenter,
    random_register_segmenter,
    register_segmenter,
)
from modeling_rats import RatsForPartSegmentation

SAME = "same"  # number of segments: as many as the first competitor used in the image
OWN_MODEL = "model"  # as an argument: the evaluated model itself
TOKEN_TITLES = {
    "patch_kmeans": "patch k-means",
    "registers": "registers",
    "attention_heads": "attention heads",
    "random_registers": "random registers",
}
SPECIFICATIONS = (
    *BASELINES,
    "random_registers[N][@READING][:MODEL]",
    "patch_kmeans[@READING]:MODEL",
    "registers[@READING]:MODEL",
    "attention_heads[@READING]:MODEL",
    "label_maps:FOLDER",
)


class Competitor(NamedTuple):
    """One row of a comparison.

    Attributes:
        segment: Images to label maps.
        method: Name of the method, as in the specification; of saved label maps what their description says.
        model: Folder or Hub name of the model whose outputs are read; None where a method needs none.
        num_segments: "same" for as many as the first competitor used in the image, a number, or None for as many as come out.
        revision: The model's commit on the Hub; None for a folder.
        reading: Which tokens or maps of the model are read, as in the specification; empty for the paper's.
    """

    segment: Segmenter
    method: str
    model: str | None = None
    num_segments: int | str | None = None
    revision: str | None = None
    reading: str = ""


def default_specifications(model: str, revision: str = "main") -> list[str]:
    """Who competes when nobody is named: colour k-means, and with a distilled model k-means of its teacher's patches.

    Args:
        model: Folder or Hub name. A teacher that its record names and that is no longer where it was is left out.
        revision: Of the model on the Hub.
    """
    path = cached_file(model, "training.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    teacher = (json.loads(Path(path).read_text(encoding="utf-8")) if path else {}).get("teacher")
    if not teacher or not (teacher["on_hub"] or Path(teacher["name"]).is_dir()):
        return ["color_kmeans"]
    return ["color_kmeans", f"patch_kmeans:{teacher['name']}"]


def competitors(
    model: RatsForPartSegmentation,
    processor: Any,
    specifications: Sequence[str] = ("color_kmeans",),
    num_segments: Sequence[int | str] | None = None,
    seed: int = 0,
    image_size_px: int | None = None,
    untrained: bool = False,
    reference: str | None = None,
) -> dict[str, Competitor]:
    """The rows of a comparison, by title; others may follow the first one's number of segments: "model", or the reference.

    Each specification is METHOD, METHOD:ARGUMENT or METHOD@READING:ARGUMENT. These make a wanted number of segments, and so
    a row for each entry of `num_segments`:

    - `color_kmeans`, `color_position_kmeans`, `slic`, `grid`: see `baselines`.
    - `patch_kmeans:MODEL`: k-means of the image's L2-normalised patch tokens.

    These make as many as come out, and so one row:

    - `registers:MODEL`: the register with the highest cosine, for RATS, DINOv2 with registers and DINOv3.
    - `attention_heads:MODEL`: the head whose class token attends most to the patch, so at most H segments; for RATS the
      register whose compress map does.
    - `random_registers[N][:MODEL]`: N random directions, such as `random_registers8`, or as many as the evaluated model has
      registers, compared with the patches of MODEL, or of the evaluated model.
    - `label_maps:FOLDER`: saved outputs of any method; see `label_maps`.

    MODEL is a folder or Hub name of any of `backbones.SUPPORTED`, or `model` for the evaluated model (a folder of that name
    is `./model`). All see whole images at the size at which the evaluated model sees them, but for rounding to whole patches.
    READING says which tokens or maps of it are read and how (see `readings`), such as `layer-2+means`; without it those of the
    last block, after the final LayerNorm.

    Args:
        model: In evaluation mode.
        processor: Its image processor.
        specifications: Who else competes.
        num_segments: "same" or numbers; by default "same" and the model's number of registers.
        seed: Of untrained weights, k-means and random directions.
        image_size_px: Side of the square input; the processor's own size by default.
        untrained: Whether the model with fresh weights competes.
        reference: The specification of another row whose number of segments is followed, not the model's; it comes first.

    Raises:
        FileNotFoundError: If a model, a folder of label maps or its description is not found.
        ValueError: If a specification or a number of segments is none, two rows have one title, a model is of no supported
            kind or lacks weights, or one without registers is asked for register maps.
    """
    parsed = [_Specification.parse(text) for text in specifications]
    # The model's own part map is followed without any reference; who names it means just that.
    first = _Specification.parse(reference) if reference and reference != OWN_MODEL else None
    if first and (first.method in BASELINES or first.method == "patch_kmeans"):
        raise ValueError(
            f"Reference {reference!r} makes a wanted number of segments; it must be a competitor whose own number others "
            "follow: registers, attention_heads, random_registers or label_maps."
        )
    if first and reference in specifications:
        raise ValueError(f"{reference!r} is the reference, which is a row already; leave it out of the baselines.")
    num_segments = _checked((SAME, model.config.num_registers) if num_segments is None else num_segments)
    size = input_size(processor, image_size_px)
    own_name, own_revision = model.name_or_path or None, getattr(model.config, "_commit_hash", None)
    rows = {"model": Competitor(rats_segmenter(model, processor, image_size_px), "registers", own_name, None, own_revision)}
    if untrained:
        fresh = rats_segmenter(untrained_like(model, seed), processor, image_size_px)
        rows["untrained"] = Competitor(fresh, "registers with untrained weights")
    own_backbone = Backbone(own_name or OWN_MODEL, model.rats, processor, own_revision)
    readers = {(OWN_MODEL, PAPER): TokenReader(own_backbone, size)}
    if first:
        rows = _rows(first, readers, size, num_segments, model.config.num_registers, seed) | rows
    for specification in parsed:
        of_specification = _rows(specification, readers, size, num_segments, model.config.num_registers, seed)
        for title, competitor in of_specification.items():
            if title in rows:
                raise ValueError(
                    f"Specification {specification.text!r} gives a second row {title!r}; each must be named once, and folders "
                    "must differ in their own names. Leave one out or rename it."
                )
            rows[title] = competitor
    return rows


@dataclass(frozen=True)
class _Specification:
    text: str
    method: str
    argument: str
    reading: Reading
    num_directions: int | None = None

    @classmethod
    def parse(cls, text: str) -> "_Specification":
        method, _, argument = text.partition(":")
        method, at, reading = method.partition("@")
        numbered = re.fullmatch(r"(random_registers)([1-9]\d*)", method)
        method, directions = (numbered[1], int(numbered[2])) if numbered else (method, None)
        if method == "random_registers" and not argument:
            argument = OWN_MODEL
        takes_argument = method in TOKEN_TITLES or method == "label_maps"
        is_known = (method in BASELINES or takes_argument) and (method in TOKEN_TITLES or not at)
        if not is_known or takes_argument != bool(argument) or text.endswith(":"):
            raise ValueError(
                f"Specification {text!r} names no competitor; choose from: {', '.join(SPECIFICATIONS)}. MODEL is a folder or "
                f"Hub name, or {OWN_MODEL!r} for the evaluated model; FOLDER holds saved label maps; READING is made of "
                "layer-2, before_norm, centered and means."
            )
        read = Reading.parse(reading) if at else PAPER
        if method == "attention_heads" and not (read.normed and not read.centered):
            raise ValueError(
                f"Specification {text!r}: attention is read from a block, such as @layer-2 or @layer-2+means, and has neither "
                "a norm to be read before nor a centre."
            )
        if method == "patch_kmeans" and read.means:
            raise ValueError(f"Specification {text!r}: k-means has no maps whose patches could have means; leave means out.")
        return cls(text, method, argument, read, directions)


def _rows(
    specification: _Specification,
    readers: dict[tuple[str, Reading], TokenReader],
    size: InputSize,
    num_segments: Sequence[int | str],
    num_registers: int,
    seed: int,
) -> dict[str, Competitor]:
    """The rows of one specification; a model that is loaded for it stays in `readers` for others."""
    method, argument = specification.method, specification.argument
    if method == "label_maps":
        described = read_description(argument)
        title = f"{described['method']} ({described['model']}), saved label maps"
        return {title: Competitor(label_map_segmenter(argument), described["method"], described["model"])}
    counts = {_amount(count): None if count == SAME else int(count) for count in num_segments}
    if method in BASELINES:
        title = BASELINE_TITLES[method]
        return {
            f"{title}, {amount}": Competitor(baseline_segmenter(BASELINES[method], seed, count), method, None, count or SAME)
            for amount, count in counts.items()
        }
    reader = _reader(argument, specification.reading, readers, size)
    reading = str(specification.reading)
    title, read = f"{TOKEN_TITLES[method]} of {_short(argument)}", f" ({reading})" if reading else ""
    of_model: dict[str, Any] = {"method": method, "model": reader.backbone.name, "revision": reader.backbone.revision}
    of_model["reading"] = reading
    if method == "patch_kmeans":
        return {
            f"{title}{read}, {amount}": Competitor(
                patch_kmeans_segmenter(reader, seed, count), num_segments=count or SAME, **of_model
            )
            for amount, count in counts.items()
        }
    if method == "registers":
        return {title + read: Competitor(register_segmenter(reader), **of_model)}
    if method == "attention_heads":
        return {title + read: Competitor(attention_segmenter(reader), **of_model)}
    directions = specification.num_directions or num_registers
    title = f"{directions} random registers, patches of {_short(argument)}"
    return {title + read: Competitor(random_register_segmenter(reader, directions, seed), **of_model)}


def _reader(argument: str, reading: Reading, readers: dict[tuple[str, Reading], TokenReader], size: InputSize) -> TokenReader:
    """The reader of a model; each model is loaded once, whatever is read of it."""
    if (argument, reading) not in readers:
        loaded = [reader.backbone for (name, _), reader in readers.items() if name == argument]
        readers[argument, reading] = TokenReader(loaded[0] if loaded else load_backbone(argument), size, reading)
    return readers[argument, reading]


def _amount(num_segments: int | str) -> str:
    return "same number of segments" if num_segments == SAME else f"{num_segments} segments"


def _short(name: str) -> str:
    return "the model" if name == OWN_MODEL else short_name(name)


def _checked(num_segments: Sequence[int | str]) -> Sequence[int | str]:
    for count in num_segments:
        if count != SAME and not (isinstance(count, int) and count >= 1):
            raise ValueError(f"num_segments={count!r} must be {SAME!r} or a number from 1; give one or more of these.")
    if not num_segments or len(set(num_segments)) < len(num_segments):
        raise ValueError(f"num_segments={list(num_segments)} must name one or more numbers, each once.")
    return num_segments
