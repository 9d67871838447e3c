"""Model configs: what is accepted, and for everything that is not, the place, both numbers and the fix."""

import json
from copy import deepcopy

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.published import PUBLISHED
from stable_audio_tools.models.autoencoders import DECODERS as DECODERS_OF_LATENTS
from stable_audio_tools.models.autoencoders import ENCODERS
from stable_audio_tools.models.bottlenecks import BOTTLENECKS
from stable_audio_tools.models.conditioners import CONDITIONERS
from stable_audio_tools.models.config import AutoencoderModel, DiffusionCondInpaintModel, DiffusionCondModel
from stable_audio_tools.models.denoisers import DENOISERS, DIFFAE_DENOISERS, UNCOND_DENOISERS
from stable_audio_tools.models.factory import (
    create_bottleneck_from_config,
    create_model_from_config,
    create_model_from_config_path,
    create_pretransform_from_config,
    load_model_config,
    parse_model_config,
)
from stable_audio_tools.models.pretransforms import PRETRANSFORMS

BYTES = {"id": "prompt", "type": "bytes", "config": {"output_dim": 24}}
SECONDS = {"id": "seconds", "type": "number", "config": {"max_val": 10.0}}


def document():
    """Every route, a pretransform, patches; widths: seconds 16, prompt 24."""
    return {
        "model_type": "diffusion_cond",
        "sample_rate": 8000,
        "sample_size": 1024,
        "audio_channels": 1,
        "model": {
            "io_channels": 16,
            "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 16}},
            "conditioning": {"cond_dim": 16, "configs": [deepcopy(BYTES), deepcopy(SECONDS)]},
            "diffusion": {
                "type": "dit",
                "cross_attention_cond_ids": ["seconds"],
                "global_cond_ids": ["prompt", "seconds"],
                "input_concat_ids": ["prompt", "inpaint_mask", "inpaint_masked_input"],
                "prepend_cond_ids": ["seconds"],
                "config": {
                    "io_channels": 16,
                    "patch_size": 2,
                    "embed_dim": 32,
                    "depth": 1,
                    "num_heads": 2,
                    "cond_token_dim": 16,
                    "global_cond_dim": 40,
                    "input_concat_dim": 41,
                    "prepend_cond_dim": 16,
                },
            },
        },
    }


def autoencoder():
    half = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
    return {
        "model_type": "autoencoder",
        "sample_rate": 8000,
        "sample_size": 1024,
        "model": {
            "encoder": {"type": "oobleck", "config": {**half, "in_channels": 2, "latent_dim": 8}},
            "decoder": {"type": "oobleck", "config": {**half, "out_channels": 2, "latent_dim": 4}},
            "bottleneck": {"type": "vae"},
            "latent_dim": 4,
            "downsampling_ratio": 8,
            "io_channels": 2,
        },
    }


def changed(path, value, base=document):
    """The document with one key set, or removed for None."""
    root = base()
    *folders, key = path.split(".")
    place = root
    for folder in folders:
        place = place[int(folder)] if folder.isdigit() else place[folder]
    if value is None:
        del place[key]
    else:
        place[key] = value
    return root


def refused(data):
    with pytest.raises(ConfigError) as error:
        parse_model_config(data)
    return str(error.value)


