"""What the page asks for: every condition that a config names, only what acts on the model, and values matched by name."""

from pathlib import Path

import pytest
from interface_models import MODELS, conditioned

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.guidance import Guidance
from stable_audio_tools.interface.form import MOST_SEED, form_of
from stable_audio_tools.interface.requests import LanguageRequest, Region, request_of
from stable_audio_tools.interface.waveform import waveform
from stable_audio_tools.models.factory import parse_model_config


def form(config):
    return form_of(parse_model_config(config))


FORMS = {name: form(config()) for name, config in MODELS.items()}


def test_every_condition_of_the_config_is_asked_for_with_its_range():
    asked = FORMS["conditioned"].by_name
    assert (asked["conditions.tempo"].kind, asked["conditions.tempo"].low, asked["conditions.tempo"].high) == ("number", 60, 180)
    assert (asked["conditions.bars"].kind, asked["conditions.bars"].low, asked["conditions.bars"].high) == ("whole", 1, 8)
    assert asked["conditions.genre"].choices == ("jazz", "rock")
    assert asked["conditions.prompt"].kind == asked["negative_prompt"].kind == "text"
    assert asked["conditions.seconds_total"].blank and asked["conditions.seconds_start"].blank


def test_a_condition_that_nothing_uses_is_not_asked_for():
    config = conditioned()
    section = config["model"]["diffusion"]
    section["global_cond_ids"].remove("tempo")
    section["config"]["global_cond_dim"] -= 16
    assert "conditions.tempo" not in form(config).by_name


@pytest.mark.parametrize(
    ("model", "there", "absent"),
    [
        ("text", {"sampler", "cfg_scale", "init_audio", "apg_scale"}, {"inpaint_audio", "region", "temperature", "audio"}),
        ("inpainting", {"inpaint_audio", "region"}, {"temperature"}),
        ("told", {"inpaint_audio", "region"}, {"temperature"}),
        ("unconditional", {"sampler", "init_audio"}, {"cfg_scale", "negative_prompt", "interval_low", "region"}),
        ("autoencoder", {"audio", "latent_noise"}, {"steps", "seconds", "sampler", "clips", "num_quantizers"}),
        ("diffusion_autoencoder", {"audio", "steps"}, {"seconds", "sampler"}),
        ("language", {"temperature", "top_k", "top_p", "init_audio"}, {"steps", "sampler", "init_noise_level"}),
    ],
)
def test_only_what_acts_on_the_model_is_asked_for(model, there, absent):
    names = set(FORMS[model].by_name)
    assert there <= names and not absent & names


def test_a_sound_as_a_condition_is_a_file_and_a_finished_tensor_cannot_be_asked_for():
    config = MODELS["text"]()
    section = config["model"]["conditioning"]
    section["configs"].append({"id": "melody", "type": "pretransform", "config": {"sample_rate": 8000, "use_model_pretransform": True}})
    config["model"]["diffusion"]["input_concat_ids"] = ["melody"]
    config["model"]["diffusion"]["config"]["input_concat_dim"] = 16
    assert form(config).by_name["conditions.melody"].kind == "audio"
    with pytest.raises(ConfigError, match="Melody: choose a file"):
        request_of(form(config), {})
    section["pre_encoded_keys"] = ["melody"]
    with pytest.raises(ConfigError, match=r'"melody" is a finished tensor .*\n  = use stable_audio_tools.inference.generation'):
        form(config)


def test_steps_guidance_and_sampler_are_those_of_the_models_demos():
    demo = {"demo_every": 10, "demo_steps": 7, "demo_cfg_scales": [2.5, 4], "sampler_type": "heun", "demo_cond": [{"prompt": "x"}]}
    request = request_of(form(MODELS["text"](demo=demo)), {})
    assert (request.steps, request.sampler, request.guidance) == (7, "heun", Guidance(cfg_scale=2.5, batch_cfg=True))


