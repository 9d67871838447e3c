"""Distillation of an autoencoder: its five terms and whom they move, a teacher that is never saved, and teachers that do not fit."""

import sys
from pathlib import Path

import pytest
import torch
from test_host import Recorder, Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_weights, save_model
from stable_audio_tools.training.checkpoints import RunCheckpoint
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.plan import make_plan

TERMS = ("latent_distill", "mrstft", "mrstft_distill", "mrstft_own_latents_teacher", "mrstft_teacher_latents_own")
ENCODER, DECODER = "encoder.", "decoder."
MOVED = {
    "latent_distill": {ENCODER},
    "mrstft": {ENCODER, DECODER},
    "mrstft_distill": {ENCODER, DECODER},
    "mrstft_own_latents_teacher": {ENCODER},
    "mrstft_teacher_latents_own": {DECODER},
}


def teacher_document():
    """Another network with the same latents; its bottleneck has no randomness, so that terms can be computed again."""
    document = configs.autoencoder()
    del document["training"]
    for side in ("encoder", "decoder"):
        document["model"][side]["config"] |= {"channels": 6, "latent_dim": 4}
    document["model"]["bottleneck"] = {"type": "tanh"}
    return document


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The teacher's file, which carries its config."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_model(path, create_model_from_config(teacher_document()), teacher_document())
    return str(path)


def document(weights, **training):
    training = {"teacher_model": teacher_document(), "teacher_model_ckpt": weights} | training
    data = configs.autoencoder(**training)
    losses = data["training"]["loss_configs"]
    for block in ("discriminator", "time", "bottleneck"):
        losses.pop(block, None)
    data["model"]["bottleneck"] = {"type": "tanh"}
    data["model"]["encoder"]["config"]["latent_dim"] = 4
    return data


def sound(seed=0):
    return 0.1 * torch.randn(2, 2, 2048, generator=torch.Generator().manual_seed(seed))


def terms_of(module, audio, step=0):
    strategy = module.strategy
    return strategy.reconstruction_terms(module.model, audio, strategy.reconstruct(module.model, audio), step)


def test_the_terms_are_those_of_the_peer_and_each_is_a_quarter_of_the_spectral_weight(weights):
    module, audio = wrapper(document(weights)), sound()
    student, teacher, stft = module.model, module.strategy.distillation.teacher, module.strategy.losses.stft
    own, theirs = student.encode(audio), teacher.encode(audio)
    expected = {
        "latent_distill": (own - theirs).square().mean(),
        "mrstft": stft(audio, student.decode(own))["mrstft"],
        "mrstft_distill": stft(teacher.decode(theirs), student.decode(own))["mrstft"],
        "mrstft_own_latents_teacher": stft(audio, teacher.decode(own))["mrstft"],
        "mrstft_teacher_latents_own": stft(audio, student.decode(theirs))["mrstft"],
    }
    found = terms_of(module, audio)
    assert set(found) == set(TERMS)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], 0.25 * value)


def test_weights_of_each_term_and_their_decay(weights):
    data = document(weights)
    losses = data["training"]["loss_configs"]
    losses["spectral"]["decay"] = 0.5
    losses["distillation"] = {"weights": {"latent_distill": 3.0, "mrstft_distill": 0.0}}
    module, plain = wrapper(data), wrapper(document(weights))
    found, reference = terms_of(module, sound(), 2), terms_of(plain, sound())
    assert set(found) == set(TERMS) - {"mrstft_distill"}
    factors = dict.fromkeys(found, 0.25) | {"latent_distill": 12 * 0.25}
    for name, factor in factors.items():
        torch.testing.assert_close(found[name], factor * reference[name])


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.slow
def test_every_term_has_a_gradient_and_none_reaches_the_teacher(weights, name):
    """The peer computes what the other's decoder makes without a graph, so two of its terms teach nothing."""
    module = wrapper(document(weights))
    terms_of(module, sound())[name].backward()
    moved = {
        side for side in (ENCODER, DECODER) for key, p in module.model.named_parameters() if key.startswith(side) and p.grad is not None
    }
    assert moved == MOVED[name]
    teacher = module.strategy.distillation.teacher
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_masked_latents_are_not_compared_with_the_teachers(weights):
    module = wrapper(document(weights, latent_mask_ratio=1.0)).train()
    plain = wrapper(document(weights))
    torch.testing.assert_close(terms_of(module, sound())["latent_distill"], terms_of(plain, sound())["latent_distill"])


