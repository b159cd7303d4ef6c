"""What the records say, in words and tables: model, training, scores, limitations."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hub_cards.records import DataSetName, ModelRecord, as_list, training_data

# Score of the JSON -> its name in full and in a table's head. One that is not listed goes by its own name.
SCORE_TITLES = {
    "m2o_miou": ("Many-to-one mIoU", "M2O"),
    "o2o_miou": ("One-to-one mIoU", "O2O"),
    "ari": ("Adjusted Rand index", "ARI"),
    "boundary_f": ("Boundary F-score", "BF"),
}
ROW_TITLES = {"model": "this model", "untrained": "untrained (this architecture, fresh weights)"}
# part_similarity of the configuration -> how the model reads parts.
PARTS = {
    "registers": "each patch goes to the register token of highest cosine similarity, as in the paper",
    "claimed_patches": "each patch goes to the register that claims it in the compress step; "
    "five steps of k-means on the image's patches follow (not the paper's reading)",
}
COUNTS = ("images", "images_with_foreground", "segments_used")
FOREGROUND = "_foreground"


@dataclass(frozen=True)
class Metric:
    """A score of the JSON.

    Attributes:
        score: Its name there.
    """

    score: str

    @property
    def type(self) -> str:
        """The metric itself, without the pixels it is taken over."""
        return self.score.removesuffix(FOREGROUND)

    @property
    def foreground(self) -> bool:
        """Whether the background is left out."""
        return self.score.endswith(FOREGROUND)

    @property
    def title(self) -> str:
        """Its name in full."""
        return SCORE_TITLES.get(self.type, (self.type,))[0] + (", foreground" if self.foreground else "")

    @property
    def column(self) -> str:
        """Its name in a table's head."""
        return SCORE_TITLES.get(self.type, (self.type,))[-1] + (" foreground" if self.foreground else "")


@dataclass(frozen=True)
class Evaluation:
    """One measurement of the model.

    Attributes:
        record: The JSON, as `hub_cards.results` adopts it.
    """

    record: dict[str, Any]

    @property
    def data(self) -> DataSetName:
        """The data set."""
        return DataSetName(**self.record["data"])

    @property
    def input(self) -> str:
        """Size of the images that the model was given."""
        return self.record["input"]

    @property
    def reading(self) -> str:
        """How parts were read where that is not the model's own way; else empty."""
        settings = self.record["settings"]
        told = {name: settings.get(name) for name in ("part_similarity", "part_layer")}
        return ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)

    @cached_property
    def name(self) -> str:
        """Tells measurements apart, and is the same for one that is made again; a file's name without its ending."""
        settings, images = self.record["settings"], self.record["scores"]["model"].get("images")
        told = (self.data.identifier, settings.get("config"), settings.get("split"), self.input.replace(" x ", "x"))
        return re.sub(r"[^\w.=-]+", "-", " ".join(filter(None, (*told, f"{images} images", self.reading))))

    @cached_property
    def metrics(self) -> list[Metric]:
        """The scores that any row has."""
        rows = self.record["scores"].values()
        return [Metric(score) for score in dict.fromkeys(name for row in rows for name in row) if score not in COUNTS]

    def as_table(self) -> dict[str, Any]:
        """What the template shows of it."""
        scores, settings = self.record["scores"], self.record["settings"]
        columns = ["", "Images", "Segments", *(metric.column for metric in self.metrics)]
        rows = [
            [
                _cell(ROW_TITLES.get(name, name)),
                _number(row.get("images")),
                _number(row.get("segments_used")),
                *(_number(row.get(metric.score)) for metric in self.metrics),
            ]
            for name, row in scores.items()
        ]
        split = [f"split `{settings['split']}`"] if settings.get("split") else []
        config = [f"configuration `{settings['config']}`"] if settings.get("config") else []
        return {
            "heading": ", ".join(filter(None, [self.data.identifier, *config, *split, self.input, self.reading])),
            "data": ", ".join([self.data.title, *config, *split, self._images()]),
            "input": self.input,
            "columns": [column or " " for column in columns],
            "rows": rows,
            "date": self.record["date"].split("T")[0],
            "seed": settings.get("seed", "-"),
            "commit": self.record.get("commit") or "-",
            "versions": _versions(self.record["versions"]),
            "protocol": self.record["protocol"],
        }

    def rivals(self) -> list[str]:
        """A sentence for each row that is as good as the model in any score."""
        scores = self.record["scores"]
        model = scores["model"]
        sentences = []
        for name, row in scores.items():
            better = [
                metric.column
                for metric in self.metrics
                if name != "model" and row.get(metric.score, float("-inf")) >= model.get(metric.score, float("inf"))
            ]
            if better:
                sentences.append(
                    f'On {self.data.identifier} ({self.input}), "{ROW_TITLES.get(name, name)}" scores at least as high as this '
                    f"model in {', '.join(better)}, with {_number(row.get('segments_used'))} segments to the model's "
                    f"{_number(model.get('segments_used'))}."
                )
        return sentences

    def _images(self) -> str:
        model = self.record["scores"]["model"]
        images, with_foreground = model.get("images", 0), model.get("images_with_foreground")
        rest = "" if with_foreground in (None, images) else f" ({with_foreground:,} of them with foreground)"
        return f"{images:,} images{rest}"


