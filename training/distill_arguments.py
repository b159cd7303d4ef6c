"""Fills the settings of distillation from a recipe and the command line, and checks them."""

from training.arguments import ReportError, check_shared, fill
from training.distill_settings import DistillSettings

WEIGHTS = ("patch_weight", "register_bottleneck_weight", "register_code_weight", "global_weight")


def parse(arguments: list[str] | None = None) -> DistillSettings:
    """Settings from `RECIPE [--setting value ...]`.

    Raises:
        SystemExit: With a message, for an unreadable recipe, an unknown setting or a value of the wrong type or range.
    """
    filled, error = fill(
        tuple(DistillSettings.__annotations__.values()),
        arguments,
        program="distill.py",
        description="Distillation of a frozen ViT into a RATS. RECIPE is a YAML file of settings; the defaults below hold for "
        "settings that it leaves out.",
    )
    settings = DistillSettings(*filled)
    _check(settings, error)
    return settings


def _check(settings: DistillSettings, error: ReportError) -> None:
    """Ranges of settings and rules between them. What concerns the networks, these check themselves."""
    check_shared(settings, ("global",), error)
    model, training = settings.model, settings.training
    if training.teacher is None:
        error("teacher is missing: name a folder or a Hub name, such as --teacher facebook/dinov2-small.")
    if not any(getattr(training, name) for name in WEIGHTS):
        error(f"{', '.join(f'{name}=0' for name in WEIGHTS)} leave nothing to learn; set one of them above 0.")
    if training.warm_start != "none" and model.model_type != "rats":
        error(f"warm_start={training.warm_start} fills a RATS; with model_type={model.model_type} leave it out.")
