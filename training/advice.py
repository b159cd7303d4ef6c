"""What looks wrong in settings for the size of the data: rules of thumb of other trainers, none of them measured here."""

import math
from collections.abc import Iterator

from training.settings import Settings, TrainingSettings

# Defaults of LightlyTrain's DINO (its methods/dino/dino.py, resolve_auto): up to so many images, so many prototypes;
PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768), (math.inf, 65536))
# and the teacher's temperature, linear in the number of images from the first to the last.
TEMPERATURES = ((20_000, 0.02), (1_280_000, 0.07))
MOMENTA = (0.99, 0.996)  # of the same, from few to many images; the upper one is DINO's
SMALL_DATA = 100_000  # images: up to here the rule for the momentum stays near its lower end
TOLERANCE = 1.5  # what is a rule of thumb is not worth a word within this factor
LEAST_BATCH = 64
MOST_EPOCHS = 3000
LIGHTLY = "the default of LightlyTrain's DINO"


def advice(num_rows: int | None, settings: Settings) -> list[str]:
    """Sentences on settings that look wrong, empty if none does.

    Args:
        num_rows: Images of an epoch; None if the data set does not tell, then only the settings are compared.
    """
    about = [*_about_the_loss(settings.training)]
    if num_rows:
        about += [*_about_the_length(num_rows, settings.training), *_about_the_size(num_rows, settings)]
    return [f"rule of thumb: {sentence}" for sentence in about]


def _about_the_loss(training: TrainingSettings) -> Iterator[str]:
    if training.teacher_temperature >= training.student_temperature:
        yield (
            f"teacher_temperature={training.teacher_temperature} should be below student_temperature="
            f"{training.student_temperature}: only sharper targets keep the teacher from collapsing to uniform ones (DINO's "
            "paper, section 5.3). DINO has 0.04 and 0.1."
        )
    if training.centering == "centering" and training.batch_size < LEAST_BATCH:
        yield (
            f"batch_size={training.batch_size} with centering=centering should be at least {LEAST_BATCH}: the centre is a "
            "running mean over batches, and DINO's paper reports 128 to 1024. Use a larger batch, with "
            "gradient_accumulation_steps if memory is short, or centering=sinkhorn_knopp."
        )
    if training.teacher_momentum < MOMENTA[0]:
        yield (
            f"teacher_momentum={training.teacher_momentum} should be at least {MOMENTA[0]}, LightlyTrain's lowest: a "
            "teacher that follows at once is no steady target."
        )


def _about_the_length(num_rows: int, training: TrainingSettings) -> Iterator[str]:
    epochs = training.steps * training.batch_size / num_rows
    if epochs < 1:
        yield (
            f"steps={training.steps} of batch_size={training.batch_size} see {epochs:.2f} of the {num_rows:,} images once; one "
            f"epoch takes steps={math.ceil(num_rows / training.batch_size)}, and DINO trains for 100 to 800."
        )
    if epochs > MOST_EPOCHS:
        yield (
            f"steps={training.steps} of batch_size={training.batch_size} see each of the {num_rows:,} images {epochs:,.0f} "
            "times; DINO's longest runs have 800 epochs. Check --dataset and steps."
        )


def _about_the_size(num_rows: int, settings: Settings) -> Iterator[str]:
    model, _, training, _ = settings
    prototypes = next(number for most_images, number in PROTOTYPES if num_rows <= most_images)
    if model.num_prototypes > TOLERANCE * prototypes:
        yield (
            f"num_prototypes={model.num_prototypes} is much for {num_rows:,} images: {LIGHTLY} for so many is {prototypes}. "
            f"Try num_prototypes={prototypes}."
        )
    temperature = teacher_temperature_for(num_rows)
    if training.teacher_temperature > TOLERANCE * temperature:
        yield (
            f"teacher_temperature={training.teacher_temperature} is high for {num_rows:,} images: {LIGHTLY} for so many is "
            f"{temperature:.2f}, and a high one can end in uniform targets. Watch teacher_entropy, or lower it."
        )
    if num_rows <= SMALL_DATA and training.teacher_momentum > MOMENTA[1]:
        yield (
            f"teacher_momentum={training.teacher_momentum} is slow for {num_rows:,} images: LightlyTrain's DINO takes "
            f"{MOMENTA[0]} to {MOMENTA[1]}. (DINO itself suggests 0.9995 for batches of 256 on a million images.)"
        )


def teacher_temperature_for(num_rows: int) -> float:
    """The rule's temperature for so many images."""
    (few, low), (many, high) = TEMPERATURES
    share = min(max((num_rows - few) / (many - few), 0.0), 1.0)
    return low + share * (high - low)
