"""What Accelerate is started with: precision, threads, and how ranks share the weights."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from evaluation.synthetic_parts import count_cores
from training.run_settings import RunSettings


def start_accelerator(settings: RunSettings) -> Accelerator:
    """An Accelerator for this machine, the launcher's configuration and the settings.

    Raises:
        SystemExit: If the launcher asks for what this loop does not do.
    """
    precision = choose_precision(settings.mixed_precision)
    on_cpu = not torch.accelerator.is_available()
    if precision == "fp16" and on_cpu:
        raise SystemExit("mixed_precision=fp16 needs a GPU, since Accelerate scales no losses on a CPU; use bf16 or no.")
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=precision, log_with=settings.report_to or None, project_dir=settings.output_dir
    )
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "MEGATRON_LM") or (kind == "FSDP" and not accelerator.is_fsdp2):
        raise SystemExit(
            f"the accelerate configuration asks for {kind}; this loop runs plain data parallelism or FSDP2 (fsdp_version: 2): "
            "see training/accelerate_configs/."
        )
    if on_cpu and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise SystemExit(
            "the accelerate configuration asks for FSDP, which Accelerate leaves out on a CPU; use "
            "training/accelerate_configs/cpu_two_processes.yaml."
        )
    if accelerator.is_fsdp2:
        # Weights stay float32 and autocast chooses what is computed in less, as without FSDP: the head is float32 throughout.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
        if settings.torch_compile:
            raise SystemExit("torch_compile=True has not been made to work with FSDP2; leave one of the two out.")
    if accelerator.state.dynamo_plugin.backend.value not in (None, "NO"):
        raise SystemExit(
            f"the accelerate configuration asks for dynamo {accelerator.state.dynamo_plugin.backend.value}; leave it out and "
            "use --torch_compile true, which compiles the backbones and not the loop."
        )
    share = accelerator.num_processes * settings.gradient_accumulation_steps
    if settings.batch_size % share:
        raise SystemExit(
            f"batch_size={settings.batch_size} must be divisible by {share}: the {accelerator.num_processes} processes times "
            f"gradient_accumulation_steps={settings.gradient_accumulation_steps}."
        )
    if accelerator.device.type == "cpu":
        # `accelerate launch` gives a CPU process one thread, whatever there is; a process that is started by hand takes all.
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(settings.cpu_threads or max(count_cores() // local_processes, 1))
    set_seed(settings.seed)
    if not settings.quiet:
        accelerator.print(description(accelerator))
    return accelerator


def choose_precision(setting: str) -> str:
    """`auto` is the launcher's choice if it is bf16 or fp16. Its "no" is also what it says when nobody has chosen."""
    if setting != "auto":
        return setting
    launchers = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launchers in ("bf16", "fp16"):
        return launchers
    return "bf16" if computes_bf16() else "no"


def choose_attention(setting: str, device: torch.device) -> str:
    """`auto` is what trains fastest: on a CPU in bf16 sdpa's backward pass takes several times as long as eager's."""
    if setting != "auto":
        return setting
    return "eager" if device.type == "cpu" else "sdpa"


def computes_bf16() -> bool:
    """Whether the device computes faster in bfloat16. Of CPUs those with AMX do; with AVX-512 alone float32 is faster."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def description(accelerator: Accelerator) -> str:
    """The line that says what was chosen, since launcher, settings and machine all have a say."""
    processes = f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''}"
    precision = {"no": "float32"}.get(accelerator.mixed_precision, f"{accelerator.mixed_precision} autocast")
    threads = f" of {torch.get_num_threads()} threads" if accelerator.device.type == "cpu" else ""
    sharding = ", weights sharded by FSDP2" if accelerator.is_fsdp2 else ""
    return f"Running {processes}{threads} on {accelerator.device.type} in {precision}{sharding}."
