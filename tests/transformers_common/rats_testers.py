"""RATS set up for the common tests of transformers. `tests/test_transformers_common.py` runs this file inside their tree.

Overridden is only what transformers' own vision models override too, and what looks up names in tables of transformers.
"""

import math
import unittest
from unittest import mock

import torch
from transformers import AutoModel
from transformers.models.auto import modeling_auto

from modeling_rats import (
    RatsBackbone,
    RatsConfig,
    RatsForImageClassification,
    RatsForPartSegmentation,
    RatsForPreTraining,
    RatsForUniversalSegmentation,
    RatsImageProcessor,
    RatsImageProcessorPil,
    RatsModel,
    RatsUniversalSegmentationConfig,
)
from modeling_rats.universal_segmentation_rats import RatsUniversalSegmentationModel

from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from ...test_modeling_common import ModelTesterMixin, floats_tensor

# By these tables the common tests know what a class is for: which has a loss, which labels it wants.
modeling_auto.MODEL_MAPPING_NAMES["rats"] = "RatsModel"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["rats"] = "RatsBackbone"
modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES["rats"] = "RatsForPreTraining"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["rats"] = "RatsForImageClassification"
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["rats"] = "RatsForPartSegmentation"
AutoModel.register(RatsUniversalSegmentationConfig, RatsUniversalSegmentationModel)

BATCH_SIZE, IMAGE_SIZE, NUM_LABELS, NUM_PROTOTYPES = 3, 32, 3, 16
FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_registers": 8,
    "patch_size": 8,
    "image_size": IMAGE_SIZE,
    "num_prototypes": NUM_PROTOTYPES,
    "head_hidden_size": 24,
    "head_bottleneck_size": 8,
}


class RatsModelTester:
    batch_size = BATCH_SIZE
    hidden_size = FIELDS["hidden_size"]
    num_hidden_layers = FIELDS["num_hidden_layers"]
    num_attention_heads = FIELDS["num_attention_heads"]
    mask_length = (IMAGE_SIZE // FIELDS["patch_size"]) ** 2
    seq_length = FIELDS["num_registers"] + mask_length
    num_masks = 4
    is_training = True

    def get_config(self):
        return RatsConfig(**FIELDS, num_labels=NUM_LABELS)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE])}


class RatsModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (RatsModel, RatsBackbone, RatsForImageClassification, RatsForPartSegmentation, RatsForPreTraining)
    test_resize_embeddings = False
    has_attentions = True

    def setUp(self):
        self.model_tester = RatsModelTester()
        self.config_tester = ConfigTester(self, config_class=RatsConfig, has_text_modality=False, **FIELDS)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is RatsForPreTraining:
            inputs_dict["labels"] = torch.full((BATCH_SIZE, NUM_PROTOTYPES), 1 / NUM_PROTOTYPES)
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):  # patches are embedded by a convolution
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv2d)
            self.assertIsNone(model.get_output_embeddings())

    def test_attention_outputs(self):  # compress maps: the registers of a head x patches
        self.model_tester.encoder_seq_length = FIELDS["num_registers"] // FIELDS["num_attention_heads"]
        self.model_tester.key_length = self.model_tester.mask_length
        super().test_attention_outputs()


class RatsOtherSettingsTest(RatsModelTest):
    """Parts from an earlier layer, registers that no head owns, no communication, no mask token, positions interpolated."""

    all_model_classes = (RatsForPartSegmentation, RatsForPreTraining, RatsModel)

    def setUp(self):
        super().setUp()
        settings = {"part_layer": 1, "partition_registers": False, "communicate": False, "use_mask_token": False}
        fields = FIELDS | settings | {"image_size": 2 * IMAGE_SIZE, "num_labels": NUM_LABELS}
        self.model_tester.get_config = lambda: RatsConfig(**fields)

    def test_attention_outputs(self):
        self.model_tester.encoder_seq_length = FIELDS["num_registers"]
        self.model_tester.key_length = self.model_tester.mask_length
        super(RatsModelTest, self).test_attention_outputs()


class RatsUniversalSegmentationTester:
    batch_size = BATCH_SIZE
    is_training = True
    segmentation_head = "mask2former"

    def get_config(self):
        return RatsUniversalSegmentationConfig(
            backbone_config=RatsConfig(**FIELDS),
            segmentation_head=self.segmentation_head,
            num_labels=NUM_LABELS,
            feature_size=32,
            mask_feature_size=16,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=24,
            encoder_layers=1,
            decoder_layers=3,
            num_attention_heads=4,
            train_num_points=48,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE])}


class WithHiddenStates(RatsForUniversalSegmentation):
    """What the backbone gives, under the name by which the common test of attention implementations looks for it."""

    def forward(self, pixel_values, output_hidden_states=None, output_attentions=None):
        outputs = super().forward(pixel_values, output_attentions=output_attentions)
        outputs["hidden_states"] = (outputs.encoder_last_hidden_state,)
        return outputs