DIT = "model.diffusion.config"
PROBLEMS = [
    ("model_type", None, ["model_type must be specified in model config"]),
    ("model_type", "difusion_cond", ["Unknown model type: difusion_cond", 'did you mean "diffusion_cond"?']),
    ("sample_size", 1000, ["sample_size 1000 is no multiple of 32", "ratio 16 x patch_size 2", "nearest: 992 or 1024"]),
    ("sample_size", 3, ["nearest: 32"]),
    ("audio_channels", 2, ["audio_channels is 2, but the model has the pretransform's io_channels 1", "set audio_channels to 1"]),
    ("sample_rate", 0, ["sample_rate", "above 0"]),
    (f"{DIT}.io_channels", 8, ["diffusion.config.io_channels is 8, but the model's io_channels is 16", "make them equal"]),
    ("model.io_channels", 8, ["io_channels is 8, but the pretransform gives 16 latent channels", "set io_channels and"]),
    (f"{DIT}.cond_token_dim", 24, ["cond_token_dim is 24, but the conditions of cross_attention_cond_ids have width seconds 16", "to 16"]),
    (f"{DIT}.global_cond_dim", 16, ["global_cond_dim is 16, but", "prompt 24, seconds 16: 40 together", "set global_cond_dim to 40"]),
    (f"{DIT}.input_concat_dim", 9, ["prompt 24, inpaint_mask 1, inpaint_masked_input 16: 41 together", "set input_concat_dim to 41"]),
    (f"{DIT}.prepend_cond_dim", 0, ["prepend_cond_dim is 0, but the conditions of prepend_cond_ids have width seconds 16"]),
    (
        "model.diffusion.prepend_cond_ids",
        [],
        ["prepend_cond_dim is 16, but prepend_cond_ids names no condition", "remove prepend_cond_dim"],
    ),
    ("model.diffusion.cross_attention_cond_ids", ["prompt", "seconds"], ["have width prompt 24, seconds 16", "one width by output_dim"]),
    ("model.diffusion.global_cond_ids", ["promt", "seconds"], ["global_cond_ids[0]", 'no conditioner "promt"', 'did you mean "prompt"?']),
    ("model.diffusion.global_cond_ids", ["prompt", "prompt"], ["global_cond_ids[1]", '"prompt" is listed twice', "keep one"]),
    ("model.diffusion.prepend_cond_ids", ["inpaint_mask"], ['"inpaint_mask" can only go by input_concat_ids', "move it there"]),
    ("model.conditioning", None, ['there is no conditioner "prompt"', "add a conditioner of that id"]),
    ("model.diffusion.diffusion_objective", "flow", ["diffusion_objective", '"v", "rectified_flow", "rf_denoiser"']),
    ("model.diffusion.prediction", "eps", ["prediction", '"velocity", "x0"']),
    ("model.diffusion.type", "ditt", ['unknown denoiser "ditt"', 'did you mean "dit"?']),
    ("model.diffusion.distribution_shift_options", {"type": "constant"}, ["distribution_shift_options", 'missing key "shift"']),
    (f"{DIT}.embed_dm", 64, ['unknown key "embed_dm"', 'did you mean "embed_dim"?']),
    (f"{DIT}.num_heads", 5, ["embed_dim 32 is no multiple of num_heads 5", "nearest: 30 or 35"]),
    (f"{DIT}.project_global_cond", False, ["global_cond_dim 40 must equal embed_dim 32", 'set "project_global_cond": true']),
    (f"{DIT}.timestep_embed_dim", 4, ["timestep_embed_dim", "no effect with timestep_cond_type global"]),
    (f"{DIT}.timestep_cond_type", "input_concat", ["timestep_cond_type input_concat needs timestep_embed_dim"]),
    (f"{DIT}.abs_pos_emb_max_length", 64, ["no effect without use_abs_pos_emb"]),
    (f"{DIT}.add_rope", True, ["no effect while rotary_pos_emb is true"]),
    (f"{DIT}.final_cross_attn_ix", 1, ["final_cross_attn_ix 1 is none of the 1 blocks (depth)"]),
    (f"{DIT}.sliding_window", [4, -2], ["expected two numbers from -1 up, got [4, -2]"]),
    (f"{DIT}.sliding_window", [4], ["sliding_window", "2"]),
    (f"{DIT}.attn_kwargs", {"qk_norm": "rms"}, ["attn_kwargs.qk_norm", '"none", "l2", "ln", "dyt"']),
    (f"{DIT}.ff_kwargs", {"use_conv": True, "conv_kernel_size": 4}, ["conv_kernel_size must be odd, got 4"]),
    (f"{DIT}.ff_kwargs", {"conv_kernel_size": 5}, ["conv_kernel_size has no effect without use_conv"]),
    (f"{DIT}.transformer_type", "x-transformers", ["transformer_type", '"continuous_transformer"']),
    (f"{DIT}.num_heads", "2", ["num_heads", "a whole number"]),
]


