# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""What lets a saved folder or a Hub repository load without this package installed, with `trust_remote_code=True`.

On every save transformers copies the file of the saved class, and each file that it imports relatively, beside the weights.
The configurations write the tables below, so that whichever class was saved, all of its model type can be loaded.
"""

import os
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig
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

# Of `rats_universal_segmentation`, whose processor is transformers' own.
UNIVERSAL_SEGMENTATION_AUTO_MAP = {
    "AutoConfig": "configuration_universal_segmentation_rats.RatsUniversalSegmentationConfig",
    "AutoModelForUniversalSegmentation": "universal_segmentation_rats.RatsForUniversalSegmentation",
    "AutoModelForImageSegmentation": "universal_segmentation_rats.RatsForUniversalSegmentation",
}


class WithCode(PreTrainedConfig):
    """A configuration whose file also says which code serves each Auto class, for those who have not installed it.

    Attributes:
        AUTO_MAP: The class behind each Auto class.
        CUSTOM_PIPELINES: The pipelines that come with them.
    """

    AUTO_MAP: ClassVar[dict[str, Any]] = {}
    CUSTOM_PIPELINES: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # that the code of a saved class goes with it is not inherited

    def __post_init__(self, **kwargs):
        if not IS_REMOTE_CODE:  # this package serves the Auto classes and the pipeline, and no copy of it needs to be trusted
            kwargs = {name: value for name, value in kwargs.items() if name not in ("auto_map", "custom_pipelines")}
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As the parent's, with the tables in the file."""
        saved = copy(self)
        # Own entries are those of a user's class, registered and saved. With "--" they name the code of another repository.
        own = {name: code for name, code in (getattr(self, "auto_map", None) or {}).items() if "--" not in str(code)}
        saved.auto_map = deepcopy(self.AUTO_MAP | own)
        if pipelines := (getattr(self, "custom_pipelines", None) or {}) | self.CUSTOM_PIPELINES:
            saved.custom_pipelines = deepcopy(pipelines)
        super(WithCode, saved).save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


__all__ = ["AUTO_MAP", "CUSTOM_PIPELINES", "IS_REMOTE_CODE", "UNIVERSAL_SEGMENTATION_AUTO_MAP", "WithCode"]
