import pytest
import torch
from lm_models import METADATA, ROUTES, built, conditions, lm_config, routed, tokens

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config, parse_model_config


def problems(config):
    with pytest.raises(ConfigError) as caught:
        parse_model_config(config)
    return {entry["path"]: entry for entry in caught.value.to_dict()["problems"]}


def only_problem(config):
    found = problems(config)
    assert len(found) == 1, found
    return next(iter(found.items()))


def without_conditioning(config):
    del config["model"]["conditioning"]
    return config


@pytest.mark.parametrize("route", ROUTES)
def test_a_config_builds_on_the_meta_device(route):
    with torch.device("meta"):
        model = create_model_from_config(routed(route))
    assert next(model.lm.parameters()).is_meta
    assert (model.num_quantizers, model.codebook_size, model.min_input_length) == (3, 16, 8)


def test_routes_that_are_closed_leave_no_weights():
    """The layout of a model without a global condition is the peer's, which has none."""
    with torch.device("meta"):
        keys = {route: create_model_from_config(routed(route)).lm.state_dict().keys() for route in ROUTES}
    assert keys["global"] - keys["none"] and not any("global_cond" in key or "scale_shift" in key for key in keys["none"])
    assert {key.split(".")[1] for key in keys["prepend"] - keys["none"]} == {"to_prepend_embed"}
    assert all("cross_att" in key for key in keys["cross"] - keys["none"])


def test_the_default_pattern_is_delay():
    assert parse_model_config(lm_config()).model.lm.codebook_pattern == "delay"


def test_a_continuous_pretransform_is_refused():
    config = lm_config()
    config["model"]["pretransform"]["config"]["bottleneck"] = {"type": "tanh"}
    path, problem = only_problem(config)
    assert path == "model.pretransform"
    assert "continuous" in problem["message"] and "dac_rvq" in problem["fix"]


def test_a_pretransform_to_train_is_refused():
    config = lm_config()
    config["model"]["pretransform"]["enable_grad"] = True
    path, problem = only_problem(config)
    assert path == "model.pretransform.enable_grad"
    assert problem["fix"] == "remove it"


def test_an_unknown_pattern_is_refused():
    path, problem = only_problem(lm_config({"codebook_pattern": "delayed"}))
    assert path == "model.lm.codebook_pattern"
    assert "delay" in problem["fix"] + problem["message"]


@pytest.mark.parametrize(
    ("pattern", "options", "key"),
    [
        ("delay", {"delays": [0, 1]}, "delays"),
        ("musiclm", {"delays": [0, 1, 2]}, "delays"),
        ("unroll", {"flattening": [1, 0, 2]}, "flattening"),
        ("delay", {"empty_initial": -1}, "empty_initial"),
        ("delay", {"steps": 1}, "steps"),
    ],
)
def test_pattern_options_that_do_not_fit_are_refused(pattern, options, key):
    path, _ = only_problem(lm_config({"codebook_pattern": pattern, "codebook_pattern_options": options}))
    assert path == f"model.lm.codebook_pattern_options.{key}"


