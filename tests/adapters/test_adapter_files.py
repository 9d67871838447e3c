"""Adapters of peft and of Stable Audio 3 do to a model's weights what they do where they were trained."""

import json
import math
from copy import deepcopy

import configs
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stable_audio_tools.adapters import load_with_adapters, merge_adapter, read_adapter
from stable_audio_tools.models.checkpoints import CheckpointError, save_model
from stable_audio_tools.models.factory import create_model_from_config

TARGETS = r".*(to_qkv|to_out|to_q|ff\.ff\.2)"
LAYER = "model.transformer.layers.0.self_attn.to_qkv"


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = create_model_from_config(configs.text_to_audio())
    with torch.no_grad():
        for parameter in model.parameters():  # some start at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def reload(model):
    other = create_model_from_config(configs.text_to_audio())
    other.load_state_dict(model.state_dict())
    return other


def output(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 32, generator=generator)
    conditions = model.conditioner([{"prompt": "a bell"}, {"prompt": "rain"}], "cpu")
    return model(x, torch.tensor([0.3, 0.7]), cond=conditions)


def problem(error):
    (found,) = error.value.problems
    return found.message, found.fix


# peft


def peft_adapter(model, folder, **settings):
    """A trained adapter as peft saves it, and the model under it as peft runs it."""
    import peft  # seconds

    wrapped = peft.get_peft_model(reload(model), peft.LoraConfig(**{"target_modules": TARGETS, "r": 4, "lora_alpha": 6, **settings}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
                assert "lora" in name or "modules_to_save" in name or "bias" in name
    wrapped.save_pretrained(folder)
    return wrapped.base_model.model


PEFT_OPTIONS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"to_qkv": 8}, "alpha_pattern": {"to_qkv": 3, r"ff\.2": 5}},
    "convolutions": {"target_modules": r".*(preprocess_conv|postprocess_conv|to_qkv)"},
    "dora of convolutions": {"target_modules": r".*(preprocess_conv|postprocess_conv)", "use_dora": True},
    "whole modules": {"modules_to_save": ["preprocess_conv"]},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize("options", PEFT_OPTIONS.values(), ids=PEFT_OPTIONS)
