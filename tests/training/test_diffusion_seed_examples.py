"""The usage examples of diffusion training beside the schema of the peer: accepted where they can mean something, else told why not."""

import configs
import pytest

from stable_audio_tools.configs.errors import ConfigError, path_text
from stable_audio_tools.training.config import parse_run_config

CONDITIONAL = {
    "learning_rate": 2e-4,
    "use_ema": True,
    "cfg_dropout_prob": 0.1,
    "timestep_sampler": "uniform",
    "mask_padding": True,
    "mask_padding_dropout": 0.2,
    "demo": {"demo_every": 1000, "demo_steps": 100},
}
ARC = {
    "arc": {"use_model_as_teacher": True, "teacher_model_ckpt": "/path/to/teacher.ckpt", "use_model_as_discriminator": True},
    "use_ema": True,
    "cfg_dropout_prob": 0.15,
    "clip_grad_norm": 1.0,
}


def problems(document):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(document)
    return {path_text(problem.path): f"{problem.message}; {problem.fix}" for problem in caught.value.problems}


def of_a_model(training, make=configs.text_to_audio):
    return {**make(), "training": training}


def test_the_conditional_example_is_a_training_section():
    training = parse_run_config(of_a_model(CONDITIONAL)).training
    assert training.mask_padding and training.mask_padding_dropout == 0.2 and training.demo.demo_steps == 100


def test_the_conditional_example_alone_lacks_a_model_and_the_length_of_clips():
    found = problems({"model_type": "diffusion_cond", "training": CONDITIONAL, "sample_rate": 44100})
    assert set(found) == {"model", "sample_size"}
    assert "samples of a training clip" in found["sample_size"]


def test_the_arc_example_lacks_a_discriminator_and_then_a_learning_rate():
    assert "of conv, convnext" in problems(of_a_model(ARC))["training.arc.discriminator"]
    headed = {**ARC, "arc": {**ARC["arc"], "discriminator": {"type": "conv", "dit_hidden_layer": 1}}}
    found = problems(of_a_model(headed))
    assert set(found) == {"training.learning_rate"} and "diffusion and discriminator" in found["training.learning_rate"]
    assert parse_run_config(of_a_model({**headed, "learning_rate": 1e-4})).training.clip_grad_norm == 1.0


def test_a_teacher_needs_its_weights():
    """The schema's own check never runs where the key is absent."""
    arc = {**ARC["arc"], "discriminator": {"type": "conv", "dit_hidden_layer": 1}}
    del arc["teacher_model_ckpt"]
    found = problems(of_a_model({**ARC, "learning_rate": 1e-4, "arc": arc}))
    assert "teacher_model_ckpt must be specified" in found["training.arc.teacher_model_ckpt"]


@pytest.mark.parametrize("sampler", ["uniform", "logit_normal", "cosine"])
def test_the_samplers_of_the_schema_are_known(sampler):
    assert parse_run_config(of_a_model({**CONDITIONAL, "timestep_sampler": sampler})).training.timestep_sampler == sampler


def test_unconditional_training_has_no_conditions_to_drop():
    training = {"learning_rate": 1e-4, "pre_encoded": False, "demo": {}}
    assert parse_run_config(of_a_model(training, configs.unconditional)).training.use_ema
    found = problems(of_a_model({**training, "cfg_dropout_prob": 0.1}, configs.unconditional))
    assert "unknown key" in found["training.cfg_dropout_prob"]


def test_a_diffusion_autoencoder_takes_the_three_keys_of_the_schema():
    training = {"learning_rate": 1e-4, "use_reconstruction_loss": False, "demo": {}}
    assert parse_run_config(of_a_model(training, configs.diffusion_autoencoder)).training.learning_rate == 1e-4