class RatsUniversalSegmentationTest(ModelTesterMixin, unittest.TestCase):
    """Overridden is what transformers' test of Mask2Former overrides: its outputs have names of their own, and its loss is
    computed at points that are drawn anew each time."""

    all_model_classes = (RatsForUniversalSegmentation,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = RatsUniversalSegmentationTester()
        self.config_tester = ConfigTester(self, config_class=RatsUniversalSegmentationConfig, has_text_modality=False)
        if "eager_matches_sdpa" in self._testMethodName:
            self.all_model_classes = (WithHiddenStates,)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            inputs_dict["mask_labels"] = [torch.eye(IMAGE_SIZE).expand(2, -1, -1)] * BATCH_SIZE
            inputs_dict["class_labels"] = [torch.tensor([0, NUM_LABELS - 1])] * BATCH_SIZE
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):  # patches are embedded by a convolution
        model = RatsForUniversalSegmentation(self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv2d)
        self.assertIsNone(model.get_output_embeddings())

    def test_model_outputs_equivalence(self):
        def same_points(*shape, **_):
            return torch.linspace(0, 1, math.prod(shape)).view(shape)

        with mock.patch("torch.rand", same_points):
            super().test_model_outputs_equivalence()

    def outputs(self, model, **asked):
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return model(**self._prepare_for_class(inputs, type(model), return_labels=True), **asked)

    def test_hidden_states_output(self):
        model = RatsForUniversalSegmentation(self.model_tester.get_config()).eval()
        outputs = self.outputs(model, output_hidden_states=True)
        sides = [pyramid.shape[-1] for pyramid in outputs.encoder_hidden_states]
        self.assertEqual(sides, [16, 8, 4, 2])
        self.assertEqual([level.shape[-1] for level in outputs.pixel_decoder_hidden_states], [2, 4, 8])
        queries = [state.shape for state in outputs.transformer_decoder_hidden_states]
        self.assertEqual(queries, [(FIELDS["num_registers"], BATCH_SIZE, 32)] * 3)
        self.assertIsNone(self.outputs(model).encoder_hidden_states)

    def test_attention_outputs(self):
        model = RatsForUniversalSegmentation(self.model_tester.get_config()).eval()
        shapes = [maps.shape for maps in self.outputs(model, output_attentions=True).attentions]
        self.assertEqual(shapes, [(BATCH_SIZE, 4, FIELDS["num_registers"], FIELDS["num_registers"])] * 2)

    def test_retain_grad_hidden_states_attentions(self):
        model = RatsForUniversalSegmentation(self.model_tester.get_config()).train()
        model.set_attn_implementation("eager")
        outputs = self.outputs(model, output_hidden_states=True, output_attentions=True)
        states = (outputs.encoder_hidden_states, outputs.pixel_decoder_hidden_states, outputs.transformer_decoder_hidden_states)
        kept = [of_part[0] for of_part in (*states, outputs.attentions) if of_part]
        for tensor in kept:
            tensor.retain_grad()
        outputs.loss.backward()
        for tensor in kept:
            self.assertIsNotNone(tensor.grad)

    def test_training_gradient_checkpointing_use_reentrant_true(self):
        self.skipTest("Mask2Former's decoder layers take the feature maps as a list, which reentrant checkpoints do not follow")


class RatsEncoderOnlySegmentationTest(RatsUniversalSegmentationTest):
    def setUp(self):
        super().setUp()
        self.model_tester.segmentation_head = "encoder_only"

    def test_hidden_states_output(self):
        model = RatsForUniversalSegmentation(self.model_tester.get_config()).eval()
        shapes = [states.shape for states in self.outputs(model, output_hidden_states=True).encoder_hidden_states]
        self.assertEqual(shapes, [(BATCH_SIZE, RatsModelTester.seq_length, FIELDS["hidden_size"])] * 3)
        self.assertIsNone(self.outputs(model).encoder_hidden_states)

    def test_attention_outputs(self):  # compress maps: the registers of a head x patches
        model = RatsForUniversalSegmentation(self.model_tester.get_config()).eval()
        model.set_attn_implementation("eager")
        shapes = [maps.shape for maps in self.outputs(model, output_attentions=True).attentions]
        self.assertEqual(shapes, [(BATCH_SIZE, 4, 2, RatsModelTester.mask_length)] * 2)

    def test_training_gradient_checkpointing_use_reentrant_true(self):
        super(RatsUniversalSegmentationTest, self).test_training_gradient_checkpointing_use_reentrant_true()


class RatsBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (RatsBackbone,)
    config_class = RatsConfig
    has_attentions = True

    def setUp(self):
        self.model_tester = RatsModelTester()


class RatsImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, **({"size": {"height": 18, "width": 20}, "num_labels": 5} | kwargs))

    def _get_image_processing_classes(self):
        return {"torchvision": RatsImageProcessor, "pil": RatsImageProcessorPil}


class RatsImageProcessingTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = RatsImageProcessingTester
    test_cast_dtype = True
