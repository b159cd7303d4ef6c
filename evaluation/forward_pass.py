"""What a forward pass takes: seconds in turns with others, memory in a process of its own, seconds by operator."""

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedConfig

from evaluation.matrix_products import MatrixProducts
from modeling_rats.multiply_accumulates import build_model, forward_options

LONG_S = 60.0  # a pass of this many seconds is repeated fewer times,
FEW_REPEATS = 3  # at most these
SHORTEST_REPEAT_S = 0.25  # a repeat is as many passes as take this long, since a clock cannot tell shorter ones well
WARM_AFTER_S = 5.0  # what loads at the first pass does not matter in one that is longer
MIB = 2**20
# Parameters of glibc's mallopt, with their defaults and what makes freed memory stay with the process.
M_TRIM_THRESHOLD, TRIM_DEFAULT, TRIM_NEVER = -1, 128 * 1024, 2**31 - 1
M_MMAP_MAX, MMAP_DEFAULT, MMAP_NEVER = -4, 65536, 0
KINDS_OF_OPERATORS = {  # kind -> beginnings of the names that torch gives its operators, after "aten::"
    "attention": ("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention"),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "_convolution", "cudnn_convolution", "conv"),
    "GELU": ("gelu",),
    "LayerNorm": ("native_layer_norm", "layer_norm"),
    "softmax": ("_softmax", "softmax"),
    "additions": ("add", "add_", "mul", "mul_"),
    "copies and concatenation": ("copy_", "cat", "clone", "contiguous", "_to_copy", "to"),
}


@dataclass(frozen=True)
class Workload:
    """What a forward pass is asked to do.

    Attributes:
        config: Of a RATS or ViT; its weights are fresh.
        image_size: Side of the square images, in pixels.
        batch_size: Number of images.
        dtype: Of weights, images and results alike; autocast plays no part.
        device: Such as cpu or cuda.
    """

    config: PreTrainedConfig
    image_size: int
    batch_size: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def forward(self) -> Callable[[], object]:
        """A model, as a function that runs it once in evaluation mode without gradients."""
        return self.forward_of(build_model(self.config, self.dtype, self.device))

    def forward_of(self, model: torch.nn.Module, image_size: int | None = None) -> Callable[[], object]:
        """A given model as such a function, on images of another size if there is one."""
        side = image_size or self.image_size
        pixels = torch.randn(self.batch_size, self.config.num_channels, side, side, dtype=self.dtype, device=self.device)
        options = forward_options(self.config)
        return torch.inference_mode()(lambda: model(pixels, **options))

    def matrix_products(self) -> MatrixProducts:
        """The matrix products of the forward pass alone."""
        return MatrixProducts(self.config, self.image_size, self.batch_size, self.dtype, self.device)


@contextmanager
def freed_memory_kept() -> Iterator[str]:
    """Within it, memory that is freed stays with the process, as torch does on a GPU.

    Otherwise the C library hands large tensors back to the operating system, which has to clear their pages when they are
    next asked for: at 2048 px up to a third of a forward pass. As the environment variables MALLOC_MMAP_MAX_=0 and
    MALLOC_TRIM_THRESHOLD_=2147483647 do from outside.

    Yields:
        What was done, for the record: this is known of glibc alone, and elsewhere nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or not (mallopt(M_MMAP_MAX, MMAP_NEVER) and mallopt(M_TRIM_THRESHOLD, TRIM_NEVER)):
        yield "as the system has it"
        return
    try:
        yield "freed memory is kept"
    finally:
        mallopt(M_MMAP_MAX, MMAP_DEFAULT)
        mallopt(M_TRIM_THRESHOLD, TRIM_DEFAULT)


def time_in_turns(passes: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Times functions in turns, so that what else a machine does in the meantime slows all of them alike.

    Each is run once or twice first. A repeat lasts at least `SHORTEST_REPEAT_S`; its time is the mean over its passes.

    Args:
        passes: By name.
        repeats: Turns; at most `FEW_REPEATS` where a pass of one of them takes longer than `LONG_S`.
        device: Where they run.

    Returns:
        By name the seconds of a pass, one number a turn.
    """
    warm = {name: _warm_up(run, device) for name, run in passes.items()}
    if max(warm.values()) > LONG_S:
        repeats = min(repeats, FEW_REPEATS)
    in_a_repeat = {name: _passes_in_a_repeat(seconds) for name, seconds in warm.items()}
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run in passes.items():
            times[name].append(_seconds(run, in_a_repeat[name], device))
    return times


