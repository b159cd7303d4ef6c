# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""A dictionary of parts: named directions among the patch features of one model, found again in any image.

The paper collects the registers of a data set into a catalogue of part entries (section on the visual dictionary). Here an
entry is a direction; where a patch's features point the same way, the part is. `evaluation.build_dictionary` makes one.

B batch  D hidden  E entries; the patch grid is rows, columns
"""

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import PushToHubMixin, cached_file

from .image_inputs_rats import read_image
from .part_maps import NO_PART, upsample

VECTORS_FILE, ENTRIES_FILE = "part_dictionary.safetensors", "part_dictionary.json"
VERSION = 1  # of the files


@dataclass(frozen=True)
class PartEntry:
    """What a dictionary knows of a part, beside its direction.

    Attributes:
        name: Unique in its dictionary.
        threshold: Least cosine of a patch and the entry for the part to be there.
        support: How many segments of images it was made of.
        registers: Share of these segments that each register won, the largest first.
        heads: Share by attention head; empty if no head owns registers.
        examples: Segments that show it best, a dict each: `image` (which one of the data set), `box` [x0, y0, x1, y1] as
            shares of its width and height, `score`.
        statistics: What else was measured when it was made, by name.
    """

    name: str
    threshold: float
    support: int = 0
    registers: Mapping[int, float] = field(default_factory=dict)
    heads: Mapping[int, float] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()
    statistics: Mapping[str, float] = field(default_factory=dict)


class PartDictionary(PushToHubMixin):
    """Entries with their directions, over one model.

    Wherever `inputs` are asked for, these are one image, of any kind that the pipeline takes, once the dictionary has its model
    (`with_model`); or the output of a [`RatsForPartSegmentation`] called with `output_patch_features=True`; or the
    `patch_features` of such outputs, (B, D, rows, columns), kept from before. For an image the batch axis is left out of what
    is returned.

    Args:
        entries: Their names must differ.
        vectors: Their directions, (E, D); only these count, not their lengths.
        model: Of which model the features are: `fingerprint` (see `model_fingerprint`), and what else is known of it.
        settings: How it was made, for the reader.

    Raises:
        ValueError: If names are not unique or no text, or vectors do not fit, are not finite or 0.

    Example:

    ```python
    >>> import torch
    >>> from modeling_rats import PartDictionary, PartEntry

    >>> entries = [PartEntry("wheel", threshold=0.5), PartEntry("window", threshold=0.5)]
    >>> dictionary = PartDictionary(entries, torch.eye(2, 48), {"fingerprint": ""})
    >>> dictionary.localize(torch.rand(3, 48, 14, 20), "wheel", target_size=(224, 320)).shape
    torch.Size([3, 224, 320])

    ```
    """

    def __init__(
        self,
        entries: Iterable[PartEntry],
        vectors: torch.Tensor,
        model: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ):
        listed = list(entries)
        nameless = [entry.name for entry in listed if not isinstance(entry.name, str) or not entry.name]
        if nameless:
            raise ValueError(f"Names {nameless} are no text or empty; an entry needs a name in words. Give others.")
        self.entries = {entry.name: entry for entry in listed}
        if len(self.entries) < len(listed):
            names = [entry.name for entry in listed]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"Entries {', '.join(twice)} are there twice; each needs a name of its own. Rename or merge them.")
        if vectors.ndim != 2 or len(vectors) != len(listed):
            raise ValueError(f"vectors of shape {tuple(vectors.shape)} must be ({len(listed)} entries, hidden_size).")
        vectors = vectors.detach().float().cpu()
        lengths = vectors.norm(dim=1)
        useless = [entry.name for entry, length in zip(listed, lengths, strict=True) if not 0 < length < float("inf")]
        if useless:
            raise ValueError(f"Vectors of {', '.join(useless)} are 0 or not finite; an entry must point somewhere. Drop them.")
        self.vectors = vectors / lengths[:, None]  # (E, D)
        self.model_info = dict(model)
        self.settings = dict(settings or {})
        self._model: PreTrainedModel | None = None
        self._image_processor: Any = None

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[PartEntry]:
        return iter(self.entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> PartEntry:
        return self.entries[self._known(name)]

    def __repr__(self) -> str:
        shown = ", ".join(list(self.entries)[:5]) + (", ..." if len(self) > 5 else "")
        return f"PartDictionary({len(self)} entries: {shown})"

    @property
    def names(self) -> list[str]:
        """Of all entries, in the order of their vectors."""
        return list(self.entries)

    # Files and the Hub

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the two files of a dictionary into a folder, a model's own or another; each whole or not at all.

        Args:
            save_directory: Made if it is not there.
            push_to_hub: Also push it, see `push_to_hub`.
            kwargs: Of `push_to_hub`, with `repo_id`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "version": VERSION,
            "model": self.model_info,
            "settings": self.settings,
            "entries": [asdict(entry) for entry in self],
        }
        kwargs.pop("max_shard_size", None)  # push_to_hub hands it on
        for name, write in (
            (VECTORS_FILE, lambda path: save_file({"vectors": self.vectors}, path, metadata={"format": "pt"})),
            (ENTRIES_FILE, lambda path: path.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")),
        ):
            partial = folder / f".{name}.{os.getpid()}.partial"
            write(partial)
            os.replace(partial, folder / name)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, **kwargs: Any) -> "PartDictionary":
        """Read a dictionary from a folder or a repository on the Hub.

        Args:
            name_or_path: Folder that `save_pretrained` wrote, or owner/name.
            kwargs: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only` and `force_download`, as everywhere in
                transformers.

        Raises:
            OSError: If one of the two files is not there.
            ValueError: If they are no dictionary, or do not fit together.
        """
        folder = Path(name_or_path, kwargs.get("subfolder") or "")
        is_local = Path(name_or_path).exists() or Path(name_or_path).is_absolute()
        if is_local and not (folder / ENTRIES_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {ENTRIES_FILE}; it must be a folder that PartDictionary.save_pretrained wrote. A model's "
                'dictionary is in its folder `dictionary` (subfolder="dictionary").'
            )
        files = [Path(str(cached_file(name_or_path, name, **kwargs))) for name in (ENTRIES_FILE, VECTORS_FILE)]
        try:
            told = json.loads(files[0].read_text(encoding="utf-8"))
            vectors = load_file(files[1])["vectors"]
            if told["version"] != VERSION:
                raise ValueError(f"version {told['version']} is not {VERSION}, which this package reads")
            entries = [_entry(one) for one in told["entries"]]
            return cls(entries, vectors, told["model"], told["settings"])
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(
                f"{name_or_path} holds no part dictionary that can be read ({type(error).__name__}: {error}); {ENTRIES_FILE} "
                f"and {VECTORS_FILE} must be those that save_pretrained wrote. Build it anew with evaluation.build_dictionary."
            ) from error

    # The model

    def with_model(self, model: PreTrainedModel, image_processor: Any, any_model: bool = False) -> "PartDictionary":
        """The same dictionary, which takes images.

        Args:
            model: The [`RatsForPartSegmentation`] that it was built on.
            image_processor: Its [`RatsImageProcessor`].
            any_model: Take a model with other weights, such as a quantised one.

        Raises:
            ValueError: If it was built on another model: its directions mean nothing there.
        """
        own, given = self.model_info.get("fingerprint"), model_fingerprint(model)
        if (own != given and not any_model) or self._width not in (0, model.config.hidden_size):
            raise ValueError(
                f"The dictionary was built on {self.model_info.get('name', 'a model')} with weights {own}, and this model has "
                f"weights {given} and hidden_size={model.config.hidden_size}; its directions mean nothing there. Load the "
                "model that it was built on, or build a dictionary for this one (python -m evaluation.build_dictionary)."
            )
        other = self._changed(list(self), self.vectors)
        other._model, other._image_processor = model, image_processor
        return other

    def is_of(self, model: PreTrainedModel) -> bool:
        """Whether it has this very model already."""
        return self._model is model

    # What it is for

    @torch.no_grad()
    def localize(self, inputs: Any, name: str, target_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Where an entry's part is.

        Args:
            inputs: An image, outputs or features (see the class).
            name: Of the entry.
            target_size: Height and width in pixels to which the map is upsampled, bilinearly; an image's own by default, else
                that of the patch grid.

        Returns:
            Cosines in [-1, 1] of the patches with the entry, float32, (B, height, width), or (height, width) for an image.

        Raises:
            KeyError: If there is no such entry.
            ValueError: If the inputs do not fit.
        """
        entry = self.names.index(self._known(name))
        features, image_size = self._features(inputs)
        (heat,) = _cosines(features, self.vectors[entry : entry + 1]).unbind(dim=1)  # (B, rows, columns)
        size = target_size or image_size
        heat = heat if size is None else upsample(heat, size)  # (B, height, width)
        return heat if image_size is None else heat[0]

    @torch.no_grad()
    def search(self, inputs: Any, k: int | None = 5) -> list:
        """Which entries are in an image, where, and how surely.

        A patch belongs to its most similar entry, if it is as similar as the entry's threshold asks.

        Args:
            inputs: An image, outputs or features (see the class).
            k: The most entries of an image; None for all.

        Returns:
            For each image a list, for an image alone that list, the surest first and empty if nothing is there, of a dict an
            entry: `name`, `score` (the mean cosine of its patches), `area` (share of the image), `box` [x0, y0, x1, y1] and
            `peak` [x, y] (its most similar patch's centre), as shares of width and height.
        """
        if k is not None and k < 1:
            raise ValueError(f"k={k} must be at least 1 entry, or None for all.")
        features, image_size = self._features(inputs)
        if not len(self):
            return [] if image_size is not None else [[] for _ in features]
        found = [self._found(cosines)[:k] for cosines in _cosines(features, self.vectors)]
        return found if image_size is None else found[0]

    @torch.no_grad()
    def name_parts(self, inputs: Any, segmentation: torch.Tensor) -> Any:
        """Name the parts of a part map: the entry that the mean direction of a part's patches is most similar to.

        Args:
            inputs: An image, outputs or features (see the class).
            segmentation: Their part maps, as `post_process_part_segmentation` gives them, integers, (B, height, width) or
                (height, width) for one image, of any size; `NO_PART` stays without a name.

        Returns:
            For each image (alone for an image) a dict: the part's number in the map -> (name, cosine), or (None, cosine) if it
            is less similar to every entry than that one's threshold asks.
        """
        features, image_size = self._features(inputs)
        maps = segmentation if segmentation.ndim == 3 else segmentation[None]
        if len(maps) != len(features) or maps.ndim != 3:
            raise ValueError(
                f"segmentation of shape {tuple(segmentation.shape)} must be (height, width), or (batch, height, width) for the "
                f"{len(features)} images of the inputs."
            )
        named = [self._named(one, part_map) for one, part_map in zip(features, maps, strict=True)]
        return named if image_size is None else named[0]

    def nearest(self, name: str, k: int = 5) -> list[tuple[str, float]]:
        """The k entries that are most similar to one, and their cosines, the most similar first."""
        place = self.names.index(self._known(name))
        cosines = self.vectors @ self.vectors[place]  # (E,)
        others = [other for other in cosines.argsort(descending=True, stable=True).tolist() if other != place]
        return [(self.names[other], cosines[other].item()) for other in others[:k]]

    # Other dictionaries made of this one

    def rename(self, names: Mapping[str, str]) -> "PartDictionary":
        """A dictionary with new names, by the old ones; `merge` joins entries under one name."""
        for name in names:
            self._known(name)
        entries = [replace(entry, name=names.get(entry.name, entry.name)) for entry in self]
        return self._changed(entries, self.vectors)

    def drop(self, names: Iterable[str]) -> "PartDictionary":
        """A dictionary without some entries."""
        dropped = {self._known(name) for name in ([names] if isinstance(names, str) else names)}
        kept = [place for place, entry in enumerate(self) if entry.name not in dropped]
        return self._changed([entry for entry in self if entry.name not in dropped], self.vectors[kept])

    def merge(self, names: Sequence[str], name: str) -> "PartDictionary":
        """A dictionary in which several entries are one: their mean direction, by support, at the place of the first.

        Its threshold is the lowest of theirs, and its statistics are not kept, since nobody measured it.
        """
        merged = [self[one] for one in dict.fromkeys([names] if isinstance(names, str) else names)]
        if not merged:
            raise ValueError("merge was given no names; name the entries to be one.")
        places = [self.names.index(entry.name) for entry in merged]
        weights = torch.tensor([max(1, entry.support) for entry in merged], dtype=torch.float32)
        vectors = self.vectors.clone()
        vectors[places[0]] = weights @ self.vectors[places]
        entry = PartEntry(
            name=name,
            threshold=min(entry.threshold for entry in merged),
            support=sum(entry.support for entry in merged),
            registers=_mean_shares([entry.registers for entry in merged], weights.tolist()),
            heads=_mean_shares([entry.heads for entry in merged], weights.tolist()),
            examples=sorted((one for entry in merged for one in entry.examples), key=lambda one: -one.get("score", 0.0)),
        )
        gone = {other.name for other in merged[1:]}
        kept = [place for place, other in enumerate(self) if other.name not in gone]
        entries = [entry if other is merged[0] else other for other in self if other.name not in gone]
        return self._changed(entries, vectors[kept])

    def _changed(self, entries: list[PartEntry], vectors: torch.Tensor) -> "PartDictionary":
        other = PartDictionary(entries, vectors, self.model_info, self.settings)
        other._model, other._image_processor = self._model, self._image_processor
        return other

    @property
    def _width(self) -> int:
        return self.vectors.shape[1] if len(self) else 0

    def _known(self, name: str) -> str:
        if name in self.entries:
            return name
        alike = difflib.get_close_matches(str(name), self.names, n=3) or self.names[:5]
        raise KeyError(f"There is no entry {name!r}; the dictionary has {len(self)}, such as {', '.join(alike) or 'none'}.")

    def _features(self, inputs: Any) -> tuple[torch.Tensor, tuple[int, int] | None]:
        """Patch features, (B, D, rows, columns), and the size of the image if it was one."""
        if isinstance(inputs, torch.Tensor):
            features, image_size = inputs, None
        elif hasattr(inputs, "patch_features"):
            features, image_size = inputs.patch_features, None
            if features is None:
                raise ValueError("The outputs hold no patch_features; call the model with output_patch_features=True.")
        else:
            features, image_size = self._features_of_image(inputs)
        if features.ndim != 4 or self._width not in (0, features.shape[1]):
            raise ValueError(
                f"Patch features of shape {tuple(features.shape)} must be (batch, {self._width or 'hidden_size'}, rows, "
                "columns), of the model that the dictionary was built on."
            )
        return features, image_size

    def _features_of_image(self, source: Any) -> tuple[torch.Tensor, tuple[int, int]]:
        if self._model is None:
            raise ValueError(
                "The dictionary has no model to look at images with; call with_model(model, image_processor) first, or give "
                "outputs of the model."
            )
        image = read_image(source)
        pixel_values = self._image_processor(image, return_tensors="pt")["pixel_values"]
        outputs = self._model(pixel_values.to(self._model.device, self._model.dtype), output_patch_features=True)
        return outputs.patch_features, (image.height, image.width)

    def _found(self, cosines: torch.Tensor) -> list[dict[str, Any]]:
        """The entries of one image by (E, rows, columns), the surest first."""
        rows, columns = cosines.shape[1:]
        best, owner = cosines.max(dim=0)  # (rows, columns) each
        thresholds = torch.tensor([entry.threshold for entry in self], device=cosines.device)
        owner = owner.masked_fill(best < thresholds[owner], NO_PART)
        found = []
        for place in owner.unique().tolist():
            if place == NO_PART:
                continue
            where = owner == place
            y, x = where.nonzero().T.tolist()
            peak = int(best.masked_fill(~where, -2.0).argmax())
            found.append(
                {
                    "name": self.names[place],
                    "score": best[where].mean().item(),
                    "area": len(x) / (rows * columns),
                    "box": [min(x) / columns, min(y) / rows, (max(x) + 1) / columns, (max(y) + 1) / rows],
                    "peak": [(peak % columns + 0.5) / columns, (peak // columns + 0.5) / rows],
                }
            )
        return sorted(found, key=lambda one: -one["score"])

    def _named(self, features: torch.Tensor, part_map: torch.Tensor) -> dict[int, tuple[str | None, float]]:
        """The parts of one image by (D, rows, columns) and a map, (height, width)."""
        numbers = [number for number in part_map.unique().tolist() if number != NO_PART]
        if not numbers or not len(self):
            return dict.fromkeys(numbers, (None, -1.0))
        masks = torch.stack([part_map == number for number in numbers]).float().to(features.device)
        shares = nn.functional.adaptive_avg_pool2d(
            masks, (features.shape[1], features.shape[2])
        )  # of each patch, (parts, rows, columns)
        directions = nn.functional.normalize(features.float(), dim=0)  # (D, rows, columns)
        means = nn.functional.normalize(shares.flatten(1) @ directions.flatten(1).T, dim=1)  # (parts, D)
        best, place = (means @ self.vectors.to(means.device).T).max(dim=1)  # (parts,) each
        named = {}
        for number, cosine, entry in zip(numbers, best.tolist(), (list(self)[one] for one in place.tolist()), strict=True):
            named[number] = (entry.name if cosine >= entry.threshold else None, cosine)
        return named


def model_fingerprint(model: PreTrainedModel) -> str:
    """Tells the weights of a backbone from others, whether loaded in float32 or in bfloat16, with or without a head."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.base_model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"{digest.hexdigest()}, part_layer {model.config.part_layer}"


def _cosines(features: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Of patch features, (B, D, rows, columns), with unit vectors, (E, D): (B, E, rows, columns), float32."""
    features = features.float()
    products = torch.einsum("bdrc,ed->berc", features, vectors.to(features.device))
    return products / features.norm(dim=1, keepdim=True).clamp(min=1e-12)  # no normalised copy: features may be gigabytes


def _mean_shares(shares: Sequence[Mapping[int, float]], weights: Sequence[float]) -> dict[int, float]:
    total: dict[int, float] = {}
    for one, weight in zip(shares, weights, strict=True):
        for number, share in one.items():
            total[number] = total.get(number, 0.0) + share * weight / sum(weights)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _entry(told: Mapping[str, Any]) -> PartEntry:
    """An entry as its file has it, where the numbers of registers and heads are text."""
    shares = {name: {int(number): share for number, share in told[name].items()} for name in ("registers", "heads")}
    return PartEntry(**{**told, **shares})


__all__ = ["PartDictionary", "PartEntry", "model_fingerprint"]