@pytest.mark.parametrize(("path", "value", "said"), PROBLEMS, ids=[f"{path}={value}" for path, value, _ in PROBLEMS])
def test_a_bad_key_is_refused_with_place_numbers_and_fix(path, value, said):
    text = refused(changed(path, value))
    assert [part for part in said if part not in text] == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"project_cond_tokens": False, "cond_token_dim": 24, "embed_dim": 32}, "cond_token_dim 24 must hold whole heads of 16 channels"),
        ({"use_sinusoidal_emb": True, "use_abs_pos_emb": True}, "exclude each other"),
        ({"remove_norms": True, "norm_kwargs": {"bias": True}}, "remove_norms leaves no layer norm"),
    ],
)
def test_keys_of_a_dit_that_contradict_each_other(config, said):
    data = document()
    data["model"]["diffusion"]["config"] |= config
    assert said in refused(data)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mask_condition_padding": True}, "no effect without cond_token_dim or prepend_cond_dim"),
        ({"timestep_cond_type": "input_concat", "timestep_embed_dim": 4, "global_cond_type": "adaLN"}, "adaLN has nothing to act on"),
    ],
)
def test_settings_of_a_dit_without_conditions_that_could_not_act(config, said):
    data = document()
    del data["model"]["conditioning"]
    data["model"]["diffusion"] = {"type": "dit", "config": {"io_channels": 16, "patch_size": 2, **config}}
    assert said in refused(data)


def test_all_problems_are_said_at_once():
    data = changed("model.diffusion.global_cond_ids", ["promt"])
    data["model"]["diffusion"]["config"] |= {"io_channels": 8, "cond_token_dim": 8}
    text = refused(data)
    assert text.startswith("model config: 3 problems")
    for said in ('no conditioner "promt"', "io_channels is 8", "cond_token_dim is 8"):
        assert said in text


def test_inpainting_models_take_the_inpainting_inputs():
    data = changed("model_type", "diffusion_cond_inpaint")
    assert isinstance(parse_model_config(data), DiffusionCondInpaintModel)
    data["model"]["diffusion"]["input_concat_ids"] = ["prompt", "inpaint_mask"]
    data["model"]["diffusion"]["config"]["input_concat_dim"] = 25
    text = refused(data)
    assert "takes inpaint_masked_input as input" in text and "add inpaint_masked_input" in text


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("sample_size", 7, "sample_size 7 is shorter than the model can take, 8"),
        ("audio_channels", 1, "audio_channels is 1, but the model has in_channels 2 and out_channels 2"),
        ("model.io_channels", 1, "in_channels"),
    ],
)
def test_autoencoders_too(path, value, said):
    assert said in refused(changed(path, value, autoencoder))


def test_a_good_config_is_built_and_kept_as_it_is():
    data = {"$schema": "model.schema.json", **document(), "training": {"anything": ["goes", {"here": 1}]}}
    before = deepcopy(data)
    config = parse_model_config(data)
    assert isinstance(config, DiffusionCondModel)
    assert parse_model_config(config) is config and data == before
    assert config.training == data["training"]
    model = create_model_from_config(config)
    assert model.sample_rate == 8000 and model.min_input_length == 32
    assert isinstance(parse_model_config(autoencoder()), AutoencoderModel)


ADP = {"in_channels": 2, "channels": 8, "multipliers": [1, 2], "factors": [2], "num_blocks": [1], "attentions": [0, 0], "resnet_groups": 4}
DAU = {"io_channels": 2, "depth": 2, "n_attn_layers": 1, "channels": [32, 32], "strides": [2]}
TINY_DIT = {"embed_dim": 32, "depth": 1, "num_heads": 1}
UNCONDITIONAL = {"adp_uncond_1d": ADP, "DAU1d": DAU, "dit": {"in_channels": 2, **TINY_DIT}}
DECODERS = {
    "adp_1d": {**ADP, "context_channels": [4]},
    "DAU1d": {**DAU, "cond_dim": 4},
    "dit": {"io_channels": 2, "input_concat_dim": 4, **TINY_DIT},
}
CONDITIONAL = {
    "adp_1d": ADP,
    "adp_cfg_1d": {**ADP, "context_embedding_features": 8, "context_embedding_max_length": 4},
    "dit": {"io_channels": 2, **TINY_DIT},
}


def unconditional(network):
    model = {"type": network, "config": deepcopy(UNCONDITIONAL[network])}
    return {"model_type": "diffusion_uncond", "sample_rate": 8000, "sample_size": 1024, "model": model}


def diffusion_autoencoder(network):
    root = autoencoder()
    del root["model"]["decoder"]
    root["model"]["diffusion"] = {"type": network, "config": deepcopy(DECODERS[network])}
    return {**root, "model_type": "diffusion_autoencoder"}


