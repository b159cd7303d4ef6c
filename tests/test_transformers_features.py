"""What users of transformers do with a vision model, done with every RATS class."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_rats import (
    RatsBackbone,
    RatsForImageClassification,
    RatsForPartSegmentation,
    RatsForPreTraining,
    RatsModel,
)

HEADS = [RatsBackbone, RatsForImageClassification, RatsForPartSegmentation, RatsForPreTraining]
CLASSES = [RatsModel, *HEADS]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_model(make_config):
    def make(model_class=RatsModel, attn_implementation="sdpa", **overrides):
        torch.manual_seed(0)
        config = make_config(**({"initializer_range": 0.2, "num_labels": 5, "out_indices": [0, 1, 2]} | overrides))
        config._attn_implementation = attn_implementation
        return model_class(config).eval()

    return make


def result(outputs):
    """The tensor that the class is for; all feature maps of a backbone."""
    for name in ("logits", "feature_maps", "last_hidden_state"):
        if (value := outputs.get(name)) is not None:
            return torch.cat([one.flatten() for one in value]) if name == "feature_maps" else value
    raise AssertionError(f"nothing to compare in {list(outputs)}")


def gradients(model, images=IMAGES):
    model.zero_grad()
    outputs = result(model(images)).float()
    (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# Attention implementations


@pytest.mark.parametrize("model_class", CLASSES)
def test_eager_equals_sdpa_in_outputs_and_gradients(make_model, model_class):
    eager, sdpa = make_model(model_class, "eager"), make_model(model_class, "sdpa")
    torch.testing.assert_close(result(eager(IMAGES)), result(sdpa(IMAGES)), atol=1e-5, rtol=1e-5)
    of_eager, of_sdpa = gradients(eager), gradients(sdpa)
    assert of_eager.keys() == of_sdpa.keys() and len(of_eager) > 20
    for name, gradient in of_eager.items():
        scale = max(gradient.abs().max().item(), 1)  # the gradients of a sum over thousands of outputs reach hundreds
        torch.testing.assert_close(gradient / scale, of_sdpa[name] / scale, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("model_class", CLASSES)
def test_the_implementation_can_be_changed_after_loading(make_model, model_class, tmp_path):
    make_model(model_class).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert model.config._attn_implementation == "eager"
    assert len(model(IMAGES, output_attentions=True).attentions) == 2
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    for module in model.modules():
        assert getattr(getattr(module, "config", None), "_attn_implementation", "sdpa") == "sdpa"
    with pytest.warns(UserWarning, match="returns no maps"):
        assert model(IMAGES, output_attentions=True).attentions == ()


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "flex_attention"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_flash_and_flex_attention_get_all_three_steps(make_model, monkeypatch, model_class, implementation):
    """The kernels need a GPU; what can be held here is what they are called with."""
    calls = []

    def recording(module, query, key, value, attention_mask, **kwargs):
        shapes = tuple(tuple(tensor.shape) for tensor in (query, key, value))
        calls.append((shapes, module.is_causal, kwargs.get("is_causal"), attention_mask, kwargs["scaling"], kwargs["dropout"]))
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        log_sum_exps = query.new_zeros(query.shape[:-1]) if implementation == "flex_attention" else None
        return attended, log_sum_exps

    expected = result(make_model(model_class)(IMAGES))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, implementation, recording)
    model = make_model(model_class)
    model.config._attn_implementation = implementation  # set_attn_implementation would look for the kernels
    torch.testing.assert_close(result(model(IMAGES)), expected)

    registers, patches = (2, 4, 2, 8), (2, 4, 16, 8)  # (B, H, n, d) and (B, H, L, d)
    compress, communicate, broadcast = (registers, patches, patches), (registers,) * 3, (patches, registers, registers)
    pooled = model_class in (RatsForImageClassification, RatsForPreTraining)  # no broadcast in their last block
    steps = [compress, communicate, broadcast, compress, communicate] + ([] if pooled else [broadcast])
    assert [call[0] for call in calls] == steps
    assert {call[1:] for call in calls} == {(False, None, None, 8**-0.5, 0.0)}
    with pytest.warns(UserWarning, match=f"'{implementation}' returns no maps"):
        assert model(IMAGES, output_attentions=True).attentions == ()


def test_transformers_believes_that_every_implementation_is_supported(make_model):
    model = make_model()
    assert model._supports_sdpa and model._supports_flash_attn and model._supports_flex_attn
    assert model._supports_attention_backend and model._can_compile_fullgraph


# Compilation and export


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_compiles_as_one_graph(make_model, fresh_compiler, model_class, implementation):
    model = make_model(model_class, implementation)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(result(compiled(IMAGES)), result(model(IMAGES)), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiles_to_machine_code(make_model, fresh_compiler):
    model = make_model(RatsForPartSegmentation)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(result(compiled(IMAGES)), result(model(IMAGES)), atol=1e-5, rtol=1e-5)


def test_a_compiled_training_step_equals_the_eager_one(make_model, fresh_compiler):
    model = make_model(RatsForImageClassification)
    expected = gradients(model)
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    for name, gradient in expected.items():
        torch.testing.assert_close(compiled[f"_orig_mod.{name}"], gradient, atol=1e-4, rtol=1e-4)


AUTO = torch.export.Dim.AUTO


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize(
    "free, shapes",
    [
        ({}, [(2, 32, 32)]),
        ({0: AUTO}, [(2, 32, 32), (5, 32, 32)]),
        ({0: AUTO, 2: AUTO, 3: AUTO}, [(2, 32, 32), (3, 48, 64), (2, 16, 40)]),
    ],
    ids=["fixed", "free batch", "free batch and size"],
)
def test_exported_program_equals_the_model(make_model, model_class, implementation, free, shapes):
    model = make_model(model_class, implementation)
    program = torch.export.export(model, (), {"pixel_values": IMAGES}, dynamic_shapes={"pixel_values": free})
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width)
        outputs = program.module()(pixel_values=images)
        torch.testing.assert_close(result(outputs), result(model(images)), atol=1e-5, rtol=1e-5)


# Numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model_class", CLASSES)
def test_half_precision_stays_finite_and_close(make_model, model_class, dtype):
    model = make_model(model_class, initializer_range=0.05)
    expected = result(model(IMAGES))
    outputs = result(copy.deepcopy(model).to(dtype)(IMAGES))
    assert outputs.isfinite().all()
    assert nn.functional.cosine_similarity(outputs.float().flatten(), expected.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("model_class", CLASSES)
def test_large_pixels_stay_finite_in_half_precision(make_model, model_class):
    model = make_model(model_class).to(torch.float16)
    assert result(model(IMAGES * 50)).isfinite().all()


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_batch_equals_its_images_one_by_one(make_model, model_class):
    model = make_model(model_class)
    one_by_one = [model(image[None]) for image in IMAGES]
    for name, value in model(IMAGES).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, torch.cat([one[name] for one in one_by_one]), atol=1e-5, rtol=1e-5)


# Saving and loading


@pytest.mark.parametrize("saved", CLASSES)
@pytest.mark.parametrize("loaded", CLASSES)
def test_any_class_loads_from_any_other_without_unexpected_keys(make_config, tmp_path, saved, loaded):
    # Without labels of one's own: the classifiers of segmentation and classification have other shapes.
    torch.manual_seed(0)
    source = saved(make_config(initializer_range=0.2))
    source.save_pretrained(tmp_path)
    model, info = loaded.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"] and not info["error_msgs"]
    assert all(key.startswith(("head.", "classifier.", "part_classifier.")) for key in info["missing_keys"])
    first, second = source.state_dict(), model.state_dict()
    compared = {key.removeprefix("rats."): key for key in second if key not in info["missing_keys"]}
    assert len(compared) > 30
    for key in first:
        if key.removeprefix("rats.") in compared:
            assert torch.equal(first[key], second[compared[key.removeprefix("rats.")]]), key


@pytest.mark.parametrize("saved", [RatsForImageClassification, RatsForPartSegmentation])
@pytest.mark.parametrize("loaded", [RatsForImageClassification, RatsForPartSegmentation])
def test_the_labels_of_one_head_do_not_disturb_the_other(make_model, tmp_path, saved, loaded):
    make_model(saved, num_labels=5, num_registers=32).save_pretrained(tmp_path)  # as many registers as channels
    model, info = loaded.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    own = {"classifier.weight", "classifier.bias"} if loaded is RatsForImageClassification else set()
    own = own or {"part_classifier.weight", "part_classifier.bias"}
    assert info["missing_keys"] == (set() if saved is loaded else own)
    assert model(IMAGES).logits.shape[1] == 5


@pytest.mark.parametrize(
    "model_class, layer", [(RatsForImageClassification, "classifier"), (RatsForPartSegmentation, "part_classifier")]
)
def test_a_classifier_of_another_size_is_refused_or_made_anew(make_model, tmp_path, model_class, layer):
    make_model(model_class, num_labels=5).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        model_class.from_pretrained(tmp_path, num_labels=3)
    model, info = model_class.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True)
    assert {key for key, *_ in info["mismatched_keys"]} == {f"{layer}.weight", f"{layer}.bias"}
    assert getattr(model, layer).out_features == 3 and model.config.id2label == {i: f"LABEL_{i}" for i in range(3)}
    assert model(IMAGES).logits.shape[1] == 3


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_models_equal_the_one_in_memory(make_model, tmp_path, model_class, where):
    accelerate = pytest.importorskip("accelerate")
    model = make_model(model_class)
    expected = result(model(IMAGES))
    if where == "cpu":
        offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    else:
        model.save_pretrained(tmp_path / "saved")
        offloaded = model_class.from_pretrained(
            tmp_path / "saved", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
        ).eval()
        assert any(parameter.device.type == "meta" for parameter in offloaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(result(offloaded(IMAGES)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", CLASSES)
def test_device_map_and_dtype(make_model, tmp_path, model_class):
    make_model(model_class).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, device_map="cpu", dtype="bfloat16").eval()
    assert model.dtype == torch.bfloat16
    assert result(model(IMAGES)).isfinite().all()


# Adapters and quantisation


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj", "o_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize("model_class", CLASSES)
def test_lora_trains_and_merges(make_model, model_class, targets):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(make_model(model_class), settings).eval()
    without = result(make_model(model_class)(IMAGES))
    outputs = result(adapted(pixel_values=IMAGES))
    assert (outputs - without).abs().max() > 0.01
    outputs.sin().sum().backward()
    trained = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    without_gradient = [name for name, gradient in trained.items() if gradient is None]
    # The class behind `all-linear` may have a last block that computes no patches; the adapters of `mlp` are used all the same.
    assert trained and not without_gradient
    torch.testing.assert_close(result(adapted.merge_and_unload()(IMAGES)), outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_class", CLASSES)
def test_dynamic_int8_stays_close(make_model, model_class):
    model = make_model(model_class, initializer_range=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    outputs, expected = result(quantised(IMAGES)).flatten(), result(model(IMAGES)).flatten()
    assert nn.functional.cosine_similarity(outputs, expected, dim=0) > 0.995


@pytest.mark.parametrize("model_class", CLASSES)
def test_torchao_int8_stays_close(make_model, model_class):
    with contextlib.redirect_stderr(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization")
    model = make_model(model_class, initializer_range=0.05)
    quantised = copy.deepcopy(model)
    quantization.quantize_(quantised, quantization.Int8DynamicActivationInt8WeightConfig())
    outputs, expected = result(quantised(IMAGES)).flatten(), result(model(IMAGES)).flatten()
    assert not torch.equal(outputs, expected)
    assert nn.functional.cosine_similarity(outputs, expected, dim=0) > 0.995


# Training conveniences


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("model_class", CLASSES)
def test_gradient_checkpointing_changes_no_gradient(make_model, model_class, use_reentrant):
    model = make_model(model_class, drop_path_rate=0.3).train()
    torch.manual_seed(0)
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    torch.manual_seed(0)
    checkpointed = gradients(model)
    assert checkpointed.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize("model_class", HEADS)
def test_every_trainable_parameter_of_a_head_gets_a_gradient(make_model, tmp_path, model_class):
    """DistributedDataParallel refuses a model in which one gets none; so the mask token is frozen, also after loading."""
    make_model(model_class).save_pretrained(tmp_path)
    for model in (make_model(model_class).train(), model_class.from_pretrained(tmp_path).train()):
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == gradients(model).keys()
        assert not model.rats.embeddings.mask_token.requires_grad
    assert make_model(RatsModel).embeddings.mask_token.requires_grad


@pytest.mark.parametrize("model_class", CLASSES)
def test_the_configuration_may_ask_for_tuples(make_model, model_class):
    model = make_model(model_class)
    expected = model(IMAGES).to_tuple()
    model.config.return_dict = False
    for first, second in zip(model(IMAGES), expected, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("model_class", CLASSES)
def test_costs_can_be_counted_without_memory(make_config, model_class):
    with torch.device("meta"):
        model = model_class(make_config())
    assert result(model(IMAGES.to("meta"))).device.type == "meta"


def test_a_trainer_evaluates_logits_alone(make_config):
    assert set(make_config().keys_to_ignore_at_inference) == {"similarities", "register_heads"}


@pytest.mark.parametrize("parts", [{"part_layer": 0}, {"part_layer": -2}, {"part_similarity": "claimed_patches"}], ids=str)
def test_other_parts_compile_export_and_checkpoint(make_model, fresh_compiler, parts):
    model = make_model(RatsForPartSegmentation, **parts)
    expected = result(model(IMAGES))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(result(compiled(IMAGES)), expected, atol=1e-5, rtol=1e-5)
    program = torch.export.export(model, (), {"pixel_values": IMAGES})
    torch.testing.assert_close(result(program.module()(pixel_values=IMAGES)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_tuple_holds_the_same_in_the_same_order(make_model, model_class):
    model = make_model(model_class)
    outputs, as_tuple = model(IMAGES), model(IMAGES, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(outputs)
    for first, second in zip(outputs.to_tuple(), as_tuple, strict=True):
        torch.testing.assert_close(first, second)