@pytest.mark.parametrize("adversarial", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "adversarial"])
@pytest.mark.slow
def test_loss_goes_down_and_the_teacher_stays_and_is_in_no_checkpoint(weights, tmp_path, adversarial):
    data = document(weights, learning_rate=3e-3)
    if adversarial:
        data["training"]["loss_configs"]["discriminator"] = configs.autoencoder()["training"]["loss_configs"]["discriminator"]
    module, recorder = wrapper(data), Recorder()
    before = [p.clone() for p in module.strategy.distillation.teacher.parameters()]
    fit(module, Repeat(next(iter(loader(data)))), 40 if adversarial else 20, recorder, RunCheckpoint(tmp_path, every=0, keep=1))
    values = [float.fromhex(row["train/loss_mrstft"]) for row in recorder.losses if "train/loss_mrstft" in row]
    assert sum(values[-5:]) < 0.95 * sum(values[:5])
    assert all(torch.equal(a, b) for a, b in zip(before, module.strategy.distillation.teacher.parameters(), strict=True))
    assert not module.strategy.distillation.teacher.training
    assert not any("teacher" in key for key in module.state_dict())
    assert load_weights(tmp_path / "last.ckpt").state_dict.keys() == module.model.state_dict().keys()
    wrapper(data).load_state_dict(module.state_dict())


def test_validation_measures_the_same_terms_the_same_way_each_time(weights):
    data = document(weights)
    module, batch = wrapper(data), next(iter(loader(data)))
    trainer = fit(module, Repeat(batch), 1)
    results = []
    for _ in range(2):
        trainer.validate(module, Repeat(batch), verbose=False)
        results.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert results[0] == results[1]
    assert {f"val/loss_{name}" for name in TERMS} | {"val/loss"} == results[0].keys()


def test_a_file_that_carries_its_config_is_a_teacher_by_itself(weights):
    data = document(weights, teacher_model={"source": "checkpoint", "path": weights}, teacher_model_ckpt=None)
    del data["training"]["teacher_model_ckpt"]
    torch.testing.assert_close(terms_of(wrapper(data), sound()), terms_of(wrapper(document(weights)), sound()))


@pytest.mark.slow
def test_a_plan_counts_the_teacher_and_reads_no_weights(weights):
    planned = make_plan(parse_run_config(document("nowhere.ckpt")), batch_size=1)
    alone = document(weights)
    for key in ("teacher_model", "teacher_model_ckpt"):
        del alone["training"][key]
    plain = make_plan(parse_run_config(alone), batch_size=1)
    assert planned.flops > plain.flops and planned.memory.weights > plain.memory.weights and planned.export == plain.export


def test_weights_of_another_model_are_refused(tmp_path):
    other = configs.autoencoder()
    del other["training"]
    path = tmp_path / "other.safetensors"
    save_model(path, create_model_from_config(other), other)
    with pytest.raises(ConfigError, match=r"other.safetensors: does not fit this model"):
        wrapper(document(str(path)))


def problems(data):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(data)
    return {entry["path"]: (entry["message"], entry["fix"]) for entry in caught.value.to_dict()["problems"]}