def conditional(network):
    """Without conditioners; what guidance needs is there, and idle."""
    model = {"io_channels": 2, "diffusion": {"type": network, "config": deepcopy(CONDITIONAL[network])}}
    if network == "adp_cfg_1d":
        model["conditioning"] = {"cond_dim": 8, "configs": [deepcopy(SECONDS)]}
        model["diffusion"]["cross_attention_cond_ids"] = ["seconds"]
    return {"model_type": "diffusion_cond", "sample_rate": 8000, "sample_size": 1024, "model": model}


def language_model():
    quantised = autoencoder()["model"] | {"bottleneck": {"type": "rvq", "config": {"dim": 4, "num_quantizers": 2, "codebook_size": 16}}}
    quantised["encoder"]["config"]["latent_dim"] = 4
    return {
        "model_type": "lm",
        "sample_rate": 8000,
        "sample_size": 1024,
        "model": {
            "pretransform": {"type": "autoencoder", "config": quantised},
            "lm": {"type": "continuous_transformer", "codebook_pattern": "delay", "config": {"embed_dim": 32, "depth": 1, "num_heads": 1}},
        },
    }


DOCUMENTS = {
    "autoencoder": autoencoder(),
    "diffusion_cond": document(),
    "diffusion_cond_inpaint": changed("model_type", "diffusion_cond_inpaint"),
    "lm": language_model(),
    **{f"diffusion_uncond {network}": unconditional(network) for network in UNCONDITIONAL},
    **{f"diffusion_autoencoder {network}": diffusion_autoencoder(network) for network in DECODERS},
    **{f"diffusion_cond {network}": conditional(network) for network in CONDITIONAL},
}


def test_every_model_type_and_every_network_has_a_document_here():
    types = {data["model_type"] for data in DOCUMENTS.values()}
    assert types == PUBLISHED["model type"]
    for family, known in ((UNCOND_DENOISERS, UNCONDITIONAL), (DIFFAE_DENOISERS, DECODERS), (DENOISERS, CONDITIONAL)):
        assert set(family.names) == set(known)


@pytest.mark.parametrize("data", DOCUMENTS.values(), ids=DOCUMENTS.keys())
@pytest.mark.slow
def test_a_document_is_a_model_on_any_device_and_the_model_s_config_is_the_document(data):
    before = deepcopy(data)
    config = parse_model_config(data)
    assert config.model_dump(mode="json", exclude_unset=True) == data == before
    with torch.device("meta"):
        empty = create_model_from_config(data)
    assert all(parameter.is_meta for parameter in empty.parameters())
    first, second = create_model_from_config(data), config.build()
    second.load_state_dict(first.state_dict())
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (empty, first, second)]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(
    "family", [ENCODERS, DECODERS_OF_LATENTS, BOTTLENECKS, PRETRANSFORMS, CONDITIONERS, DENOISERS, UNCOND_DENOISERS, DIFFAE_DENOISERS]
)
def test_every_component_that_published_configs_name_is_there(family):
    assert PUBLISHED[family.what] <= set(family.names)


@pytest.mark.parametrize("network", ["dit", "adp_1d"])
def test_a_conditional_model_without_conditioning_works(network):
    model = create_model_from_config(conditional(network)).eval()
    x, t = torch.randn(2, 2, 64), torch.tensor([0.2, 0.8])
    assert model(x, t, model.conditioner([{}, {}], "cpu")).shape == x.shape
    assert model.state_dict().keys() == {key for key in model.state_dict() if key.startswith("model.")}


def test_files(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(document()))
    assert load_model_config(path) == document()
    assert create_model_from_config_path(path).io_channels == 16
    path.write_text(json.dumps(changed("model.io_channels", 8), indent=1))
    for read in (load_model_config, create_model_from_config_path):
        with pytest.raises(ConfigError, match=r"model\.json:\d+:\d+"):
            read(path)
        with pytest.raises(ConfigError, match="no such file"):
            read(tmp_path / "none.json")


def test_parts_are_built_from_their_sections():
    pretransform = create_pretransform_from_config(document()["model"]["pretransform"], 8000)
    assert pretransform.encode(torch.zeros(1, 1, 64)).shape == (1, 16, 4)
    assert create_bottleneck_from_config({"type": "vae"}).encode(torch.randn(1, 4, 3)).shape == (1, 2, 3)
    with pytest.raises(ConfigError, match=r"pretransform: type\n  unknown pretransform"):
        create_pretransform_from_config({"type": "pached"}, 8000)
    with pytest.raises(ConfigError, match=r"bottleneck: type\n  unknown bottleneck"):
        create_bottleneck_from_config({"type": "va"})
