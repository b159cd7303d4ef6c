# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""`pipeline("part-segmentation")`: images in, a mask for each part out."""

import os
from collections import defaultdict
from typing import Any

import torch
from PIL import Image
from transformers import Pipeline
from transformers.utils import ModelOutput

from .image_inputs_rats import read_image
from .part_dictionary import PartDictionary

LOADING_OPTIONS = ("local_files_only",)  # `pipeline` has used it when it hands it on
IMAGE_OPTIONS = ("timeout", "size", "ensure_multiple_of")
PART_OPTIONS = ("threshold", "mask_threshold", "merge_threshold", "max_parts", "min_area", "upsample_similarities")


class PartSegmentationPipeline(Pipeline):
    """Part segmentation with any [`RatsForPartSegmentation`]: the parts that its registers find, without any label.

    Example:

    ```python
    >>> import modeling_rats  # registers the task
    >>> from transformers import pipeline

    >>> segmenter = pipeline("part-segmentation", model="path/or/name")
    >>> parts = segmenter("bird.jpg", size={"height": 448, "width": 448})
    >>> parts[0]["label"], parts[0]["mask"].size
    ('register 5', (640, 480))

    ```

    The options of a call can also be given to `pipeline`, and then hold for all calls.
    """

    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    image_processor: Any

    def __call__(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]  # as the library's own pipelines do
        """Find the parts in one image or in many.

        Args:
            inputs: An image: a PIL image of any mode, the path, http(s) URL, data URL or base64 text of an image file, or its
                bytes. Or many of them: a list, a generator, or a torch `Dataset` such as `KeyDataset`.
            options: Any of these.
                `size` (`{"height": pixels, "width": pixels}`) and `ensure_multiple_of`: the resolution at which the model
                sees the image, as in [`RatsImageProcessor`].
                `threshold`, `mask_threshold`, `merge_threshold`, `max_parts`, `min_area`, `upsample_similarities`: which parts
                there are and how they are cut out, as in [`RatsImageProcessor.post_process_part_segmentation`].
                `dictionary`: names parts by its entries; a [`PartDictionary`] of this model, or the folder or Hub name of one.
                `timeout`: seconds to wait for a URL; no limit by default.
                `batch_size` and `num_workers`, as in every pipeline. Images of one batch may differ in size.

        Returns:
            The parts of an image, most pixels first, a dict each: `label` ("register 5"), `score` in [-1, 1] (the mean
            cosine of the register and its patches), `mask` (a PIL image of mode "L" and the size of the image as it is
            displayed, 255 in the part, 0 elsewhere), `box` in pixels (`xmin`, `ymin`, `xmax`, `ymax`, the last two
            exclusive), `register` (its index), `registers` (all that were merged into the part), `head` (the attention head
            that owns the register, None if no head does) and `area` in pixels. With a dictionary also `name` (of the entry
            that the part is, then its `label`, too; None if it is none) and `name_score` (its cosine with the most similar
            entry). A list of them for a list of images, an iterator for a generator or a data set.

        Raises:
            TypeError: If an option is unknown.
            ValueError: If an input cannot be read as an image, or the dictionary was built on another model.
        """
        if isinstance(inputs, list) and not inputs:  # where the parent looks at the first
            return []
        return super().__call__(inputs, **options)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        known = (*IMAGE_OPTIONS, *PART_OPTIONS, "dictionary")
        unknown = sorted(options.keys() - {*known, *LOADING_OPTIONS})
        if unknown:
            raise TypeError(f"part-segmentation got unknown options {', '.join(unknown)}; there are {', '.join(known)}.")
        image_options = {name: options[name] for name in IMAGE_OPTIONS if name in options}
        part_options = {name: options[name] for name in PART_OPTIONS if name in options}
        if "dictionary" not in options:
            return image_options, {}, part_options
        dictionary = options["dictionary"]
        if isinstance(dictionary, str | os.PathLike):
            dictionary = PartDictionary.from_pretrained(dictionary)
        if dictionary is not None and not dictionary.is_of(self.model):
            dictionary = dictionary.with_model(self.model, self.image_processor)
        return image_options, {"output_patch_features": dictionary is not None}, {**part_options, "dictionary": dictionary}

    def preprocess(self, input_: Any, timeout: float | None = None, **image_options: Any) -> dict[str, Any]:  # type: ignore[override]
        image = read_image(input_, timeout)
        pixel_values = self.image_processor(image, return_tensors="pt", **image_options)["pixel_values"]
        # In a dict the parent leaves the tensors of a batch apart: it would join them, and their shapes may differ.
        return {"image": {"pixel_values": pixel_values}, "target_size": (image.height, image.width)}

    def _forward(self, input_tensors: dict[str, Any], output_patch_features: bool = False) -> dict[str, Any]:  # type: ignore[override]
        images = input_tensors["image"]  # one, or with a batch size above 1 a list of them
        outputs = self._outputs_of(images if isinstance(images, list) else [images], output_patch_features)
        return {"outputs": outputs if isinstance(images, list) else outputs[0], "target_size": input_tensors["target_size"]}

    def _outputs_of(self, images: list[dict[str, torch.Tensor]], output_patch_features: bool) -> list[ModelOutput]:
        """What the processor reads of the model's outputs, for each image as for a batch of one; equal shapes run together."""
        indices_by_shape = defaultdict(list)
        for index, image in enumerate(images):
            indices_by_shape[image["pixel_values"].shape].append(index)
        outputs = {}
        for indices in indices_by_shape.values():
            pixel_values = torch.cat([images[index]["pixel_values"] for index in indices])  # (B, channels, height, width)
            batch = self.model(pixel_values, output_patch_features=output_patch_features)
            for row, index in enumerate(indices):
                read = (name for name in ("similarities", "register_heads", "patch_features") if name in batch)
                outputs[index] = ModelOutput({name: batch[name][row : row + 1] for name in read})
        return [outputs[index] for index in range(len(images))]

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], dictionary: PartDictionary | None = None, **part_options: Any
    ) -> list[dict[str, Any]]:
        outputs = model_outputs["outputs"]
        (result,) = self.image_processor.post_process_part_segmentation(
            outputs, target_sizes=[model_outputs["target_size"]], **part_options
        )
        named: dict[int, dict[str, Any]] = {}
        if dictionary is not None:
            (names,) = dictionary.name_parts(outputs, result["segmentation"])
            named = {number: {"name": name, "name_score": score} for number, (name, score) in names.items()}
        return [
            {
                # Not the configuration's labels: these are the same, or they name the classes of a linear layer.
                "label": named.get(segment["id"], {}).get("name") or f"register {segment['register']}",
                "score": segment["score"],
                "mask": Image.fromarray((result["segmentation"] == segment["id"]).to(torch.uint8).mul(255).numpy()),
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), segment["box"], strict=True)),
                **{name: segment[name] for name in ("register", "registers", "head", "area")},
                **named.get(segment["id"], {}),
            }
            for segment in result["segments_info"]
        ]


__all__ = ["PartSegmentationPipeline"]
