"""What is watched while training: figures of the teacher, the JSON-lines log, the picture of the curves."""

import json
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from training.arguments import TrainingSettings


def teacher_entropies(targets: torch.Tensor) -> dict[str, float]:
    """Entropies of the teacher's probabilities, in nats; ln K is the entropy of the uniform distribution.

    Both near ln K: collapse to the uniform output. Both near 0: collapse to one prototype. Healthy: `teacher_entropy` falls
    below ln K while `teacher_marginal_entropy`, that of the mean over the batch, stays high.

    Args:
        targets: Teacher probabilities, (G, B, K).
    """
    marginal = targets.flatten(0, 1).mean(dim=0)
    return {
        "teacher_entropy": torch.special.entr(targets).sum(dim=-1).mean().item(),
        "teacher_marginal_entropy": torch.special.entr(marginal).sum().item(),
    }


class CollapseWatch:
    """Counts the log lines in a row in which the teacher tells no images apart.

    Collapsed is a teacher whose targets are uniform (`teacher_entropy` within 0.5 % of ln K) or the same single prototype for
    every image (`teacher_marginal_entropy` below 1 % of ln K). A high or rising loss is no sign of it: DINO's rises when the
    prototypes are released.

    Args:
        patience: Lines in a row after which a run is lost; 0 for never.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.lines = 0
        self.first_step = 0

    def update(self, entry: dict) -> str | None:
        """What is wrong, told at the first line of a row and at the last; None otherwise."""
        ln_k, entropy, marginal = (entry[name] for name in ("ln_k", "teacher_entropy", "teacher_marginal_entropy"))
        uniform, single = entropy > 0.995 * ln_k, marginal < 0.01 * ln_k
        self.lines = self.lines + 1 if uniform or single else 0
        if not self.lines or self.lines not in (1, self.patience):
            return None
        self.first_step = entry["step"] if self.lines == 1 else self.first_step
        which = "uniform for every image" if uniform else "the same prototype for every image"
        return (
            f"step {entry['step']}: the teacher has collapsed, its targets are {which} (entropy {entropy:.3f}, of their mean "
            f"{marginal:.3f}, ln K {ln_k:.3f}) since step {self.first_step}. Lower teacher_temperature, or use "
            "centering=sinkhorn_knopp."
        )

    @property
    def is_lost(self) -> bool:
        return 0 < self.patience <= self.lines


class Reporter:
    """What a run shows while it goes: progress bar, log, warnings. Only the main process writes; all notice a collapse.

    Args:
        output: The folder of the run; the log is `log.jsonl` in it.
        settings: Of the run.
        step: The step that it goes on from.
        is_main: Whether this is the main process.
    """

    def __init__(self, output: Path, settings: TrainingSettings, step: int, is_main: bool):
        self.output, self.settings = output, settings
        self.collapse = CollapseWatch(settings.collapse_patience)
        self.log = JsonLog(output / "log.jsonl", first_step=step + 1) if is_main else None
        hides_progress = settings.quiet or not is_main or not sys.stderr.isatty()
        self.progress = tqdm(total=settings.steps, initial=step, desc="Pretraining", unit="step", disable=hides_progress)

    def step(self, broken: list[str]) -> None:
        """One step more, and the images that its batch had to skip."""
        for reason in broken:
            self.progress.write(f"skipped broken image {reason}", file=sys.stderr)
        self.progress.update()

    def write(self, entry: dict) -> None:
        """A line of the log.

        Raises:
            SystemExit: If the teacher has been collapsed for `collapse_patience` lines; on every rank alike.
        """
        warning = self.collapse.update(entry)
        if self.log:
            self.log.write(entry)
            self.progress.set_postfix(loss=f"{entry['loss']:.3f}", images_per_s=f"{entry['images_per_s']:.0f}")
            if self.progress.disable and not self.settings.quiet:
                print(console_line(entry, self.settings.steps), file=sys.stderr, flush=True)
            if warning:
                self.progress.write(warning, file=sys.stderr)
        if self.collapse.is_lost:
            raise SystemExit(
                f"{warning} After collapse_patience={self.collapse.patience} such lines of the log the run stops; go on from a "
                f"checkpoint of an earlier step in {self.output / 'checkpoints'}, with --resume PATH."
            )

    def close(self) -> None:
        self.progress.close()


def console_line(entry: dict, steps: int) -> str:
    """What a job's log shows of an entry, where no progress bar can be drawn."""
    return (
        f"step {entry['step']}/{steps}  loss {entry['loss']:.3f} (ln K {entry['ln_k']:.3f})  teacher entropy "
        f"{entry['teacher_entropy']:.3f}  {entry['images_per_s']:.0f} images/s"
    )


class JsonLog:
    """One JSON object a line, appended and flushed at once.

    Args:
        path: The log file.
        first_step: Lines of this step and later are dropped: a resumed run writes them again.
    """

    def __init__(self, path: Path, first_step: int = 0):
        kept = [line for line in read_log(path) if line["step"] < first_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the run)

    def write(self, entry: dict) -> None:
        self._file.write(json.dumps(entry) + "\n")


def read_log(path: Path) -> list[dict]:
    """The entries of a log; a last line that was cut off while it was written is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def draw_curves(log: Path, picture: Path) -> None:
    """Draws loss and teacher entropies (with ln K), learning rate, gradient norm and images/s against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = read_log(log)
    steps = [entry["step"] for entry in entries]
    panels = [
        ("loss and entropies, nats", ["loss", "teacher_entropy", "teacher_marginal_entropy", "ln_k"]),
        ("gradient norm", ["gradient_norm"]),
        ("learning rate", ["learning_rate"]),
        ("images/s", ["images_per_s"]),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), layout="constrained")
    for axis, (title, names) in zip(axes, panels, strict=True):
        for name in names:
            axis.plot(steps, [entry[name] for entry in entries], label=name.replace("_", " "))
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(names) > 1:
            axis.legend(fontsize="small")
    temporary = picture.with_name(f".{picture.name}")
    figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)
    os.replace(temporary, picture)
