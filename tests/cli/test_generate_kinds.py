"""`generate` with every kind of model: what each makes, with which flags, and which flags it refuses."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.audio.io import load_audio, save_audio
from stable_audio_tools.inference.language import generate_lm
from stable_audio_tools.inference.reconstruction import reconstruct
from stable_audio_tools.models.pretrained import get_pretrained_model

BELL = ["--prompt", "a bell"]
FLOATS = ["--bits", "32", "--normalize", "never", "--out", "clip.wav"]


def tone(path, samples=1024, channels=1):
    save_audio(Path(path), 0.5 * torch.sin(torch.arange(samples) * 0.1).expand(channels, -1), 8000)


@pytest.fixture
def made(generate, models):
    """Runs the command with the model of a kind; gives the audio and its settings."""

    def call(kind, *arguments):
        status, paths, err = generate("--model", models(kind), *FLOATS, *arguments)
        assert status == 0, err
        return load_audio(paths[0])[0], json.loads(paths[0].with_suffix(".json").read_text())

    return call


def test_a_language_model_makes_what_the_function_makes(made, models):
    options = ["--temperature", "0.9", "--top-k", "7", "--cfg-scale", "2", "--seconds", "0.2", "--seed", "4"]
    audio, settings = made("language_model", *BELL, *options)
    model, _ = get_pretrained_model(models("language_model"))
    expected = generate_lm(
        model, conditioning=[{"prompt": "a bell"}], seconds=0.2, cfg_scale=2, temperature=0.9, top_k=7, seed=[4], batch_size=1
    )
    assert torch.equal(audio, expected[0])
    assert (settings["temperature"], settings["top_k"], settings["cfg_scale"]) == (0.9, 7, 2.0) and "top_p" not in settings


@pytest.mark.slow
def test_options_of_language_models_act(made):
    def audio(*arguments):
        return made("language_model", *BELL, "--seed", "0", *arguments)[0]

    variants = [(), ("--temperature", "0"), ("--top-k", "1"), ("--top-p", "0.2"), ("--cfg-scale", "4"), ("--seed", "1")]
    sounds = [audio(*arguments) for arguments in variants]
    assert torch.equal(sounds[1], sounds[2])  # both always take the most likely token
    others = [sounds[0], *sounds[2:]]
    assert all(not torch.equal(a, b) for i, a in enumerate(others) for b in others[:i])
    negative = audio("--cfg-scale", "4", "--negative-prompt", "noise")
    assert not torch.equal(negative, sounds[4])


def test_a_language_model_continues_a_sound(made, models):
    tone("tone.wav", 640)
    audio, settings = made("language_model", *BELL, "--seed", "0", "--seconds", "0.2", "--continue-from", "tone.wav")
    model, _ = get_pretrained_model(models("language_model"))
    start = load_audio("tone.wav")[0]
    kept = model.decode_tokens(model.pretransform.tokenize(start[None]))[0]
    assert audio.shape == (1, 1600) and settings["continue_from"] == "tone.wav"
    torch.testing.assert_close(audio[:, :320], kept[:, :320], atol=1e-5, rtol=0)  # the decoder looks a little beyond the end


def test_an_inpainting_model_continues_a_sound(made):
    tone("tone.wav", 1024)
    continuing = ("inpainting", *BELL, "--seed", "0", "--steps", "2", "--seconds", "0.256")
    audio, settings = made(*continuing, "--continue-from", "tone.wav")
    same, _ = made(*continuing, "--inpaint-audio", "tone.wav", "--mask", "0.128:0.256")
    assert torch.equal(audio, same) and settings["continue_from"] == "tone.wav"
    assert not torch.equal(audio, made(*continuing)[0])


@pytest.mark.parametrize("kind", ["inpainting", "language_model"])
def test_a_sound_that_leaves_no_room_is_told(generate, models, kind):
    tone("tone.wav", 4000)
    status, _, err = generate("--model", models(kind), *BELL, "--continue-from", "tone.wav")
    assert status == 2 and "--continue-from tone.wav: it lasts 0.5 s, and the clip with it 0.256 s" in err
    assert "--seconds says how long both are together: more than 0.5" in err


@pytest.mark.parametrize("kind, channels", [("autoencoder", 2), ("diffusion_autoencoder", 1)])
def test_an_autoencoder_reconstructs_any_length(made, models, kind, channels):
    tone("tone.wav", 3001, channels)
    steps = ["--steps", "3"] if kind == "diffusion_autoencoder" else []
    audio, settings = made(kind, "--reconstruct", "tone.wav", "--seed", "1", *steps)
    model, _ = get_pretrained_model(models(kind))
    given, rate = load_audio("tone.wav")
    expected = reconstruct(model, (rate, given), steps=3 if steps else None, seed=1)
    assert audio.shape == (channels, 3001) and torch.equal(audio, expected[0])
    assert settings["reconstruct"] == "tone.wav" and ("steps" in settings) == bool(steps) and "seconds" not in settings
    noisy, _ = made(kind, "--reconstruct", "tone.wav", "--seed", "1", "--latent-noise", "0.5", *steps)
    assert not torch.equal(audio, noisy)


def test_several_sounds_are_reconstructed_each_at_its_own_length(generate, models):
    tone("low.wav", 1000, 2)
    tone("long.flac", 2500, 2)
    status, paths, err = generate("--model", models("autoencoder"), "--reconstruct", "low.wav", "long.flac", "--out", "again")
    assert status == 0, err
    assert [str(path) for path in paths] == ["again/low_reconstructed.wav", "again/long_reconstructed.wav"]
    assert [load_audio(path)[0].shape[1] for path in paths] == [1000, 2500]


def test_guidance_and_sampler_options_act_and_are_in_the_settings(made):
    def audio(*arguments):
        return made("text_to_audio", *BELL, "--seed", "0", "--steps", "4", "--cfg-scale", "5", *arguments)

    plain, settings = audio()
    assert not {"cfg_interval", "cfg_rescale", "apg_scale", "apg_momentum", "cfg_norm_threshold", "no_batch_cfg"} & settings.keys()
    variants = {
        ("--cfg-interval", "0.2:0.7"): ("cfg_interval", "0.2:0.7"),
        ("--cfg-rescale", "0.5"): ("cfg_rescale", 0.5),
        ("--apg-scale", "1"): ("apg_scale", 1.0),
        ("--apg-momentum", "-0.5"): ("apg_momentum", -0.5),
        ("--cfg-norm-threshold", "0.1"): ("cfg_norm_threshold", 0.1),
        ("--sampler", "dpmpp-2m-sde", "--sampler-option", "eta=0.5", "--sampler-option", "sigma_max=50"): (
            "sampler_options",
            {"eta": 0.5, "sigma_max": 50},
        ),
    }
    sounds = [plain]
    for arguments, (key, value) in variants.items():
        other, settings = audio(*arguments)
        assert settings[key] == value
        sounds.append(other)
    assert all(not torch.equal(a, b) for i, a in enumerate(sounds) for b in sounds[:i])
    apart, settings = audio("--no-batch-cfg")
    assert settings["no_batch_cfg"] is True
    torch.testing.assert_close(apart, plain, atol=1e-4, rtol=1e-4)


def test_a_sampler_in_ratios_may_be_told_how_much_noise_init_audio_gets(made, generate, models):
    tone("tone.wav", 2048)
    start = [*BELL, "--seed", "0", "--steps", "4", "--sampler", "dpmpp-2m", "--init-audio", "tone.wav"]

    def difference(*arguments):
        audio, settings = made("text_to_audio", *start, *arguments)
        assert ("init_noise_level" in settings) != ("sampler_options" in settings)
        return float((audio - load_audio("tone.wav")[0]).square().mean())

    near, far = (difference("--sampler-option", f"sigma_max={ratio}") for ratio in ("0.02", "5"))
    assert near < far and difference() != far
    both = ["--sampler-option", "sigma_max=5", "--init-noise-level", "0.5"]
    status, _, err = generate("--model", models("text_to_audio"), *start, *both)
    assert status == 2 and "--init-noise-level: --sampler-option sigma_max says too how much noise --init-audio gets\n  = keep one" in err


def test_without_guidance_there_is_nothing_to_shape(generate, models):
    flags = [*("--cfg-interval", "0:1"), *("--cfg-rescale", "1"), *("--apg-scale", "1"), "--no-batch-cfg"]
    status, _, err = generate("--model", models("text_to_audio"), *BELL, "--cfg-scale", "1", *flags)
    assert status == 2 and "4 problems" in err
    for name in ("--cfg-interval", "--cfg-rescale", "--apg-scale", "--no-batch-cfg"):
        assert f"{name}: acts through guidance, and --cfg-scale 1 is none\n  = choose another --cfg-scale" in err
    status, _, err = generate("--model", models("text_to_audio"), *BELL, "--cfg-scale", "1", "--sampler", "euler-cfgpp")
    assert status == 2 and "--sampler euler-cfgpp: follows the unconditional prediction, and without guidance there is none" in err


ACTING = {
    "steps": ("4", "text_to_audio inpainting unconditional diffusion_autoencoder"),
    "sampler": ("euler", "text_to_audio inpainting unconditional"),
    "sampler_option": ("eta=0", "text_to_audio inpainting unconditional"),
    "cfg_scale": ("2", "text_to_audio inpainting language_model"),
    "cfg_rescale": ("0.5", "text_to_audio inpainting"),
    "cfg_interval": ("0:1", "text_to_audio inpainting"),
    "apg_scale": ("0.5", "text_to_audio inpainting"),
    "apg_momentum": ("0.5", "text_to_audio inpainting"),
    "cfg_norm_threshold": ("1", "text_to_audio inpainting"),
    "no_batch_cfg": ("", "text_to_audio inpainting"),
    "temperature": ("0", "language_model"),
    "top_k": ("1", "language_model"),
    "top_p": ("1", "language_model"),
    "init_audio": ("tone.wav", "text_to_audio inpainting unconditional"),
    "continue_from": ("tone.wav", "inpainting language_model"),
    "reconstruct": ("tone.wav", "autoencoder diffusion_autoencoder"),
    "seconds": ("1", "text_to_audio inpainting unconditional language_model"),
}
KINDS = ("text_to_audio", "inpainting", "unconditional", "language_model", "autoencoder", "diffusion_autoencoder")


@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_that_cannot_act_is_refused_with_reason_and_fix(generate, models, kind):
    tone("tone.wav")
    for name, (value, acting) in ACTING.items():
        if kind in acting.split():
            continue
        flag = f"--{name.replace('_', '-')}"
        status, written, err = generate("--model", models(kind), flag, *([value] if value else []))
        assert status == 2 and not written and "Traceback" not in err
        head, _, fix = err.partition(f"{flag}: ")[2].partition("\n")
        assert len(head) > 20 and fix.startswith("  = "), (name, err)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        ("autoencoder", ["--init-audio", "tone.wav"], "--init-audio: an autoencoder makes nothing up\n  = --reconstruct FILE encodes"),
        ("autoencoder", [], "an autoencoder makes sounds of sounds\n  = --reconstruct FILE encodes and decodes one"),
        ("autoencoder", ["--reconstruct", "tone.wav", *BELL], "--prompt: --reconstruct makes a sound again, whatever it is called"),
        ("autoencoder", ["--reconstruct", "none.wav"], "none.wav: no such file"),
        ("autoencoder", ["--reconstruct", "tone.wav", "--num-quantizers", "2"], "--num-quantizers: the model's latents are continuous"),
        ("autoencoder", ["--reconstruct", "tone.wav", "--steps", "2"], "--steps: an autoencoder decodes in one pass\n  = leave it out"),
        ("language_model", [*BELL, "--init-audio", "tone.wav"], "--continue-from FILE goes on from a sound"),
        ("language_model", [*BELL, "--top-k", "3", "--top-p", "0.5"], "--top-k and --top-p exclude each other\n  = keep one"),
        ("language_model", [*BELL, "--negative-prompt", "x"], "--negative-prompt: acts through guidance, and --cfg-scale 1 is none"),
        ("inpainting", [*BELL, "--num-quantizers", "2"], "--num-quantizers: acts on --reconstruct, which is missing"),
        (
            "inpainting",
            [*BELL, "--continue-from", "tone.wav", "--inpaint-audio", "tone.wav", "--mask", "0:1"],
            "--continue-from: keeps all of a sound, and --inpaint-audio parts of one\n  = keep one",
        ),
        ("text_to_audio", [*BELL, "--continue-from", "tone.wav"], "--continue-from: the model makes whole clips: it was not trained"),
        ("text_to_audio", [*BELL, "--sampler-option", "eta=1"], "sampler 'euler' has no option eta\n  = it takes no options; taken by"),
        ("text_to_audio", [*BELL, "--sampler-option", "eta"], "--sampler-option: expected KEY=VALUE, got 'eta'"),
        (
            "text_to_audio",
            [*BELL, "--sampler", "dpmpp-2m-sde", "--sampler-option", "eta=much"],
            "eta is 'much'\n  = give a number from 0 to 2; default 1",
        ),
        ("text_to_audio", [*BELL, "--cfg-interval", "0.9:0.1"], "expected LOW:HIGH, noise levels such as 0.2:0.9, got '0.9:0.1'"),
        ("text_to_audio", [*BELL, "--apg-momentum", "1"], "expected a number between -1 and 1, got '1'"),
    ],
    ids=str,
)
def test_what_a_kind_of_model_cannot_do_is_told(generate, models, kind, arguments, message):
    tone("tone.wav", channels=2)
    before = sorted(Path().rglob("*"))
    status, written, err = generate("--model", models(kind), *arguments)
    assert status == 2 and message in err and "Traceback" not in err
    assert not written and sorted(Path().rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["text_to_audio", "unconditional", "language_model", "autoencoder"])
def test_half_precision_makes_nearly_the_same_sound(made, kind, precision):
    tone("tone.wav", channels=2)
    asked = {"autoencoder": ["--reconstruct", "tone.wav"], "unconditional": ["--steps", "4"]}.get(kind, BELL)
    asked = [*asked, "--seed", "0", *(["--temperature", "0"] if kind == "language_model" else [])]
    whole, settings = made(kind, *asked)
    half, half_settings = made(kind, *asked, "--precision", precision)
    assert "precision" not in settings and half_settings["precision"] == precision
    assert 0 < float((whole - half).square().mean().sqrt() / whole.square().mean().sqrt()) < 0.1


def test_half_is_short_for_fp16(made):
    assert made("text_to_audio", *BELL, "--half", "--steps", "1")[1]["precision"] == "fp16"


TOLD = [{"type": "prefix", "seconds": 0.05}, {"type": "reference", "source": "like"}]


def test_a_model_that_was_told_frames_and_references_takes_them(saved, generate):
    tone("tone.wav", 640)
    model = saved(configs.text_to_audio(conditions=TOLD))

    def audio(*arguments):
        status, paths, err = generate("--model", model, *FLOATS, *BELL, "--seed", "4", "--steps", "3", *arguments)
        assert status == 0, err
        return load_audio(paths[0])[0], json.loads(paths[0].with_suffix(".json").read_text())

    tone_audio = load_audio("tone.wav")[0]
    onward, settings = audio("--continue-from", "tone.wav")
    assert torch.equal(onward[:, :640], tone_audio) and onward[:, 640:].abs().sum() > 0
    like, told = audio("--continue-from", "tone.wav", "--reference", "tone.wav")
    assert told["reference"] == ["tone.wav"] and "reference" not in settings
    assert torch.equal(like[:, :640], tone_audio) and not torch.allclose(like, onward, atol=1e-4)
    status, paths, err = generate("--from-settings", "clip.json", "--out", "again.wav")
    assert status == 0 and torch.equal(load_audio(paths[0])[0], like), err
    filled, _ = audio("--inpaint-audio", "tone.wav", "--mask", "0.03:0.05", "--seconds", "0.08")
    assert torch.equal(filled[:, :240], tone_audio[:, :240]) and torch.equal(filled[:, 400:], tone_audio[:, 400:])


def test_references_that_a_model_does_not_know_are_refused(saved, generate, models):
    tone("tone.wav", 640)
    status, _, err = generate("--model", models("text_to_audio"), *BELL, "--reference", "tone.wav")
    assert status == 2 and "--reference: 1 given, and the model was not trained with references" in err
    model = saved(configs.text_to_audio(conditions=TOLD))
    status, _, err = generate("--model", model, *BELL, "--reference", "tone.wav", "--reference", "tone.wav")
    assert status == 2 and "2 given, and the model learned to take 1" in err
    status, _, err = generate("--model", models("language_model"), *BELL, "--reference", "tone.wav")
    assert status == 2 and "--reference" in err
