"""RATS, Register Attention Transformers (arXiv 2606.14701), for transformers. Importing it registers the Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageSegmentation,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Mask2FormerImageProcessorPil,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_rats import RatsConfig
from .configuration_universal_segmentation_rats import RatsUniversalSegmentationConfig
from .image_inputs_rats import read_image
from .image_processing_pil_rats import RatsImageProcessorPil
from .image_processing_rats import RatsImageProcessor
from .modeling_outputs_rats import (
    RatsBackboneOutput,
    RatsForPreTrainingOutput,
    RatsImageClassifierOutput,
    RatsModelOutput,
    RatsPartSegmentationOutput,
)
from .modeling_rats import (
    RatsBackbone,
    RatsForImageClassification,
    RatsForPartSegmentation,
    RatsForPreTraining,
    RatsModel,
    RatsPreTrainedModel,
)
from .original_checkpoint_rats import ConversionReport, load_original_checkpoint
from .part_dictionary import PartDictionary, PartEntry
from .pipeline_rats import PartSegmentationPipeline
from .universal_segmentation_rats import RatsForUniversalSegmentation
from .version import __version__
from .warm_start_rats import WarmStartReport, load_vit_weights, warm_start


def _register() -> None:
    """Tell transformers which classes are RATS, and each class to lay its code beside what it saves (remote_code.py)."""
    for config_class in (RatsConfig, RatsUniversalSegmentationConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class()
    for auto_class, model_class in (
        (AutoModel, RatsModel),
        (AutoBackbone, RatsBackbone),
        (AutoModelForPreTraining, RatsForPreTraining),
        (AutoModelForImageClassification, RatsForImageClassification),
        (AutoModelForSemanticSegmentation, RatsForPartSegmentation),
        (AutoModelForImageSegmentation, RatsForPartSegmentation),
        (AutoModelForUniversalSegmentation, RatsForUniversalSegmentation),
        (AutoModelForImageSegmentation, RatsForUniversalSegmentation),
    ):
        auto_class.register(model_class.config_class, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class)
    processors: dict[type, dict[str, type]] = {
        RatsConfig: {"torchvision": RatsImageProcessor, "pil": RatsImageProcessorPil},
        RatsUniversalSegmentationConfig: {"torchvision": Mask2FormerImageProcessor, "pil": Mask2FormerImageProcessorPil},
    }
    for configuration, processor_classes in processors.items():
        AutoImageProcessor.register(configuration, image_processor_classes=processor_classes, exist_ok=True)
    RatsImageProcessor.register_for_auto_class()
    RatsImageProcessorPil.register_for_auto_class()
    PIPELINE_REGISTRY.register_pipeline(
        "part-segmentation",
        pipeline_class=PartSegmentationPipeline,
        pt_model=(AutoModelForSemanticSegmentation,),
        type="image",
    )


_register()

__all__ = [
    "ConversionReport",
    "PartDictionary",
    "PartEntry",
    "PartSegmentationPipeline",
    "RatsBackbone",
    "RatsBackboneOutput",
    "RatsConfig",
    "RatsForImageClassification",
    "RatsForPartSegmentation",
    "RatsForPreTraining",
    "RatsForPreTrainingOutput",
    "RatsForUniversalSegmentation",
    "RatsImageClassifierOutput",
    "RatsImageProcessor",
    "RatsImageProcessorPil",
    "RatsModel",
    "RatsModelOutput",
    "RatsPartSegmentationOutput",
    "RatsPreTrainedModel",
    "RatsUniversalSegmentationConfig",
    "WarmStartReport",
    "__version__",
    "load_original_checkpoint",
    "load_vit_weights",
    "read_image",
    "warm_start",
]