@pytest.mark.slow
def test_an_adapter_of_peft_is_merged_as_peft_runs_it(model, tmp_path, options):
    trained = peft_adapter(model, tmp_path, **options)
    base, expected = output(model), output(trained.eval())
    report = merge_adapter(model, read_adapter(tmp_path / "adapter_model.safetensors"))
    assert report.merged and not report.missing
    assert not torch.allclose(base, expected, atol=1e-4)
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_an_embedding_is_merged_as_peft_runs_it(tmp_path):
    import peft  # seconds

    base = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3))
    trained = peft.get_peft_model(deepcopy(base), peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    trained.save_pretrained(tmp_path)
    merge_adapter(base, read_adapter(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(base(torch.arange(10)), trained(torch.arange(10)))


@pytest.mark.parametrize("part", ["model", "model.model"])
def test_an_adapter_of_the_denoiser_alone_finds_it(model, tmp_path, part):
    import peft  # seconds

    other = reload(model)
    wrapped = peft.get_peft_model(other.get_submodule(part), peft.LoraConfig(target_modules=TARGETS, r=4, init_lora_weights=False))
    wrapped.save_pretrained(tmp_path)
    expected = output(other)
    merge_adapter(model, read_adapter(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_peft_needs_its_settings(model, tmp_path):
    peft_adapter(model, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError) as error:
        read_adapter(tmp_path / "adapter_model.safetensors")
    assert problem(error) == (
        "an adapter that does not say its scale (alpha)",
        "put the adapter_config.json that was saved with it beside it",
    )


def test_kinds_that_are_not_read_are_named(model, tmp_path):
    peft_adapter(model, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "LOHA"}))
    with pytest.raises(CheckpointError) as error:
        read_adapter(tmp_path / "adapter_model.safetensors")
    assert problem(error)[0] == "an adapter of kind loha; of peft's, lora with its options is read"


# Stable Audio 3


def sa3_adapter(model, path, kind, *, target=LAYER, rank=4, alpha=6, parts=None, **settings):
    """An adapter of one layer of the denoiser; returns its tensors."""
    generator = torch.Generator().manual_seed(3)
    weight = model.model.get_submodule(target).weight
    out, width = weight.flatten(1).shape
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tensors = {"M_xs": draw(rank, rank)} if kind.endswith("-xs") else {"lora_A": draw(rank, width), "lora_B": draw(out, rank)}
    if kind.startswith("dora-rows"):
        tensors["magnitude"] = 1 + draw(out).abs()
    elif kind.startswith("dora"):
        tensors["magnitude"] = 1 + draw(1, width).abs()
    elif kind.startswith("bora"):
        tensors |= {"magnitude_r": 1 + draw(out).abs(), "magnitude_c": 1 + draw(width).abs()}
    tensors |= parts or {}
    named = {f"{target}.parametrizations.weight.0.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, path, {"lora_config": json.dumps({"rank": rank, "alpha": alpha, "adapter_type": kind, **settings})})
    return tensors


def sa3_weight(weight, tensors, kind, scale, strength):
    """The adapted weight, in the steps of the paper: direction, then norms."""
    base = weight.flatten(1)
    if kind.endswith("-xs"):
        u, _, vh = torch.linalg.svd(base, full_matrices=False)
        u, vh = u[:, :4], vh[:4]
        for i in range(4):
            if u[u[:, i].abs().argmax(), i] < 0:
                u[:, i], vh[i] = -u[:, i], -vh[i]
        delta = u @ tensors["M_xs"] @ vh
    else:
        delta = tensors["lora_B"] @ tensors["lora_A"]
    result = base + scale * strength * delta
    rows = tensors.get("magnitude_r", tensors.get("magnitude") if "rows" in kind else None)
    columns = tensors.get("magnitude_c", tensors.get("magnitude") if "cols" in kind else None)
    for magnitude, dim in ((rows, 1), (columns, 0)):
        if magnitude is not None:
            own = base.norm(dim=dim)
            wanted = (1 - strength) * own + strength * magnitude.flatten()
            result = result * (wanted / result.norm(dim=dim)).unsqueeze(dim)
    return result.view_as(weight)


KINDS = [f"{kind}{suffix}" for kind in ("lora", "dora-rows", "dora-cols", "bora") for suffix in ("", "-xs")]


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [LAYER, "model.preprocess_conv"])
def test_every_kind_of_stable_audio_3_follows_its_formula(model, tmp_path, kind, strength, target):
    tensors = sa3_adapter(model, tmp_path / "a.safetensors", kind, target=target)
    before = model.model.get_submodule(target).weight.detach().clone()
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert (adapter.kind, adapter.rank) == (kind, 4)
    merge_adapter(model, adapter, strength)
    expected = sa3_weight(before, tensors, kind, 6 / 4, strength)
    torch.testing.assert_close(model.model.get_submodule(target).weight, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "kind"), [((1, -1), "dora-cols"), ((-1, 1), "dora-rows"), ((-1,), "dora-rows")])
def test_early_files_show_by_the_shape_of_their_magnitude_what_dora_means(model, tmp_path, shape, kind):
    out, width = model.model.get_submodule(LAYER).weight.shape
    magnitude = torch.ones(width if kind == "dora-cols" else out).reshape(shape)
    sa3_adapter(model, tmp_path / "a.safetensors", "dora", parts={"magnitude": magnitude})
    assert read_adapter(tmp_path / "a.safetensors").kind == kind


def test_strength_zero_is_the_base_and_small_strengths_are_close_to_it(model, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sa3_adapter(model, tmp_path / "a.safetensors", "bora")
    adapter = read_adapter(tmp_path / "a.safetensors")
    merge_adapter(model, adapter, 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert merge_adapter(model, adapter, 1e-5).change < 1e-3


def test_a_checkpoint_of_stable_audio_3s_training_is_read_too(model, tmp_path):
    tensors = sa3_adapter(model, tmp_path / "a.safetensors", "lora")
    named = {f"{LAYER}.parametrizations.weight.0.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": named, "lora_config": {"rank": 4, "alpha": 6}}, tmp_path / "a.ckpt")
    other = reload(model)
    merge_adapter(model, read_adapter(tmp_path / "a.safetensors"))
    merge_adapter(other, read_adapter(tmp_path / "a.ckpt"))
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_two_adapters_add_up(model, tmp_path):
    one = sa3_adapter(model, tmp_path / "a.safetensors", "lora")
    adapter, before = read_adapter(tmp_path / "a.safetensors"), model.model.get_submodule(LAYER).weight.detach().clone()
    merge_adapter(model, adapter, 0.25)
    merge_adapter(model, adapter, 0.75)
    torch.testing.assert_close(model.model.get_submodule(LAYER).weight, before + 1.5 * one["lora_B"] @ one["lora_A"])


def test_saved_row_norms_tell_another_version_of_the_base(model, tmp_path):
    tensors = sa3_adapter(model, tmp_path / "a.safetensors", "dora-rows")
    norms = (model.model.get_submodule(LAYER).weight + 1.5 * tensors["lora_B"] @ tensors["lora_A"]).norm(dim=1).detach()
    sa3_adapter(model, tmp_path / "a.safetensors", "dora-rows", parts={"baked_vnorm_row": norms})
    assert "another version" not in str(merge_adapter(reload(model), read_adapter(tmp_path / "a.safetensors")))
    with torch.no_grad():
        model.model.get_submodule(LAYER).weight.mul_(1.5)
    assert "another version of this model" in str(merge_adapter(model, read_adapter(tmp_path / "a.safetensors")))


# what does not fit


def test_an_adapter_of_another_model_is_refused_and_changes_nothing(model, tmp_path):
    sa3_adapter(model, tmp_path / "a.safetensors", "lora")
    smaller = configs.text_to_audio()
    smaller["model"]["diffusion"]["config"] |= {"embed_dim": 16, "depth": 1}
    smaller = create_model_from_config(smaller)
    before = {key: value.clone() for key, value in smaller.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        merge_adapter(smaller, read_adapter(tmp_path / "a.safetensors"))
    message, fix = problem(error)
    assert message == f"an adapter of another model: 1 of another shape, first {LAYER}: adapter 96 x 32, model 48 x 16"
    assert fix.startswith("name the base that it was trained on")
    assert all(torch.equal(value, before[key]) for key, value in smaller.state_dict().items())


def test_the_part_that_fits_is_taken_when_asked(model, tmp_path):
    one = sa3_adapter(model, tmp_path / "a.safetensors", "lora")
    both = {f"{layer}.parametrizations.weight.0.{k}": v.clone() for layer in (LAYER, "model.elsewhere") for k, v in one.items()}
    save_file(both, tmp_path / "b.safetensors", {"lora_config": "{}"})
    adapter = read_adapter(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"1 not in this model, first model\.elsewhere"):
        merge_adapter(model, adapter)
    report = merge_adapter(model, adapter, allow_partial=True)
    assert (report.merged, report.missing) == (1, ("model.elsewhere",))
    assert "left out: 1 not in this model, first model.elsewhere" in str(report)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"lora_B": torch.zeros(96, 4)}, "an adapter that changes nothing: all its updates are zero"),
        ({"lora_B": torch.full((96, 4), math.nan)}, "holds NaN or infinite numbers"),
        ({"lora_B": torch.ones(96, 5)}, f"lora_A (4, 32) and lora_B (96, 5) of {LAYER} differ in rank"),
        ({"surprise": torch.ones(1)}, f"holds {LAYER}.parametrizations.weight.0.surprise, which is no part of an adapter"),
    ],
)
def test_a_broken_adapter_is_refused(model, tmp_path, parts, message):
    sa3_adapter(model, tmp_path / "a.safetensors", "lora", parts=parts)
    with pytest.raises(CheckpointError) as error:
        read_adapter(tmp_path / "a.safetensors")
    assert problem(error)[0] == message