def test_a_teacher_without_weights_is_refused(weights):
    """The seed's rule never fires when the key is absent."""
    data = document(weights)
    del data["training"]["teacher_model_ckpt"]
    expected = "teacher_model_ckpt must be specified if teacher_model is specified"
    assert problems(data) == {"training.teacher_model_ckpt": (expected, "name the file of the teacher's weights")}


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"teacher_model": None}, "training.teacher_model_ckpt", "no effect without teacher_model"),
        (
            {"teacher_model": {"source": "checkpoint", "path": "x.ckpt"}},
            "training.teacher_model_ckpt",
            "teacher_model names the file already",
        ),
        ({"teacher_model": {"source": "file", "path": "x.ckpt"}}, "training.teacher_model.source", 'expected "checkpoint"'),
        ({"teacher_model": {"source": "checkpoint", "pth": "x.ckpt"}}, "training.teacher_model.pth", 'unknown key "pth"'),
        ({"teacher_model": {"model_type": "autoencoder"}}, "training.teacher_model.model", "missing"),
    ],
)
def test_half_a_teacher_is_refused(weights, change, path, message):
    found = problems(document(weights, **change))
    assert message in found[path][0]


def test_a_teacher_file_that_is_not_there_is_named(weights):
    data = document(weights, teacher_model={"source": "checkpoint", "path": "nowhere.safetensors"})
    del data["training"]["teacher_model_ckpt"]
    (found,) = problems(data).items()
    assert found[0] == "training.teacher_model.path" and "nowhere.safetensors: " in found[1][0]


def test_weights_of_distillation_need_a_teacher_that_counts(weights):
    data = document(weights)
    data["training"]["loss_configs"]["distillation"] = {"weights": dict.fromkeys(set(TERMS) - {"mrstft"}, 0.0)}
    assert problems(data)["training.teacher_model"][0] == "no effect: every weight of what a teacher adds is 0"
    for key in ("teacher_model", "teacher_model_ckpt"):
        del data["training"][key]
    assert problems(data) == {"training.loss_configs.distillation": ("no effect without teacher_model", "remove the block")}


def test_latents_of_another_size_or_rate_are_refused_with_the_reason(weights):
    data = document(weights)
    teacher = data["training"]["teacher_model"]
    teacher["sample_rate"] = 16000
    body = teacher["model"]
    body["latent_dim"], body["downsampling_ratio"] = 8, 8
    for side in ("encoder", "decoder"):
        body[side]["config"] |= {"latent_dim": 8, "strides": [2, 4]}
    found = problems(data)
    fix = "each must be able to decode what the other encodes"
    assert found == {
        "training.teacher_model.sample_rate": ("the teacher's sample_rate is 16000, but that of the model in training is 8000", fix),
        "training.teacher_model.model.latent_dim": ("the teacher's latent_dim is 8, but that of the model in training is 4", fix),
        "training.teacher_model.model.downsampling_ratio": (
            "the teacher's downsampling_ratio is 8, but that of the model in training is 16",
            fix,
        ),
    }


def test_channels_must_agree_unless_encoders_hear_mono(weights, tmp_path):
    mono = teacher_document()
    mono["model"] |= {"in_channels": 1, "out_channels": 2}
    mono["model"]["encoder"]["config"]["in_channels"] = 1
    path = tmp_path / "mono.safetensors"
    save_model(path, create_model_from_config(mono), mono)
    data = document(str(path), teacher_model=mono)
    expected = "the teacher's in_channels is 1, but that of the model in training is 2"
    assert problems(data)["training.teacher_model.model.in_channels"][0] == expected
    data["training"]["force_input_mono"] = True
    assert set(terms_of(wrapper(data), sound())) == set(TERMS)


@pytest.mark.slow
def test_a_stopped_run_with_a_teacher_and_a_frozen_encoder_goes_on_bit_for_bit(weights, tmp_path):
    data = document(weights, encoder_freeze_on_warmup=True, warmup_steps=4, latent_mask_ratio=0.1, use_ema=True)
    data["training"]["loss_configs"]["discriminator"] = configs.autoencoder()["training"]["loss_configs"]["discriminator"]
    straight, first, second = Recorder(), Recorder(), Recorder()
    whole = wrapper(data)
    fit(whole, loader(data), 9, straight)
    fit(wrapper(data), loader(data), 5, first, RunCheckpoint(tmp_path, every=0, keep=1))
    resumed = wrapper(data, seed=9)
    fit(resumed, loader(data), 9, second, ckpt_path=tmp_path / "last.ckpt")
    assert first.losses + second.losses == straight.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
