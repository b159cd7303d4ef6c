"""What a model has learnt, measured while it trains: part scores, k-NN accuracy, and pictures of its part maps.

B batch  D hidden
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel

from evaluation.frozen_features import pooled_features
from evaluation.labelled_images import LabelledImage, number_labels, open_labelled_images, read_labelled_images
from evaluation.mask_samples import MaskSample, open_mask_dataset, read_mask_samples
from evaluation.part_scoring import evaluate_parts
from evaluation.records import read_json_lines
from evaluation.representation import check_neighbors, knn_accuracy
from evaluation.scores import Scores
from evaluation.segmenters import ImageBatch, Segmenter, rats_segmenter
from modeling_rats.visualization import draw_part_map, grid, side_by_side
from training.json_log import JsonLog
from training.networks import RATS_TYPES, extract
from training.ranks import on_all_ranks
from training.settings import AnySettings

BATCH_SIZE = 32  # images that the model gets at once, without gradients
PANEL_PX = 192  # height of an image in the pictures: patches can be told apart, and a file stays small
COUNTS = ("images", "images_with_foreground")  # of a summary; they are the same each time

T = TypeVar("T")


class LabelledShare(NamedTuple):
    """What a rank holds of a split of labelled images.

    Attributes:
        images: Its share, every R-th of R ranks, as files' bytes (for a folder of images their paths).
        labels: The classes of the images of all ranks, int64, (images,).
    """

    images: list[LabelledImage]
    labels: torch.Tensor


class PeriodicEvaluation:
    """Measures the model that a run makes every `eval_steps` steps and at the end, as EvaluationSettings say.

    Everything is read when a run starts, so that a data set that cannot be used ends it then and not after hours, and held in
    memory, so that a measurement needs neither disk nor network: images with masks (about a hundred) decoded, labelled ones
    (thousands) as the bytes of their files. Each rank holds and computes its share. Nothing draws from the global random
    generators, so a run ends with the same weights whether it is measured or not.

    The main process appends a line to `evaluation.jsonl` and draws `parts/step_*.png`. Undefined scores are left out.

    Args:
        accelerator: That of the run.
        settings: All settings of the run.
        output: The folder of the run.
        start_step: Steps that the run has made when it starts or goes on; what was measured later is removed.

    Raises:
        FileNotFoundError: If a data set is not found; on all ranks, as all errors here.
        ValueError: If it cannot be used, or is given while nothing is ever measured.
    """

    def __init__(self, accelerator: Accelerator, settings: AnySettings, output: Path, start_step: int = 0):
        self.accelerator, self.settings, self.quiet = accelerator, settings.evaluation, settings.training.quiet
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.has_parts = settings.model.model_type in RATS_TYPES
        self.pictures = output / "parts"
        self.pictured: list[Image.Image] = []  # the first images of the data set with masks, on the main process
        self.mask_samples: list[MaskSample] = []  # this rank's share
        self.labelled: tuple[LabelledShare, LabelledShare] | None = None  # neighbours, and those that are classified
        self._check(settings.model.model_type)
        if self.settings.eval_steps:
            on_all_ranks(self._read)
        log = output / "evaluation.jsonl"
        measured = {line["step"] for line in read_json_lines(log)}
        self.owed = bool(broadcast_object_list([start_step not in measured])[0])
        if accelerator.is_main_process and (self.settings.eval_steps or log.exists()):
            self.log = JsonLog(log, first_step=start_step + 1)
            for picture in self.pictures.glob("step_*.png"):
                if int(picture.stem.removeprefix("step_")) > start_step:
                    picture.unlink()

    def is_owed(self, step: int, ends: bool) -> bool:
        """Whether the measurement after the `step` that the run goes on from was due, and interrupted."""
        return self.owed and step > 0 and self.is_due(step, ends)

    def is_due(self, step: int, ends: bool) -> bool:
        """Whether to measure after `step` steps, the last of the run if it `ends`."""
        measures = self.has_parts or self.settings.knn_dataset is not None
        return measures and self.settings.eval_steps > 0 and (ends or step % self.settings.eval_steps == 0)

    def measure(self, step: int, model: PreTrainedModel, processor: Any, views: torch.Tensor | None) -> dict[str, float]:
        """Measures, writes the line and draws the picture; all ranks must call it, and all get the scores.

        Args:
            step: Steps that the model was trained for.
            model: In evaluation mode: RatsForPartSegmentation, or the bare backbone of a twin.
            processor: Its image processor.
            views: Images of the current batch, uint8, (B, height, width, 3), if there is one; drawn if there is no data set
                with masks.
        """
        start = time.perf_counter()
        scores: dict[str, float] = {}
        if self.has_parts:
            segment = rats_segmenter(model, processor)  # type: ignore[arg-type]  # RatsForPartSegmentation
            scores |= self._part_scores(segment) if self.settings.eval_dataset else {}
        if self.labelled:
            train, test = (self._features(share, model, processor) for share in self.labelled)
            train_labels, test_labels = (share.labels.to(train.device) for share in self.labelled)
            scores["knn_accuracy"] = knn_accuracy(train, train_labels, test, test_labels, self.settings.knn_neighbors)
        if self.accelerator.is_main_process:
            of_batch = () if views is None else tuple(views[: self.settings.eval_pictures].cpu().numpy())
            images = self.pictured or [Image.fromarray(view) for view in of_batch]
            if self.has_parts and images:
                self._draw(step, images, segment)
            self.log.write({"step": step, "seconds": round(time.perf_counter() - start, 2), **scores})
        return scores

    def _check(self, model_type: str) -> None:
        """What can be seen from the settings alone."""
        given = self.settings
        for name in ("eval_dataset", "knn_dataset"):
            if getattr(given, name) and not given.eval_steps:
                raise ValueError(
                    f"{name}={getattr(given, name)} is given, but eval_steps=0 measures nothing; set --eval_steps to the steps "
                    f"between measurements, or leave {name} out."
                )
        if given.knn_dataset and Path(given.knn_dataset).expanduser().is_file():
            raise ValueError(
                f"knn_dataset={given.knn_dataset} is a single file, which has no splits, so every image would be its own "
                "nearest neighbour; name a folder or data set with a split for the neighbours and one that is classified."
            )
        if given.knn_dataset and given.knn_train_split == given.knn_test_split:
            raise ValueError(
                f"knn_train_split and knn_test_split are both {given.knn_test_split}, so every image would be its own nearest "
                "neighbour; name two splits."
            )
        if given.eval_steps and not self.has_parts:
            measured = "only the k-NN accuracy is measured" if given.knn_dataset else "nothing is measured without knn_dataset"
            self.accelerator.print(f"model_type={model_type} has no part maps to score or draw: {measured}.")

    def _read(self) -> None:
        for name, read in (("eval", self._read_masks), ("knn", self._read_neighbors)):
            try:
                read()
            except (OSError, ValueError) as error:  # which speaks of a data set, and a run has several
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                dataset = getattr(self.settings, f"{name}_dataset")
                raise kind(f"{name}_dataset={dataset}, with the settings {name}_*: {error}") from error

    def _read_masks(self) -> None:
        given = self.settings
        if given.eval_dataset and self.has_parts:
            columns = (given.eval_image_column, given.eval_mask_column)
            rows = open_mask_dataset(given.eval_dataset, given.eval_config, given.eval_split, *columns)
            limit = max(given.eval_images, given.eval_pictures)
            samples = read_mask_samples(rows, *columns, given.eval_ignore_label, limit)
            for index, sample in enumerate(self._shown(samples, "Reading images with masks", limit)):
                if self.accelerator.is_main_process and index < given.eval_pictures:
                    self.pictured.append(sample.image)
                if index % self.ranks == self.rank and index < given.eval_images:
                    self.mask_samples.append(sample)

    def _read_neighbors(self) -> None:
        given = self.settings
        if given.knn_dataset:
            neighbors, neighbor_labels = self._read_labelled(given.knn_train_split, given.knn_train_images)
            queries, query_labels = self._read_labelled(given.knn_test_split, given.knn_test_images)
            check_neighbors(given.knn_neighbors, len(neighbor_labels))
            self._compare_classes(neighbor_labels, query_labels)
            train_labels, test_labels = number_labels(neighbor_labels, query_labels)
            self.labelled = LabelledShare(neighbors, train_labels), LabelledShare(queries, test_labels)

    def _read_labelled(self, split: str, limit: int) -> tuple[list[LabelledImage], list[int | str]]:
        """This rank's share of the first images of a split, and the labels of all of them."""
        given, own, labels = self.settings, [], []
        columns = (given.knn_image_column, given.knn_label_column)
        rows = open_labelled_images(str(given.knn_dataset), given.knn_config, split, *columns)
        images = read_labelled_images(rows, *columns, limit)
        for labelled in self._shown(images, f"Reading labelled images ({split})", limit):
            if labelled.row % self.ranks == self.rank:
                labelled.decode()  # so that one that cannot be read is found now
                own.append(labelled)
            labels.append(labelled.label)
        if not labels:
            raise ValueError(f"The split {split} of {given.knn_dataset} holds no rows; choose another.")
        return own, labels

    def _compare_classes(self, neighbors: Sequence[int | str], queries: Sequence[int | str]) -> None:
        """Tells of images that no neighbour can classify: the first rows of sorted data hold few classes."""
        known = set(neighbors)
        strangers = sum(label not in known for label in queries)
        told = (
            f"{strangers} of {len(queries)} images of knn_test_split={self.settings.knn_test_split} have classes that none of "
            f"the {len(neighbors)} neighbours has ({len(known)} classes)"
        )
        remedy = "raise --knn_train_images, or use a data set that is not sorted by class."
        if strangers == len(queries):
            raise ValueError(f"{told}, so none can be classified; {remedy}")
        if strangers:
            self.accelerator.print(f"{told}, so they count as wrong; {remedy}")

    def _part_scores(self, segment: Segmenter) -> dict[str, float]:
        """Means over the images of all ranks."""
        samples = self._shown(self.mask_samples, "Scoring parts", len(self.mask_samples))
        own = evaluate_parts({"model": segment}, samples, BATCH_SIZE, self.settings.eval_ignore_label)["model"]
        scores = Scores()
        for share in gather_object([own]):
            scores.extend(share)
        means = {name: float(mean) for name, mean in scores.summary().items() if name not in COUNTS}
        return {name: mean for name, mean in means.items() if not math.isnan(mean)}

    def _features(self, share: LabelledShare, model: PreTrainedModel, processor: Any) -> torch.Tensor:
        """What the head gets of the images of all ranks, in the data set's order, (images, D)."""

        backbone = cast(PreTrainedModel, model.base_model)

        def embed(pixel_values: torch.Tensor) -> torch.Tensor:
            return extract(backbone, pixel_values.to(backbone.device)).pooled

        features = torch.zeros(len(share.labels), model.config.hidden_size, device=self.accelerator.device)
        if share.images:  # there may be more ranks than images
            images = self._shown((labelled.decode() for labelled in share.images), "Taking features", len(share.images))
            own = pooled_features(embed, processor, images, BATCH_SIZE)  # (images of this rank, D)
            features[self.rank :: self.ranks] = own.to(features.device)
        return self.accelerator.reduce(features, "sum")  # the rows of the others are 0 here

    def _draw(self, step: int, images: Sequence[Image.Image], segment: Segmenter) -> None:
        self.pictures.mkdir(exist_ok=True)
        picture = self.pictures / f"step_{step:08d}.png"
        temporary = picture.with_name(f".{picture.name}")
        draw_parts(images, segment).save(temporary, format="png")
        os.replace(temporary, picture)

    def _shown(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """The items with a progress bar, on the main process and if it has a terminal."""
        hidden = self.quiet or not self.accelerator.is_main_process or None
        return iter(tqdm(items, description, total, leave=False, unit="image", disable=hidden))


def draw_parts(images: Sequence[Image.Image], segment: Segmenter) -> Image.Image:
    """Each image beside its part map, two such pairs a row; a register has the same colour in all of them, at every step."""
    shown = [image.resize((max(1, round(image.width * PANEL_PX / image.height)), PANEL_PX)) for image in images]
    label_maps = segment(ImageBatch(list(images), [(larger.height, larger.width) for larger in shown], []))
    pairs = [side_by_side([larger, draw_part_map(larger, map_)]) for larger, map_ in zip(shown, label_maps, strict=True)]
    return grid(pairs, columns=2)
