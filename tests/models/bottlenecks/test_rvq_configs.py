"""What configs of quantizers may say, and what they are told."""

import pytest
import torch
from pydantic import TypeAdapter

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.bottlenecks import BottleneckConfig
from stable_audio_tools.models.bottlenecks.rvq import UNSUPPORTED


class Holder(StrictModel):
    bottleneck: BottleneckConfig


def parsed(kind, **config):
    return TypeAdapter(BottleneckConfig).validate_python({"type": kind, "config": config})


def problems(kind, **config):
    with pytest.raises(ConfigError) as caught:
        validate(Holder, {"bottleneck": {"type": kind, "config": config}}, "model.json")
    return caught.value.problems


DAC = {"n_codebooks": 2, "codebook_size": 8}


@pytest.mark.parametrize(
    ("kind", "config", "path", "message", "fix"),
    [
        ("rvq", {"heads": 2}, ("heads",), "heads is not supported but as 1", "use more quantizers"),
        ("rvq", {"freeze_codebook": True}, ("freeze_codebook",), "freeze_codebook is not supported", "requires_grad to false"),
        ("rvq_vae", {"affine_param": True}, ("affine_param",), "affine_param is not supported but as False", "use codebook_dim"),
        ("rvq", {"learnable_codebook": True}, ("ema_update",), "entries follow the gradient, but ema_update", "set ema_update to false"),
        (
            "rvq",
            {"num_quantizers": 4, "quantize_dropout_cutoff_index": 4},
            ("quantize_dropout_cutoff_index",),
            "quantize_dropout_cutoff_index 4 with 4 quantizers",
            "choose 0..3",
        ),
        ("dac_rvq", {**DAC, "codebook_dim": [8, 8, 8]}, ("codebook_dim",), "3 entries for 2 codebooks", "give 2, or one number"),
        ("dithered_fsq", {"dim": 3, "levels": [5, 5]}, ("levels",), "levels has 2 entries, but dim is 3", "give 3 numbers, or one for all"),
    ],
)
def test_settings_that_cannot_be(kind, config, path, message, fix):
    (problem,) = problems(kind, **config)
    assert problem.path == ("bottleneck", "config", *path)
    assert message in problem.message and fix in problem.fix


@pytest.mark.parametrize(
    ("kind", "config", "path"),
    [
        ("dac_rvq", {"n_codebooks": 2}, "codebook_size"),
        ("dac_rvq_vae", {**DAC, "noise_augment_dim": 2}, "noise_augment_dim"),
        ("dac_rvq", {**DAC, "quantizer_dropout": 1.5}, "quantizer_dropout"),
        ("fsq", {}, "levels"),
        ("fsq", {"levels": [5, 1]}, "levels"),
        ("fsq", {"levels": [5], "channel_first": True}, "channel_first"),
        ("rvq", {"num_quantisers": 2}, "num_quantisers"),
        ("rvq", {"kmeans_iters": 0}, "kmeans_iters"),
    ],
)
def test_wrong_values_are_named(kind, config, path):
    assert any(path in problem.path for problem in problems(kind, **config))


def test_all_unsupported_settings_are_named_at_once_and_harmless_ones_are_accepted():
    others = {key: not value if isinstance(value, bool) else 7 for key, (value, _) in UNSUPPORTED.items()}
    assert len(problems("rvq", **others)) == len(UNSUPPORTED)
    assert parsed("rvq", **{key: value for key, (value, _) in UNSUPPORTED.items()}).config == parsed("rvq").config


def test_defaults_are_the_published_ones():
    params = parsed("rvq").config
    assert (params.dim, params.codebook_size, params.num_quantizers, params.decay) == (128, 1024, 8, 0.99)
    assert (params.kmeans_init, params.kmeans_iters, params.threshold_ema_dead_code, params.commitment_weight) == (True, 50, 2, 1.0)
    dac = parsed("dac_rvq", **DAC).config
    assert (dac.input_dim, dac.codebook_dims, dac.quantizer_dropout) == (512, (8, 8), 0.0)


def test_a_shared_codebook_is_one():
    module = parsed("rvq", dim=4, codebook_size=8, num_quantizers=3, shared_codebook=True).build()
    assert {len(list(module.buffers())), len(module.state_dict())} == {4, 12}


def test_kmeans_start_makes_the_first_batch_well_quantised():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 300)
    errors = {}
    for kmeans in (True, False):
        module = parsed("rvq", dim=4, codebook_size=32, num_quantizers=2, kmeans_init=kmeans, threshold_ema_dead_code=0).build().train()
        module.encode(x)
        errors[kmeans] = (module.eval().encode(x) - x).square().mean()
    assert errors[True] < 0.3 * errors[False]
