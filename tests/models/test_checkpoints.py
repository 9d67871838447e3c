"""Weights find their place whatever file they come from, and what does not fit is said, never skipped."""

import json

import pytest
import torch
from torch import nn

from stable_audio_tools.models.atomic_file import MARK
from stable_audio_tools.models.checkpoints import CheckpointError, load_into, load_weights, read_model_config, save_model
from stable_audio_tools.nn.conv import WNConv1d

CONFIG = {"model_type": "autoencoder", "sample_rate": 44100}


class Codec(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.encoder = WNConv1d(2, width, 3)
        self.decoder = nn.Linear(width, 2)


class Diffusion(nn.Module):
    """The attribute names of a latent diffusion model."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(3, 3)
        self.conditioner = nn.Embedding(4, 3)
        self.pretransform = nn.Module()
        self.pretransform.model = Codec()


def prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, rtol=0, atol=0)


def problem(error: pytest.ExceptionInfo) -> tuple[str, str]:
    (found,) = error.value.problems
    return found.message, found.fix


# files of every kind


def test_an_export_round_trips_and_carries_its_config(tmp_path):
    model, copy = Codec(), Codec()
    save_model(tmp_path / "model.safetensors", model, CONFIG, {"train_step": "7"})
    weights = load_weights(tmp_path / "model.safetensors")
    assert (weights.kind, weights.config, weights.metadata["train_step"]) == ("model", CONFIG, "7")
    report = load_into(copy, weights)
    assert report.complete and report.loaded == len(model.state_dict())
    assert str(report) == f"{tmp_path / 'model.safetensors'}: loaded 5 tensors"
    assert_same_weights(model, copy)


def test_shared_strided_and_scalar_tensors_are_written_out(tmp_path):
    table = torch.randn(6, 4)
    state = {"a": table, "tied": table, "row": table[2:4], "turned": table.T, "scalar": torch.tensor(3), "none": torch.empty(0, 2)}
    save_model(tmp_path / "m.safetensors", state, {})
    loaded = load_weights(tmp_path / "m.safetensors").state_dict
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_types_survive(tmp_path, dtype):
    tensor = torch.tensor([0, 1, 3]).to(dtype)
    save_model(tmp_path / "m.safetensors", {"x": tensor}, {})
    loaded = load_weights(tmp_path / "m.safetensors").state_dict["x"]
    assert loaded.dtype == dtype and torch.equal(loaded, tensor)


def test_a_type_without_a_place_in_the_format_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"safetensors has no type for x \(torch.complex128\)"):
        save_model(tmp_path / "m.safetensors", {"x": torch.zeros(1, dtype=torch.complex128)}, {})
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_earlier_file(tmp_path):
    save_model(tmp_path / "m.safetensors", {"x": torch.ones(1)}, {})
    with pytest.raises(ValueError):
        save_model(tmp_path / "m.safetensors", {"x": torch.zeros(1, dtype=torch.complex128)}, {})
    assert load_weights(tmp_path / "m.safetensors").state_dict["x"].item() == 1
    assert not list(tmp_path.glob(f"*{MARK}*"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_plain_state_dicts_load_with_or_without_the_peers_wrapping(tmp_path, wrapped):
    model, copy = Diffusion(), Diffusion()
    torch.save({"state_dict": model.state_dict()} if wrapped else model.state_dict(), tmp_path / "m.ckpt")
    weights = load_weights(tmp_path / "m.ckpt")
    assert weights.kind == "model"
    load_into(copy, weights)
    assert_same_weights(model, copy)


def training_checkpoint(online: Diffusion, average: nn.Module, conditioner_average: nn.Module | None = None) -> dict:
    state = prefixed("diffusion.", online) | prefixed("diffusion_ema.ema_model.", average)
    state |= {"diffusion_ema.initted": torch.tensor(True), "diffusion_ema.step": torch.tensor(3), "strategy.head.weight": torch.ones(2)}
    if conditioner_average is not None:
        state |= prefixed("conditioner_ema.ema_model.", conditioner_average)
    return {"state_dict": state, "pytorch-lightning_version": "2.6.6", "optimizer_states": [], "model_config": CONFIG}


@pytest.mark.parametrize("average", [None, True, False])
def test_a_diffusion_training_checkpoint_gives_averaged_or_online_weights(tmp_path, average):
    online, mean, mean_conditioner, copy = Diffusion(), nn.Linear(3, 3), nn.Embedding(4, 3), Diffusion()
    torch.save(training_checkpoint(online, mean, mean_conditioner), tmp_path / "step.ckpt")
    weights = load_weights(tmp_path / "step.ckpt", average=average)
    assert (weights.kind, weights.averaged, weights.config) == ("training", average is not False, CONFIG)
    report = load_into(copy, weights)
    assert ("averaged weights" in str(report)) == weights.averaged
    assert_same_weights(online.model if average is False else mean, copy.model)
    assert_same_weights(online.conditioner if average is False else mean_conditioner, copy.conditioner)
    assert_same_weights(online.pretransform, copy.pretransform)


@pytest.mark.parametrize("host", ["autoencoder", "diffae", "model"])
def test_averages_of_whole_models(tmp_path, host):
    online, mean, copy = Codec(), Codec(), Codec()
    state = prefixed(f"{host}.", online) | prefixed(f"{host}_ema.ema_model.", mean)
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.1.0"}, tmp_path / "step.ckpt")
    load_into(copy, load_weights(tmp_path / "step.ckpt"))
    assert_same_weights(mean, copy)
    load_into(copy, load_weights(tmp_path / "step.ckpt", average=False))
    assert_same_weights(online, copy)


def test_averages_asked_for_must_be_there(tmp_path):
    torch.save({"state_dict": prefixed("autoencoder.", Codec()), "pytorch-lightning_version": "2"}, tmp_path / "step.ckpt")
    assert not load_weights(tmp_path / "step.ckpt").averaged
    with pytest.raises(CheckpointError) as error:
        load_weights(tmp_path / "step.ckpt", average=True)
    assert problem(error) == ("holds no averaged (EMA) weights", "ask for the online weights")


def test_an_adapter_is_recognised_and_not_taken_for_a_model(tmp_path):
    save_model(tmp_path / "adapter.safetensors", {"model.lora_A.weight": torch.ones(2, 3)}, {})
    weights = load_weights(tmp_path / "adapter.safetensors")
    assert weights.kind == "adapter"
    with pytest.raises(CheckpointError) as error:
        load_into(Diffusion(), weights)
    fix = "name its base here; the adapter is a second --pretrained-ckpt-path of train, and --adapter of generate"
    assert problem(error) == ("an adapter: it changes a model's weights and is none itself", fix)


def test_other_spellings_of_the_same_parameter_are_one(tmp_path):
    model, copy = Codec(), Codec()
    plain = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 3))
    plain.load_state_dict(
        {
            "bias": model.encoder.bias,
            "parametrizations.weight.original0": model.encoder.weight_g,
            "parametrizations.weight.original1": model.encoder.weight_v,
        }
    )
    state = prefixed("module._orig_mod.encoder.", plain) | prefixed("module._orig_mod.decoder.", model.decoder)
    torch.save(state, tmp_path / "m.pt")
    assert load_into(copy, load_weights(tmp_path / "m.pt")).complete
    assert_same_weights(model, copy)


# the fit


@pytest.mark.parametrize("file_folded", [True, False])
def test_folded_and_weight_normalised_layers_load_each_other(tmp_path, file_folded):
    source, target, x = Codec(), Codec(), torch.randn(1, 2, 8)
    with torch.no_grad():
        source.encoder.weight_g.mul_(1.7)
    expected = source.encoder(x)
    (source if file_folded else target).encoder.remove_weight_norm()
    save_model(tmp_path / "m.safetensors", source, {})
    assert load_into(target, load_weights(tmp_path / "m.safetensors")).complete
    torch.testing.assert_close(target.encoder(x), expected)


def test_a_whole_model_serves_where_its_pretransform_is_wanted(tmp_path):
    whole, codec = Diffusion(), Codec()
    save_model(tmp_path / "whole.safetensors", whole, {})
    assert load_into(codec, load_weights(tmp_path / "whole.safetensors")).complete
    assert_same_weights(whole.pretransform.model, codec)


@pytest.mark.parametrize("source", ["codec", "whole"])
def test_a_part_of_the_model_can_be_loaded(tmp_path, source):
    whole, target = Diffusion(), Diffusion()
    save_model(tmp_path / "m.safetensors", whole if source == "whole" else whole.pretransform.model, {})
    untouched = target.model.weight.clone()
    load_into(target, load_weights(tmp_path / "m.safetensors"), prefix="pretransform.model.")
    assert_same_weights(whole.pretransform, target.pretransform)
    assert torch.equal(target.model.weight, untouched)


def test_a_pretransforms_weights_are_pointed_at_the_flag_that_takes_them(tmp_path):
    save_model(tmp_path / "vae.safetensors", Codec(), {})
    with pytest.raises(CheckpointError) as error:
        load_into(Diffusion(), load_weights(tmp_path / "vae.safetensors"))
    assert problem(error)[1] == "these are the weights of its pretransform alone: --pretransform-ckpt-path loads them"


def misfit(tmp_path) -> tuple[nn.Module, nn.Module]:
    """A file saved from the first model, misfitting the second in each way."""
    source, target = Codec(), Codec(width=5)
    source.extra = nn.Linear(1, 1)
    source.register_buffer("steps", torch.tensor([3, 4]))
    target.register_buffer("steps", torch.zeros(2))
    target.more = nn.Linear(2, 2)
    save_model(tmp_path / "m.safetensors", source, {})
    return source, target


def test_a_misfit_is_reported_in_full_and_changes_nothing(tmp_path):
    _, target = misfit(tmp_path)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_into(target, load_weights(tmp_path / "m.safetensors"))
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'm.safetensors'}: does not fit this model: 2 missing, 2 unexpected, 5 of another shape",
        "  missing     more.weight (+1)",
        "  unexpected  extra.bias (+1)",
        "  shape       steps: file int64, model float32 (+4)",
        "  = Fine-tuning a changed architecture on purpose? --allow-partial loads what fits: 1 tensor",
    ]
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_allow_partial_loads_what_fits_and_reports_the_rest(tmp_path):
    source, target = misfit(tmp_path)
    report = load_into(target, load_weights(tmp_path / "m.safetensors"), allow_partial=True)
    assert torch.equal(target.decoder.bias, source.decoder.bias)
    assert (report.loaded, len(report.missing), len(report.unexpected), len(report.mismatched)) == (1, 2, 2, 5)
    assert "decoder.weight: file (2, 4), model (2, 5)" in report.mismatched
    assert "loaded 1 tensor; 2 missing, 2 unexpected, 5 of another shape" in str(report)


def test_weights_of_another_model_are_refused_even_in_part(tmp_path):
    save_model(tmp_path / "m.safetensors", {"other.weight": torch.ones(2)}, {})
    with pytest.raises(CheckpointError) as error:
        load_into(Codec(), load_weights(tmp_path / "m.safetensors"), allow_partial=True)
    assert problem(error)[1] == "not one tensor fits: build the model from the config that these weights were trained with"


def test_nan_weights_are_refused(tmp_path):
    model = Codec()
    with torch.no_grad():
        model.decoder.weight[1, 2] = torch.nan
    save_model(tmp_path / "m.safetensors", model, {})
    with pytest.raises(CheckpointError) as error:
        load_into(Codec(), load_weights(tmp_path / "m.safetensors"), allow_partial=True)
    message, fix = problem(error)
    assert message == "1 of 5 tensors hold NaN, first decoder.weight"
    assert fix == "the training that wrote it had diverged: use an earlier checkpoint"


def test_precision_may_differ_and_one_number_is_one_number(tmp_path):
    model, copy = Codec(), Codec()
    model.register_buffer("initted", torch.ones(1))
    copy.register_buffer("initted", torch.tensor(0.0))
    save_model(tmp_path / "m.safetensors", {key: value.half() for key, value in model.state_dict().items()}, {})
    assert load_into(copy, load_weights(tmp_path / "m.safetensors")).complete
    assert copy.initted == 1 and copy.decoder.weight.dtype == torch.float32


# configs


def test_the_config_is_read_from_the_file_or_from_beside_it(tmp_path):
    save_model(tmp_path / "a.safetensors", Codec(), CONFIG)
    torch.save(training_checkpoint(Diffusion(), nn.Linear(3, 3)), tmp_path / "b.ckpt")
    torch.save(Codec().state_dict(), tmp_path / "c.ckpt")
    assert read_model_config(tmp_path / "a.safetensors") == CONFIG
    assert read_model_config(tmp_path / "b.ckpt") == CONFIG
    with pytest.raises(CheckpointError) as error:
        read_model_config(tmp_path / "c.ckpt")
    assert problem(error) == ("carries no model config", "put its config beside it as model_config.json")
    torch.save({"state_dict": {}, "model_config": "{"}, tmp_path / "d.ckpt")
    with pytest.raises(CheckpointError, match="its model config is no JSON"):
        read_model_config(tmp_path / "d.ckpt")
    (tmp_path / "model_config.json").write_text(json.dumps({"model_type": "lm"}))
    assert read_model_config(tmp_path / "c.ckpt") == {"model_type": "lm"}