def describe_model(model: ModelRecord) -> dict[str, str]:
    """Rows of the table of model details."""
    config = model.config
    heads, registers = config["num_attention_heads"], config["num_registers"]
    partitioned = config.get("partition_registers", True)
    share = f"{registers // heads} owned by each head" if partitioned else "all held by every head (ablation: no partition)"
    details = {
        "Blocks": str(config["num_hidden_layers"]),
        "Width": f"{config['hidden_size']}; {config['intermediate_size']} inside the MLPs",
        "Attention heads": str(heads),
        "Registers": f"{registers}, {share}",
        "Patch": pixels(config["patch_size"]),
        "Image size": f"{input_size(model.processor['size'], model.processor)} by the image processor; position embeddings "
        f"learned at {pixels(config['image_size'])} and interpolated for any multiple of the patch",
        "Parameters": f"{model.num_parameters:,}",
        "Multiply-accumulates": ", ".join(_multiply_accumulates(config)),
        "Parts": f"{PARTS[config.get('part_similarity', 'registers')]}, layer {config.get('part_layer', -1)}",
    }
    if not config.get("communicate", True):
        details["Communication between registers"] = "switched off (ablation)"
    return details


def describe_training(training: Mapping[str, Any] | None) -> dict[str, str]:
    """Rows of the table of training; none if it is not recorded."""
    if training is None:
        return {}
    settings = training["settings"]
    processes = training["processes"]
    return {
        "Data": ", ".join(data.title for data in training_data(training))
        + (f", split {', '.join(f'`{split}`' for split in as_list(settings['dataset_split']))}" if settings["dataset"] else ""),
        "Steps": f"{training['steps']:,}",
        "Batch size": f"{settings['batch_size']:,} images",
        "Images seen": f"{training['images_seen']:,}",
        "Views": f"2 of {settings['global_crop_size']} px and {settings['num_local_crops']} of "
        f"{settings['local_crop_size']} px per image",
        "Hardware": f"{training['device']}, {processes} {'process' if processes == 1 else 'processes'}, "
        f"mixed precision: {training['mixed_precision']}",
        "Training time": _duration(training["seconds"]),
        "Versions": _versions(training["versions"]),
    }


def describe_limitations(model: ModelRecord, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the records themselves say against the model, then what holds for any model of this kind."""
    rows, columns, patch = _patch_grid(model)
    trained_on = training_data(model.training) if model.training else None
    limitations = []
    if trained_on is None:
        limitations.append("How and on what these weights were trained is not recorded in the model folder.")
    elif all(data.synthetic for data in trained_on):
        limitations.append("Trained on synthetic rendered objects only: it is no evidence for photographs.")
    else:
        limitations.append("What the training data lacks or shows one-sidedly, the parts will lack or show one-sidedly.")
    if not evaluations:
        limitations.append("No scores have been measured for this card.")
    elif all(evaluation.data.synthetic for evaluation in evaluations):
        limitations.append("Measured on synthetic rendered objects only: the scores say nothing about photographs.")
    limitations += [sentence for evaluation in evaluations for sentence in evaluation.rivals()]
    if evaluations:
        limitations.append("The scores are of one training run; another seed gives others.")
    if rows and (trained_size := pixels(model.config["image_size"])) != pixels(model.processor["size"]):
        limitations.append(
            f"Trained on views of {trained_size} and less, it is used at {pixels(model.processor['size'])} by default: parts "
            "then have other sizes in pixels than in training."
        )
    limitations += [
        f"A part map has one register for each patch of {patch}"
        + (f", {rows} x {columns} patches at the default size" if rows else "")
        + ": its edges are as coarse as that.",
        "Parts have no names. A register's number means nothing in itself, and a register may win different parts in "
        "different images, or none.",
    ]
    return limitations


def input_size(size: Any, processor: Mapping[str, Any]) -> str:
    """Size of what the model is given."""
    if processor.get("ensure_multiple_of") is None:
        return pixels(size)
    return f"about the area of {pixels(size)} in the image's own aspect ratio"


def pixels(size: Any) -> str:
    """A size in words: a side, height and width, or a dict of an image processor."""
    if isinstance(size, Mapping):
        sides = {name: side for name, side in size.items() if side is not None}
        if set(sides) != {"height", "width"}:
            return ", ".join(f"{name.replace('_', ' ')} {side} px" for name, side in sides.items())
        size = (sides["height"], sides["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width} px"


def _multiply_accumulates(config: Mapping[str, Any]) -> list[str]:
    """Of a forward pass of the backbone at the sizes in which models are compared, or the nearest that its patches fill."""
    from modeling_rats import RatsConfig  # takes seconds
    from modeling_rats.multiply_accumulates import multiply_accumulates

    patch = config["patch_size"]
    step = math.lcm(*((patch, patch) if isinstance(patch, int) else patch))
    told = []
    for size_px in (224, 512):
        filled_px = round(size_px / step) * step
        if filled_px:
            count = multiply_accumulates(RatsConfig.from_dict(dict(config)), filled_px)
            told.append(f"{count / 1e9:.3g} GMACs at {pixels(filled_px)}")
    return told


def _patch_grid(model: ModelRecord) -> tuple[int, int, str]:
    """Rows and columns of patches at the processor's size (0 if it is not fixed), and the size of a patch."""
    patch = model.config["patch_size"]
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    size = model.processor["size"]
    if model.processor.get("ensure_multiple_of") is not None or not {"height", "width"} <= set(size):
        return 0, 0, pixels(patch)
    return size["height"] // patch_height, size["width"] // patch_width, pixels(patch)


def _duration(seconds: float) -> str:
    """Two units at most: 45 s, 2 min 45 s, 3 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