def _warm_up(run: Callable[[], object], device: str) -> float:
    first = _seconds(run, 1, device)
    return first if first > WARM_AFTER_S else _seconds(run, 1, device)


def _passes_in_a_repeat(seconds: float) -> int:
    return max(1, round(SHORTEST_REPEAT_S / seconds))


def _seconds(run: Callable[[], object], passes: int, device: str) -> float:
    """Mean seconds of a pass."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(passes):
        run()
    _wait(device)
    return (time.perf_counter() - start) / passes


def _wait(device: str) -> None:
    """Let a GPU finish what it was given."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def check_memory_is_measured(device: str) -> None:
    """
    Raises:
        ValueError: If this system does not tell a process its peak.
    """
    if torch.device(device).type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise ValueError(
            "The peak memory of a CPU is read from /proc/self, which this system does not have; measure it on Linux, or the "
            "time alone with --measure time."
        )


def peak_memory(workload: Workload, threads: int) -> dict[str, float]:
    """Peak memory of a forward pass in a fresh process, where nothing that ran before can hide it.

    Args:
        workload: What is run, once.
        threads: Of the CPU.

    Returns:
        forward_mib: What the pass takes at its peak beyond weights and images, in MiB.
        weights_mib: What the weights take.

    Raises:
        ValueError: If the process is ended from outside, as it is when memory runs out.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(_peak_memory_here, workload, threads).result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"The process that ran a forward pass at {workload.image_size} px was ended, most likely because it needed "
                "more memory than there is; use smaller --sizes or a smaller --batch_size."
            ) from error


def _peak_memory_here(workload: Workload, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    model = build_model(workload.config, workload.dtype, workload.device)
    # One patch makes libraries load, once and for all, what they load at the first pass.
    patch = workload.config.patch_size
    workload.forward_of(model, patch if isinstance(patch, int) else patch[0] * patch[1])()
    run = workload.forward_of(model)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return {"forward_mib": _growth(run, workload.device) / MIB, "weights_mib": weights / MIB}


def _growth(run: Callable[[], object], device: str) -> int:
    """Bytes by which a function's peak exceeds what was in use before."""
    if torch.device(device).type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        run()
        return torch.accelerator.max_memory_allocated() - before
    # Not getrusage: its peak begins with that of the process that started this one, and cannot be set back.
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use
    before = _of_process("VmRSS")
    run()
    return _of_process("VmHWM") - before


def _of_process(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024  # it is told in units of 1024 bytes, named kB
    raise OSError(f"/proc/self/status has no field {field}.")


def seconds_by_operator(workload: Workload) -> dict[str, dict[str, float]]:
    """Where the time of a forward pass goes, beside what its matrix products take alone.

    The kernels of sdpa compute attention's products and softmax together, which no profile can part.

    Returns:
        forward: Seconds by kind of operator, and "other operators"; "outside operators", what the clock showed beyond them;
            on a CPU also "of these in the operating system", seconds of all threads, most of them for fresh memory.
        products_alone: Seconds of "matrix products" and "attention" without anything else, median of three.
    """
    on_cpu = torch.device(workload.device).type == "cpu"
    run = workload.forward()
    passes = _passes_in_a_repeat(_warm_up(run, workload.device))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports its own start and stop, and missing GPUs
    activities = [ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        before = os.times().system
        seconds = _seconds(run, passes, workload.device)
        in_system = (os.times().system - before) / passes
    forward = dict.fromkeys([*KINDS_OF_OPERATORS, "other operators"], 0.0)
    for event in profiler.key_averages():
        microseconds = event.self_cpu_time_total if on_cpu else event.self_device_time_total
        if event.key.startswith("aten::"):
            forward[_kind(event.key.removeprefix("aten::"))] += microseconds * 1e-6 / passes
    forward["outside operators"] = max(0.0, seconds - sum(forward.values()))
    if on_cpu:
        forward["of these in the operating system"] = in_system
    products = workload.matrix_products()
    alone = time_in_turns(
        {
            "matrix products": lambda: products.multiply(attention=False),
            "attention": lambda: products.multiply(weights=False),
        },
        FEW_REPEATS,
        workload.device,
    )
    return {"forward": forward, "products_alone": {kind: statistics.median(times) for kind, times in alone.items()}}


def _kind(operator: str) -> str:
    for kind, names in KINDS_OF_OPERATORS.items():
        if operator in names or (kind == "attention" and operator.startswith(names)):
            return kind
    return "other operators"