@pytest.mark.parametrize(
    ("lm", "config", "path", "text", "fix"),
    [
        ({"cross_attention_cond_ids": ["promt"]}, {"cross_attn_cond_dim": 16}, "cross_attention_cond_ids[0]", "no conditioner", "prompt"),
        ({"prepend_cond_ids": ["pitch", "pitch"]}, {"prepend_cond_dim": 16}, "prepend_cond_ids[1]", "listed twice", "keep one"),
        ({"prepend_cond_ids": ["pitch"]}, {}, "config.prepend_cond_dim", "0, but the conditions", "set prepend_cond_dim to 16"),
        ({"cross_attention_cond_ids": ["pitch"]}, {"cross_attn_cond_dim": 32}, "config.cross_attn_cond_dim", "is 32", "to 16"),
        ({}, {"cross_attn_cond_dim": 16}, "config.cross_attn_cond_dim", "names no condition", "name conditions"),
        ({}, {"global_cond_dim": 16}, "config.global_cond_dim", "names no condition", "name conditions"),
        (
            {"global_cond_ids": ["pitch", "seconds"]},
            {"global_cond_dim": 16},
            "config.global_cond_dim",
            "32 together",
            "set global_cond_dim to 32",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(lm, config, path, text, fix):
    found, problem = only_problem(lm_config(lm, **config))
    assert found == f"model.lm.{path}"
    assert text in problem["message"] and fix in problem["fix"]


def test_ids_without_conditioners_are_refused():
    path, problem = only_problem(without_conditioning(lm_config({"prepend_cond_ids": ["prompt"]})))
    assert path == "model.lm.prepend_cond_ids[0]"
    assert "conditioning.configs" in problem["fix"]


def test_a_signal_cannot_go_as_tokens():
    config = routed("prepend")
    signal = {"use_model_pretransform": True, "sample_rate": 8000, "output_dim": 16}
    config["model"]["conditioning"]["configs"][0] = {"id": "prompt", "type": "pretransform", "config": signal}
    assert "model.lm.prepend_cond_ids[0]" in problems(config)


@pytest.mark.parametrize(
    ("config", "path", "fix"),
    [
        ({"conformer": True}, "conformer", "remove it"),
        ({"ff_kwargs": {"use_conv": True}}, "ff_kwargs.use_conv", "remove it"),
        ({"attn_kwargs": {"feat_scale": True}}, "attn_kwargs.feat_scale", "remove it"),
        ({"embed_dim": 40}, "embed_dim", "change embed_dim or dim_heads"),
        ({"num_heads": 2}, "num_heads", "keep one"),
        ({"final_cross_attn_ix": 0}, "final_cross_attn_ix", "remove it"),
        ({"project_cross_attn_cond": True}, "project_cross_attn_cond", "remove it"),
        ({"mask_condition_padding": True}, "mask_condition_padding", "remove it"),
        ({"use_sinusoidal_emb": True, "use_abs_pos_emb": True}, "use_abs_pos_emb", "keep one"),
        ({"abs_pos_emb_max_length": 9}, "abs_pos_emb_max_length", "set it true, or remove the length"),
        ({"add_rope": True}, "add_rope", 'set "rotary_pos_emb": false, or remove it'),
        ({"remove_norms": True, "norm_kwargs": {"eps": 0.1}}, "norm_kwargs", "remove one of the two"),
        ({"sliding_window": [-2, 0]}, "sliding_window", "-1 means: all on that side"),
        ({"embed_dim": 15, "dim_heads": 5, "use_sinusoidal_emb": True}, "use_sinusoidal_emb", "change embed_dim, or remove it"),
    ],
)
def test_transformer_settings_that_do_not_fit_are_refused(config, path, fix):
    found = problems(lm_config(**config))
    assert found[f"model.lm.config.{path}"]["fix"] == fix


def test_a_narrow_context_must_hold_whole_heads():
    path, problem = only_problem(routed("cross", dim_heads=32))
    assert path == "model.lm.config.cross_attn_cond_dim"
    assert '"project_cross_attn_cond": true' in problem["fix"]


def test_the_last_block_with_cross_attention_is_one_of_them():
    path, problem = only_problem(routed("cross", final_cross_attn_ix=2))
    assert path == "model.lm.config.final_cross_attn_ix"
    assert problem["fix"] == "-1 means: all of them"


FLASH = {"attn_kwargs": {"backend": "flash"}}


@pytest.mark.parametrize(
    ("route", "options", "text", "fix"),
    [
        ("cross", {"causal_cross_attention": False}, "mask_condition_padding needs", 'set it to "auto", "sdpa" or "flex"'),
        ("prepend", {}, "mask_condition_padding needs", 'set it to "auto", "sdpa" or "flex"'),
        ("cross", {"mask_condition_padding": False}, "no causal cross-attention", 'set it to "auto", or "causal_cross_attention" to false'),
    ],
)
def test_flash_is_refused_where_it_cannot_run(route, options, text, fix):
    path, problem = only_problem(routed(route, **options, **FLASH))
    assert path == "model.lm.config.attn_kwargs.backend"
    assert text in problem["message"] and problem["fix"] == fix


@pytest.mark.parametrize(
    ("route", "options"),
    [
        ("none", {}),
        ("global", {}),
        ("prepend", {"mask_condition_padding": False}),
        ("cross", {"mask_condition_padding": False, "causal_cross_attention": False}),
    ],
)
def test_flash_runs_where_it_is_accepted_and_agrees_with_sdpa(route, options):
    model, other = (built(routed(route, **options, attn_kwargs={"backend": backend})) for backend in ("flash", "sdpa"))
    logits, expected = (each.compute_logits(tokens(6), conditions(each)).logits[:, 0] for each in (model, other))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    generated, same = (each.generate(8, batch_size=2, conditioning=METADATA, seed=1, cfg_scale=2.0) for each in (model, other))
    torch.testing.assert_close(generated, same)


def test_heads_by_number():
    config = lm_config(num_heads=4)
    del config["model"]["lm"]["config"]["dim_heads"]
    assert parse_model_config(config).model.lm.config.head_channels == 8


def test_heads_of_64_channels_are_the_default():
    config = lm_config(embed_dim=128)
    del config["model"]["lm"]["config"]["dim_heads"]
    assert parse_model_config(config).model.lm.config.head_channels == 64


def test_the_sample_size_is_whole_frames():
    config = lm_config()
    config["sample_size"] = 257
    with pytest.raises(ConfigError, match="256"):
        parse_model_config(config)


def test_an_idle_conditioner_is_reported(caplog):
    create_model_from_config(routed("none"))
    assert 'the conditioner "prompt" has no effect' in caplog.text