def test_values_are_matched_by_name_whatever_their_order():
    values = {"steps": 9, "cfg_scale": 4, "seed": 5, "clips": 2, "scale_phi": 0.5, "conditions.tempo": 90, "conditions.bars": 3}
    values |= {"interval_low": 0.1, "interval_high": 0.8, "init_noise_level": 0.3, "negative_prompt": "noise", "conditions.genre": "rock"}
    made = {
        str(request_of(FORMS["conditioned"], dict(order))) for order in (values.items(), reversed(values.items()), sorted(values.items()))
    }
    assert len(made) == 1
    request = request_of(FORMS["conditioned"], values)
    assert (request.steps, request.seed, request.clips, request.negative_prompt) == (9, 5, 2, "noise")
    assert request.guidance == Guidance(4, 0.5, (0.1, 0.8))
    assert request.conditions["tempo"] == 90 and request.conditions["genre"] == "rock"
    assert request.init_noise_level == 1  # there is no sound to vary


def test_all_that_is_wrong_is_said_at_once_by_the_names_on_the_page():
    wrong = {"steps": 0, "conditions.tempo": 300, "conditions.bars": 2.5, "conditions.genre": "polka", "seconds": "?", "samples": 3}
    with pytest.raises(ConfigError) as raised:
        request_of(FORMS["conditioned"], wrong)
    said = str(raised.value)
    assert 'samples: there is nothing of that name to set\n  = did you mean "sampler"?' in said
    for sentence in (
        "Steps: 0 is out of range: at least 1, at most 500",
        "Tempo: 300 is out of range: at least 60, at most 180",
        "Bars: expected a whole number, got 2.5",
        'Genre: "polka" is none of jazz, rock',
        'Seconds: expected a number, got "?"',
    ):
        assert sentence in said


def test_a_blank_is_the_default_where_it_may_be_and_else_a_mistake():
    request = request_of(FORMS["text"], {"sampler_options.sigma_max": None, "scale_phi": None})
    assert request.sampler_options == {} and request.guidance.scale_phi is None
    with pytest.raises(ConfigError, match="Steps: it is blank; give a value"):
        request_of(FORMS["text"], {"steps": None})


def test_a_fresh_seed_is_drawn_and_the_largest_survives_a_browser():
    seeds = {request_of(FORMS["text"], {"seed": -1}).seed for _ in range(4)}
    assert len(seeds) == 4 and min(seeds) >= 0
    assert float(MOST_SEED + 100) == MOST_SEED + 100  # a browser's numbers are doubles


def test_a_negative_prompt_needs_guidance():
    for name in ("text", "language"):
        with pytest.raises(ConfigError, match="Negative prompt: it acts through guidance, and 1 is none\n  = set Guidance to 3"):
            request_of(FORMS[name], {"negative_prompt": "noise", "cfg_scale": 1})
    assert isinstance(request_of(FORMS["language"], {"negative_prompt": " "}), LanguageRequest)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (None, "none is chosen\n  = drag over the waveform"),
        ({"start": 0.2, "end": 0.1}, "it goes from 0.2 to 0.1 s\n  = let it start before it ends"),
        ({"start": 5, "end": 6}, "it starts at 5 s, and the clip ends at 0.256 s\n  = choose an earlier part, or more Seconds"),
        ({"from": 1}, "expected where it starts and ends"),
    ],
)
def test_a_part_that_cannot_be_made_anew_is_told(part, message):
    with pytest.raises(ConfigError) as raised:
        request_of(FORMS["inpainting"], {"inpaint_audio": "tone.wav", "region": part})
    assert f"The part to make anew: {message}" in str(raised.value)


def test_a_part_is_of_a_sound():
    with_sound = request_of(FORMS["inpainting"], {"inpaint_audio": "tone.wav", "region": {"start": 0.1, "end": 0.2}})
    assert with_sound.region == Region(0.1, 0.2) and with_sound.inpaint_audio == Path("tone.wav")
    assert request_of(FORMS["inpainting"], {"region": {"start": 0.1, "end": 0.2}}).region is None


def test_the_waveform_begins_with_what_the_sound_leaves_of_the_clip(tone):
    drawn = waveform(tone, 1.0)
    assert (drawn["sound"], drawn["start"], drawn["end"]) == (0.2, 0.2, 1.0) and max(drawn["peaks"]) == 1
    inside = waveform(tone, 0.1)
    assert (inside["sound"], inside["start"], inside["end"]) == (0.1, 0.033, 0.067)
    assert waveform(None, 2.0) == {"seconds": 2.0, "sound": 0.0, "peaks": [], "start": None, "end": None}
