"""The data sets that part segmentation is scored on: where they are from, where they are read, how their labels count.

No record could be checked against the published data or the Hub where this was written: `hub_verified` says so, and names of
files, columns and Hub data sets are those that public code and READMEs use.
The RATS paper (arXiv 2606.14701) scores ADE20K val, ImageNet-S919 val and PartImageNet test on their own annotation, COCO
2017 val and ImageNet val on proxy masks of SAM 2.1.
"""

import dataclasses
from typing import Literal

from evaluation.layouts.ade20k import ADE20K
from evaluation.layouts.annotated_images import Layout
from evaluation.layouts.coco_instances import COCO_INSTANCES, CROWD, PARTIMAGENET, PARTIMAGENET_OOD
from evaluation.layouts.coco_panoptic import COCO_PANOPTIC
from evaluation.layouts.imagenet_s import IMAGENET_S919
from evaluation.synthetic_shapes import PART_NAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set with masks, and how they are read. A record of one's own serves as well as those of `BENCHMARKS`.

    Attributes:
        name: On command lines.
        title: In tables.
        source: Where the data set is described or published.
        hub_id: Its name on the Hub, if it has one.
        hub_verified: Whether `hub_id`, `config`, `split` and columns were tried.
        hub_has_masks: Whether the rows on the Hub hold image and label map; else only a root can be read.
        config: Configuration on the Hub, if there are several.
        split: On the Hub, or of a folder that `datasets` opens.
        licence: Of images and masks, as far as it is known.
        image_column: Where `datasets` opens it.
        mask_column: Where `datasets` opens it.
        layout: The official layout on disk; None where a root is a folder that `datasets` opens.
        ignore_label: Label of pixels that do not count.
        background: Whether label 0 is a background that counts as a region; it is left out of foreground scores.
        num_labels: Labels are 0 to num_labels - 1, besides `ignore_label`; None where they number the regions of an image.
        mask_kind: What a region is: a class, a part, an instance, a thing or stuff segment, or a segment of SAM.
        labels: What the labels are, in one sentence.
        num_images: Of the split, as its owners state it.
        notes: What else one should know.
    """

    name: str
    title: str
    source: str = ""
    hub_id: str | None = None
    hub_verified: bool = False
    hub_has_masks: bool = False
    config: str | None = None
    split: str = "validation"
    licence: str = "not known"
    image_column: str = "image"
    mask_column: str = "mask"
    layout: Layout | None = None
    ignore_label: int | None = None
    background: bool = False
    num_labels: int | None = None
    mask_kind: Literal["semantic", "parts", "instances", "panoptic", "proxy"] = "semantic"
    labels: str = ""
    num_images: int | None = None
    notes: str = ""


IMAGENET_TERMS = "images: ImageNet's terms of access (non-commercial research)"
COCO_LICENCE = "annotations CC BY 4.0; each photograph has its own Flickr licence"
PROXY_LABELS = "Each mask of SAM 2.1 is a region; pixels that no mask covers, 0, are ignored: nothing is known of them."
PROXY_NOTES = "The root is the folder that `python -m evaluation.proxy_masks` writes."
PARTS_OF_PARTIMAGENET = (
    "All annotations of a part category (Quadruped Head ...) form a region, 1 + the category's place in order of ids; where "
    "parts overlap the smaller lies on top; what is no part is background, 0."
)
RECORDS = (
    Benchmark(
        name="coco",
        title="COCO 2017 val, panoptic",
        source="https://cocodataset.org (Lin et al. 2014; Kirillov et al. 2019)",
        hub_id="nielsr/coco-panoptic-val2017",
        licence=COCO_LICENCE,
        layout=COCO_PANOPTIC,
        ignore_label=0,
        mask_kind="panoptic",
        labels="Each thing and each stuff segment is a region, 1, 2, 3 ...; unlabelled pixels and crowds, 0, are ignored.",
        num_images=5000,
        notes="The paper scores COCO on proxy masks instead: coco_proxy. The masks on the Hub are colours, not label maps.",
    ),
    Benchmark(
        name="coco_instances",
        title="COCO 2017 val, instances",
        source="https://cocodataset.org (Lin et al. 2014)",
        licence=COCO_LICENCE,
        layout=COCO_INSTANCES,
        ignore_label=CROWD,
        background=True,
        mask_kind="instances",
        labels=f"Each object is a region, 1, 2, 3 ..., smaller ones on top; crowds, {CROWD}, are ignored; 0 is all else.",
        num_images=5000,
        notes="Not one of the paper's five.",
    ),
    Benchmark(
        name="coco_proxy",
        title="COCO 2017 val, SAM 2.1",
        source="https://cocodataset.org (Lin et al. 2014)",
        licence=COCO_LICENCE,
        ignore_label=0,
        mask_kind="proxy",
        labels=PROXY_LABELS,
        num_images=5000,
        notes=PROXY_NOTES,
    ),
    Benchmark(
        name="ade20k",
        title="ADE20K val",
        source="http://sceneparsing.csail.mit.edu (Zhou et al. 2017)",
        hub_id="merve/scene_parse_150",
        hub_has_masks=True,
        licence="BSD-3-Clause as its Hub card says; photographs: their owners' terms",
        mask_column="annotation",
        layout=ADE20K,
        ignore_label=0,
        num_labels=151,
        labels="Each of the 150 classes in an image is a region, 1 to 150; what is none of them, 0, is ignored.",
        num_images=2000,
        notes="On the Hub a copy in parquet; the original, zhoubolei/scene_parse_150, is a script that `datasets` refuses.",
    ),
    Benchmark(
        name="imagenet",
        title="ImageNet val, SAM 2.1",
        source="https://image-net.org (Russakovsky et al. 2015)",
        hub_id="ILSVRC/imagenet-1k",
        licence=IMAGENET_TERMS,
        ignore_label=0,
        mask_kind="proxy",
        labels=PROXY_LABELS,
        num_images=50_000,
        notes=f"{PROXY_NOTES} The images on the Hub are behind a form and have no masks.",
    ),
    Benchmark(
        name="imagenet_s919",
        title="ImageNet-S919 val",
        source="https://github.com/LUSSeg/ImageNet-S (Gao et al. 2022)",
        licence=f"masks: not stated in its README; {IMAGENET_TERMS}",
        layout=IMAGENET_S919,
        ignore_label=1000,
        background=True,
        num_labels=920,
        labels="The image's classes, 1 to 919, are regions; what is none of them, 0, is background; 1000 is ignored.",
        num_images=12_419,
        notes="No Hub data set of it is known to us. The masks of its test split are not public.",
    ),
    Benchmark(
        name="partimagenet",
        title="PartImageNet test (Seg)",
        source="https://github.com/TACJu/PartImageNet (He et al. 2022)",
        hub_id="turkeyju/PartImageNet",
        split="test",
        licence=f"masks: not stated in its README; {IMAGENET_TERMS}",
        layout=PARTIMAGENET,
        ignore_label=CROWD,
        background=True,
        num_labels=41,
        mask_kind="parts",
        labels=PARTS_OF_PARTIMAGENET,
        notes="The release split at random. Which of the two the RATS paper scores is not known to us. The Hub has a zip file.",
    ),
    Benchmark(
        name="partimagenet_ood",
        title="PartImageNet test (OOD)",
        source="https://github.com/TACJu/PartImageNet (He et al. 2022)",
        hub_id="turkeyju/PartImageNet",
        split="test",
        licence=f"masks: not stated in its README; {IMAGENET_TERMS}",
        layout=PARTIMAGENET_OOD,
        ignore_label=CROWD,
        background=True,
        num_labels=41,
        mask_kind="parts",
        labels=PARTS_OF_PARTIMAGENET,
        num_images=4598,
        notes="The release split by classes, 30 of 158 in test. The Hub has a zip file.",
    ),
    Benchmark(
        name="synthetic_parts",
        title="Rendered objects",
        source="python -m evaluation.synthetic_parts --output ROOT --split validation --images 500 --seed 1",
        licence="rendered by this project, MIT",
        background=True,
        num_labels=len(PART_NAMES),
        mask_kind="parts",
        labels=f"All pixels of a part type are a region, 1 to {len(PART_NAMES) - 1}; 0 is background.",
        notes="No evidence for photographs.",
    ),
    Benchmark(
        name="car_parts",
        title="Car parts",
        source="https://github.com/dsmlr/Car-Parts-Segmentation (Pasupa et al. 2021)",
        licence="not stated; citation requested: for research, not to be republished",
        background=True,
        num_labels=9,
        mask_kind="parts",
        labels="8 parts, left, right, front and back merged, 1 to 8; what is not annotated (roof ...), 0, is background.",
        num_images=100,
        notes="The root is a parquet folder with columns image, mask and mask_fine; validation is the official test set.",
    ),
    Benchmark(
        name="car_parts_fine",
        title="Car parts, fine",
        source="https://github.com/dsmlr/Car-Parts-Segmentation (Pasupa et al. 2021)",
        licence="not stated; citation requested: for research, not to be republished",
        mask_column="mask_fine",
        background=True,
        num_labels=19,
        mask_kind="parts",
        labels="The 18 original parts, 1 to 18; what is not annotated (roof ...), 0, is background.",
        num_images=100,
        notes="The same root as car_parts.",
    ),
    Benchmark(
        name="coco_panoptic_200",
        title="COCO panoptic, 200 images",
        source="https://github.com/lightly-ai/coco128_yolo",
        licence=COCO_LICENCE,
        mask_column="segment_mask",
        ignore_label=0,
        mask_kind="panoptic",
        labels="Each thing and each stuff segment is a region, 1, 2, 3 ...; unlabelled pixels, 0, are ignored.",
        num_images=100,
        notes="The root is a parquet folder with columns image, mask and segment_mask.",
    ),
    Benchmark(
        name="coco_panoptic_200_semantic",
        title="COCO panoptic, 200 images, by class",
        source="https://github.com/lightly-ai/coco128_yolo",
        licence=COCO_LICENCE,
        ignore_label=0,
        num_labels=134,
        labels="Each of the 133 classes in an image is a region, 1 to 133; unlabelled pixels, 0, are ignored.",
        num_images=100,
        notes="The same root as coco_panoptic_200.",
    ),
)
BENCHMARKS = {record.name: record for record in RECORDS}