def test_weights_of_a_model_are_no_adapter(tmp_path):
    save_model(tmp_path / "model.safetensors", nn.Linear(2, 2), {})
    with pytest.raises(CheckpointError, match="no adapter: weights of a whole model"):
        read_adapter(tmp_path / "model.safetensors")


# several files


def test_adapters_follow_their_base(model, tmp_path):
    save_model(tmp_path / "base.safetensors", model, {})
    tensors = sa3_adapter(model, tmp_path / "a.safetensors", "lora")
    other = create_model_from_config(configs.text_to_audio())
    reports = [str(report) for report in load_with_adapters(other, [f"{tmp_path}/base.safetensors", f"{tmp_path}/a.safetensors:0.5"])]
    assert len(reports) == 2 and "lora of rank 4 merged into 1 weight at strength 0.5" in reports[1]
    expected = model.model.get_submodule(LAYER).weight + 0.75 * tensors["lora_B"] @ tensors["lora_A"]
    torch.testing.assert_close(other.model.get_submodule(LAYER).weight, expected)


def test_an_adapter_without_its_base_is_told(model, tmp_path):
    sa3_adapter(model, tmp_path / "a.safetensors", "lora")
    with pytest.raises(CheckpointError) as error:
        list(load_with_adapters(model, [f"{tmp_path}/a.safetensors"]))
    assert problem(error) == (
        "an adapter: it changes the weights of a base model, which is not given",
        "name its base first: --pretrained-ckpt-path BASE --pretrained-ckpt-path ADAPTER",
    )
