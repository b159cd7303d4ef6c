# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""What lets a saved folder or a Hub repository load without this package installed, with `trust_remote_code=True`.

On every save transformers copies the file of the saved class, and each file that it imports relatively, beside the weights.
`RatsConfig` writes the two tables below, so that whichever class was saved, all of them can be loaded.
"""

from typing import TYPE_CHECKING

from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

if TYPE_CHECKING:
    # Not for types: transformers reads these lines, wherever they stand, and copies the files of all classes in the tables.
    from .image_processing_pil_rats import RatsImageProcessorPil  # noqa: F401
    from .image_processing_rats import RatsImageProcessor  # noqa: F401
    from .modeling_rats import RatsModel  # noqa: F401
    from .pipeline_rats import PartSegmentationPipeline  # noqa: F401

IS_REMOTE_CODE = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")

# The class behind each Auto class, as file.Class.
AUTO_MAP = {
    "AutoConfig": "configuration_rats.RatsConfig",
    "AutoModel": "modeling_rats.RatsModel",
    "AutoBackbone": "modeling_rats.RatsBackbone",
    "AutoModelForPreTraining": "modeling_rats.RatsForPreTraining",
    "AutoModelForImageClassification": "modeling_rats.RatsForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_rats.RatsForPartSegmentation",
    "AutoModelForImageSegmentation": "modeling_rats.RatsForPartSegmentation",
    # Two backends: PIL, torchvision.
    "AutoImageProcessor": ["image_processing_pil_rats.RatsImageProcessorPil", "image_processing_rats.RatsImageProcessor"],
}

CUSTOM_PIPELINES = {
    "part-segmentation": {
        "impl": "pipeline_rats.PartSegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
        "type": "image",
    }
}

__all__ = ["AUTO_MAP", "CUSTOM_PIPELINES", "IS_REMOTE_CODE"]
