"""RATS, Register Attention Transformers (arXiv 2606.14701), for transformers. Importing it registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from .configuration_rats import RatsConfig
from .image_processing_rats import RatsImageProcessor
from .modeling_rats import (
    RatsForPartSegmentation,
    RatsForPreTraining,
    RatsForPreTrainingOutput,
    RatsModel,
    RatsPartSegmentationOutput,
    RatsPreTrainedModel,
)
from .version import __version__

AutoConfig.register("rats", RatsConfig, exist_ok=True)
AutoModel.register(RatsConfig, RatsModel, exist_ok=True)
AutoModelForPreTraining.register(RatsConfig, RatsForPreTraining, exist_ok=True)
AutoModelForSemanticSegmentation.register(RatsConfig, RatsForPartSegmentation, exist_ok=True)
AutoModelForImageSegmentation.register(RatsConfig, RatsForPartSegmentation, exist_ok=True)
AutoImageProcessor.register(RatsConfig, image_processor_classes={"torchvision": RatsImageProcessor}, exist_ok=True)

__all__ = [
    "RatsConfig",
    "RatsForPartSegmentation",
    "RatsForPreTraining",
    "RatsForPreTrainingOutput",
    "RatsImageProcessor",
    "RatsModel",
    "RatsPartSegmentationOutput",
    "RatsPreTrainedModel",
    "__version__",
]
