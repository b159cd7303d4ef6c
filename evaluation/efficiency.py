"""Multiply-accumulates, time and memory of a forward pass against the image size, RATS beside ViT.

    python -m evaluation.efficiency --output efficiency.json

Models have fresh weights, of the type that `--precisions` names (no autocast), and sdpa. At each size and precision all of
them are timed in turns, and so are the matrix products of RATS alone, the limit that its forward pass is held against. The
record is written after every measurement; the same command goes on where it was interrupted.
"""

import argparse
import hashlib
import inspect
import json
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedConfig

from evaluation.efficiency_figure import compare, crossover, draw, measured_crossovers, tables
from evaluation.forward_pass import (
    Workload,
    check_memory_is_measured,
    freed_memory_kept,
    peak_memory,
    seconds_by_operator,
    time_in_turns,
)
from evaluation.records import describe_run, write_json
from modeling_rats import modeling_rats, register_attention
from modeling_rats.configuration_rats import height_width
from modeling_rats.multiply_accumulates import (
    ARCHITECTURES,
    agreed_multiply_accumulates,
    check_image_sizes,
    find_architecture,
    multiply_accumulates,
)

SIZES = (224, 320, 448, 512, 768, 1024, 1536, 2048)
LARGEST_PX = 4096  # up to which multiply-accumulates are compared by formula
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SUMMARY_OF_CONFIG = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "num_channels",
    "num_registers",
    "partition_registers",
    "communicate",
)
PROTOCOL = (
    "A forward pass in evaluation mode without gradients; weights, images and activations have the named type (no autocast), "
    "attention is sdpa, ViT is transformers' without its pooling layer, positions are interpolated from 224 px unless the "
    "model says otherwise. Multiply-accumulates: of matrix products, by formula and by torch's counter, equal. Time: median "
    "over repeats, in turns with all models of that size and precision; spread: (longest - shortest) / median; memory that is "
    "freed stays with the process (glibc). Matrix products alone, of RATS: the same shapes on random numbers, results written "
    "to memory that lies ready; of ViT they say little, since sdpa multiplies its long attention faster than that. Memory: "
    "what the pass takes at its peak beyond weights and images, in a process of its own."
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"The GPU's memory is too small ({error}); use smaller --sizes or a smaller --batch_size.") from error


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; return the record that --output gets."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    configs = {name: find_architecture(name) for name in options.models}
    for name, config in configs.items():
        check_image_sizes(config, name, options.sizes)
    if "memory" in options.measure:
        check_memory_is_measured(options.device)
    torch.set_num_threads(options.threads)
    groups = list(product(sorted(set(options.sizes)), dict.fromkeys(options.precisions)))
    with (
        freed_memory_kept() as allocator,
        tqdm(total=len(groups), unit="size", disable=options.quiet or not sys.stderr.isatty()) as progress,
    ):
        settings = {**_settings(options), "allocator": allocator}
        record = Record(Path(options.output), configs, settings, describe_run("evaluation.efficiency", arguments))
        for image_size, precision in groups:
            for step in measure(record, configs, image_size, precision, options):
                progress.set_postfix_str(step)
                record.write()
            progress.update()
    picture = Path(options.picture) if options.picture else Path(options.output).with_suffix(".png")
    draw(record.content(), picture)
    print(tables(record.content()))
    print(f"\nWritten to {options.output} and {picture}")
    return record.content()


def measure(
    record: "Record", configs: Mapping[str, PreTrainedConfig], image_size: int, precision: str, options: argparse.Namespace
) -> Iterator[str]:
    """Measure what the record lacks of one size and precision, and say after each measurement what it was.

    If one model was not timed, all are: only times that were taken in turns are compared.
    """
    batch_size, device = options.batch_size, options.device
    workloads = {
        name: Workload(config, image_size, batch_size, PRECISIONS[precision], device) for name, config in configs.items()
    }
    points = {name: record.point(name, image_size, precision) for name in configs}
    for name, config in configs.items():
        points[name]["multiply_accumulates"] = agreed_multiply_accumulates(config, name, image_size, batch_size)
    where = f"{image_size} px, {precision}"
    if "time" in options.measure and not all("time" in point for point in points.values()):
        for name, time in _time(workloads, options.repeats, device).items():
            points[name]["time"] = time
        yield f"timed at {where}"
    for name, point in points.items():
        if "memory" in options.measure and "memory" not in point:
            point["memory"] = peak_memory(workloads[name], options.threads)
            yield f"memory of {name} at {where}"
        if options.profile and "profile" not in point:
            point["profile"] = seconds_by_operator(workloads[name])
            yield f"profile of {name} at {where}"
    yield f"finished {where}"


def _time(workloads: Mapping[str, Workload], repeats: int, device: str) -> dict[str, dict[str, Any]]:
    passes = {}
    for name, workload in workloads.items():
        passes[f"forward {name}"] = workload.forward()
        if workload.config.model_type == "rats":
            passes[f"products {name}"] = workload.matrix_products()
    times = time_in_turns(passes, repeats, device)
    found = {}
    for name in workloads:
        forward, products = times[f"forward {name}"], times.get(f"products {name}")
        forward_s = statistics.median(forward)
        found[name] = {
            "forward_s": forward_s,
            "forward_spread": (max(forward) - min(forward)) / forward_s,
            "forward_each_s": forward,
        }
        if products:
            # Turn by turn: a machine whose speed drifts slows both halves of a turn alike.
            turns = [of_forward / of_products for of_forward, of_products in zip(forward, products, strict=True)]
            found[name] |= {
                "products_s": statistics.median(products),
                "forward_to_products": statistics.median(turns),
                "products_each_s": products,
            }
    return found


class Record:
    """What was measured, point by point, with the file that it is kept in.

    Args:
        output: The JSON file; what it holds already is kept.
        configs: Of the models that will be measured.
        settings: All that decides a measurement beside model, size and precision.
        told: Versions, date and command of this run.

    Raises:
        ValueError: If the file is not such a record, or was measured with other settings or other models of these names.
    """

    def __init__(self, output: Path, configs: Mapping[str, PreTrainedConfig], settings: dict[str, Any], told: dict[str, Any]):
        self.output, self.settings, self.told = output, settings, told
        models = {name: _summary(config) for name, config in configs.items()}
        self._points: dict[tuple[str, int, str], dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        if output.is_file():
            self._read(json.loads(json.dumps({"settings": settings, "models": models})))
        self.models |= models

    def _read(self, now: dict[str, Any]) -> None:
        try:
            before = json.loads(self.output.read_text(encoding="utf-8"))
            points, self.models, settings = before["points"], before["models"], before["settings"]
            self._points = {(point["model"], point["image_size"], point["precision"]): point for point in points}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.output} exists and is no record of this command ({type(error).__name__}: {error}); it would be written "
                "over. Name another --output."
            ) from error
        then = {**settings, **{name: self.models[name] for name in now["models"] if name in self.models}}
        today = {**now["settings"], **{name: model for name, model in now["models"].items() if name in self.models}}
        different = sorted(name for name in then.keys() | today.keys() if then.get(name) != today.get(name))
        if different:
            changes = "; ".join(f"{name} was {then.get(name)} and is now {today.get(name)}" for name in different)
            raise ValueError(
                f"{self.output} was measured with other settings ({changes}), and points of both cannot stand in one table. "
                "Measure with its settings to add to it, or name another --output."
            )

    def point(self, model: str, image_size: int, precision: str) -> dict[str, Any]:
        """The measurements of one point, to be added to."""
        key = (model, image_size, precision)
        return self._points.setdefault(key, {"model": model, "image_size": image_size, "precision": precision})

    def content(self) -> dict[str, Any]:
        """The whole record, with what follows from the measurements."""
        places = {name: place for place, name in enumerate([*self.models, *PRECISIONS])}
        points = sorted(
            self._points.values(),
            key=lambda point: (places[point["model"]], places[point["precision"]], point["image_size"]),
        )
        pairs = [
            (rats, vit)
            for rats, vit in product(self.models, repeat=2)
            if self.models[rats]["model_type"] == "rats" and self.models[vit] == _twin(self.models[rats])
        ]
        comparisons = compare(points, pairs)
        by_formula = [_crossover_by_formula(rats, vit, self.models) for rats, vit in pairs]
        return {
            "points": points,
            "comparisons": comparisons,
            "crossovers": by_formula + measured_crossovers(comparisons),
            "protocol": PROTOCOL,
            "settings": self.settings,
            "models": self.models,
            **self.told,
        }

    def write(self) -> None:
        """Write what there is."""
        write_json(self.output, self.content())


def _crossover_by_formula(rats: str, vit: str, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """From which image size RATS takes fewer multiply-accumulates."""
    configs = [AutoConfig.for_model(**models[name]) for name in (rats, vit)]  # the folder of an earlier run may be gone
    patch = max(height_width(configs[0].patch_size))
    costs = {size: [multiply_accumulates(config, size) for config in configs] for size in range(patch, LARGEST_PX + 1, patch)}
    size, said = crossover({size: of_vit / of_rats for size, (of_rats, of_vit) in costs.items()})
    of = {"rats": rats, "vit": vit, "measure": "multiply_accumulates", "precision": None}
    return {**of, "image_size": size, "said": said}


def _summary(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in SUMMARY_OF_CONFIG if hasattr(config, name)}


def _twin(rats: Mapping[str, Any]) -> dict[str, Any]:
    """What a ViT of the same size says of itself."""
    of_rats = ("num_registers", "partition_registers", "communicate")
    return {name: value for name, value in rats.items() if name not in of_rats} | {"model_type": "vit"}


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """All that decides a measurement beside model, size and precision."""
    sources = "".join(inspect.getsource(module) for module in (modeling_rats, register_attention))
    return {
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "threads": options.threads,
        "device": options.device,
        "processor": _processor(options.device),
        "torch": torch.__version__,
        "code of RATS": hashlib.blake2b(sources.encode(), digest_size=8).hexdigest(),
    }


def _processor(device: str) -> str:
    """The name of the CPU or GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    named = [line for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.is_file() else []
    return named[0].split(":", 1)[1].strip() if named else platform.processor() or platform.machine()


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be used here: {error}") from error
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.efficiency", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(ARCHITECTURES),
        metavar="NAME",
        help=f"{', '.join(ARCHITECTURES)} (default: all), or a RATS or ViT folder or Hub name, whose sizes are taken",
    )
    parser.add_argument("--sizes", nargs="+", type=_positive, default=list(SIZES), metavar="PX", help="sides of the images")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["float32", "bfloat16"])
    parser.add_argument("--measure", nargs="+", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--profile", action="store_true", help="where the time of a forward pass goes, by operator")
    parser.add_argument("--batch_size", type=_positive, default=1)
    parser.add_argument("--repeats", type=_positive, default=5, help="at most 3 where a pass takes over a minute (%(default)s)")
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads(), help="of the CPU (%(default)s)")
    parser.add_argument("--device", type=_device, default=accelerator.type if accelerator else "cpu", help="(%(default)s)")
    parser.add_argument("--output", metavar="JSON", default="efficiency.json", help="what was measured (%(default)s)")
    parser.add_argument("--picture", metavar="PNG", help="default: beside the JSON file")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
