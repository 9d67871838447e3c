"""`generate` as a user runs it, in process: what is written, what repeats it, and every way to ask wrongly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.audio.io import load_audio, save_audio
from stable_audio_tools.cli.main import main
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_weights, save_model

NUMBER = {"type": "number", "config": {"min_val": 0, "max_val": 60}}
BELL = ["--prompt", "a bell playing A4, soft"]


def saved(path, *conditions, **diffusion):
    """A file with a tiny random model that has these conditions besides its prompt, on the global route."""
    config = configs.text_to_audio()
    config["model"]["conditioning"]["configs"] += [{"id": name, **kind} for name, kind in conditions]
    section = config["model"]["diffusion"]
    section["global_cond_ids"] += [name for name, _ in conditions]
    section["config"]["global_cond_dim"] = 16 * (1 + len(conditions))
    section.update(diffusion)
    torch.manual_seed(0)
    model = create_model_from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_model(path, model, config)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run") / "model.safetensors")


@pytest.fixture(scope="module")
def timed_model(tmp_path_factory):
    conditions = ("seconds_start", NUMBER), ("seconds_total", NUMBER), ("genre", {"type": "list", "config": {"options": ["jazz", "rock"]}})
    return saved(tmp_path_factory.mktemp("run") / "model.safetensors", *conditions)


@pytest.fixture
def generate(generate):
    """The command with a model, in two steps."""
    return lambda model, *arguments: generate("--model", model, "--steps", "2", *arguments)


def test_a_prompt_becomes_a_clip_with_its_settings(generate, model):
    status, (path,), _ = generate(model, *BELL, "--seed", "5")
    assert status == 0 and path == Path("generated/a_bell_playing_a4_soft_seed5.wav")
    audio, rate = load_audio(path)
    assert rate == 8000 and audio.shape == (1, 2048)
    settings = json.loads(path.with_suffix(".json").read_text())
    assert settings.pop("version") and settings.pop("torch") == torch.__version__
    assert len(settings.pop("weights")) == 16 and settings.pop("result")["peak"] > 0
    assert settings == {
        "model": model,
        "prompt": "a bell playing A4, soft",
        "seed": 5,
        "seconds": 0.256,
        "sample_rate": 8000,
        "steps": 2,
        "cfg_scale": 3.0,
        "sampler": "euler",
        "objective": "rectified_flow",
        "device": "cpu",
        "format": "wav",
        "bits": 16,
        "normalize": "over",
    }


def test_each_clip_can_be_made_again_alone_by_the_seed_in_its_settings(generate, model):
    Path("prompts.txt").write_text("a saw\n\n  a sine, loud \n")
    _, together, _ = generate(model, *BELL, "--prompts-file", "prompts.txt", "--seed", "5", "--batch-size", "2", "--out", "many")
    assert [p.name for p in together] == ["a_bell_playing_a4_soft_seed5.wav", "a_saw_seed6.wav", "a_sine_loud_seed7.wav"]
    _, (alone,), _ = generate(model, "--prompt", "a sine, loud", "--seed", "7", "--out", "alone.flac")
    torch.testing.assert_close(load_audio(alone)[0], load_audio(together[2])[0], rtol=0, atol=1e-4)


def test_a_folder_keeps_earlier_clips_and_a_file_is_replaced(generate, model):
    for expected in ("a_saw_seed1.wav", "a_saw_seed1_2.wav"):
        assert generate(model, "--prompt", "a saw", "--seed", "1")[1][0].name == expected
    for _ in range(2):
        assert generate(model, "--prompt", "a saw", "--out", "clip.wav")[1] == [Path("clip.wav")]


def test_without_a_seed_each_run_differs_and_says_its_seed(generate, model):
    first, second = (generate(model, *BELL)[1][0] for _ in range(2))
    seeds = {json.loads(path.with_suffix(".json").read_text())["seed"] for path in (first, second)}
    assert len(seeds) == 2


def test_every_option_acts(generate, model):
    def audio(*arguments):
        return load_audio(generate(model, *BELL, "--seed", "0", "--out", "clip.wav", *arguments)[1][0])[0]

    save_audio("tone.wav", torch.sin(torch.arange(2048) / 3)[None] * 0.5, 8000)
    plain = audio()
    assert audio("--seconds", "0.1").shape == (1, 800)
    others = [
        ("--cfg-scale", "1"),
        ("--sampler", "heun"),
        ("--negative-prompt", "noise"),
        ("--seed", "1"),
        ("--steps", "3"),
        ("--init-audio", "tone.wav"),
        ("--init-audio", "tone.wav", "--init-noise-level", "0.1"),
    ]
    made = [plain, *(audio(*arguments) for arguments in others)]
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])
    assert torch.equal(plain, audio("--batch-size", "1"))
    settings = json.loads(Path("clip.json").read_text())
    assert "init_audio" not in settings
    audio("--init-audio", "tone.wav")
    settings = json.loads(Path("clip.json").read_text())
    assert settings["init_audio"] == "tone.wav" and settings["init_noise_level"] == 0.7


def test_steps_guidance_and_sampler_default_to_the_demos_of_the_model(tmp_path, generate, capsys):
    config = configs.text_to_audio(demo={"demo_every": 1, "demo_steps": 3, "demo_cfg_scales": [1.5, 4], "sampler_type": "heun"})
    save_model(tmp_path / "model.safetensors", create_model_from_config(config), config)
    assert main(["generate", "--model", str(tmp_path / "model.safetensors"), *BELL, "--out", "clip.wav"]) == 0
    settings = json.loads(Path("clip.json").read_text())
    assert (settings["steps"], settings["cfg_scale"], settings["sampler"]) == (3, 1.5, "heun")


def test_other_conditions_are_given_by_key_and_times_are_known(generate, timed_model):
    status, (path,), _ = generate(timed_model, *BELL, "--cond", "genre=jazz", "--seconds", "0.2")
    conditions = json.loads(path.with_suffix(".json").read_text())["conditions"]
    assert status == 0 and load_audio(path)[0].shape == (1, 1600)
    assert conditions == {"genre": "jazz", "seconds_start": 0, "seconds_total": 0.2}
    _, (path,), _ = generate(timed_model, *BELL, "--cond", "genre=rock", "--cond", "seconds_start=1.5", "--cond", "seconds_total=9")
    conditions = json.loads(path.with_suffix(".json").read_text())["conditions"]
    assert conditions == {"genre": "rock", "seconds_start": 1.5, "seconds_total": 9}


def test_a_model_that_knows_durations_makes_a_whole_clip_and_cuts_it(generate, timed_model):
    def audio(seconds):
        seed = ["--seed", "0", "--cond", "genre=jazz", "--cond", "seconds_total=0.1", "--normalize", "never"]
        return load_audio(generate(timed_model, *BELL, *seed, "--seconds", seconds)[1][0])[0]

    torch.testing.assert_close(audio("0.1"), audio("0.256")[:, :800], rtol=0, atol=1e-4)


def test_a_condition_that_counts_seconds_gets_whole_ones(tmp_path, generate):
    model = saved(tmp_path / "model.safetensors", ("seconds_total", {"type": "int", "config": {"min_val": 0, "max_val": 60}}))
    _, (path,), _ = generate(model, *BELL, "--seconds", "0.2")
    assert json.loads(path.with_suffix(".json").read_text())["conditions"] == {"seconds_total": 1}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "its conditions are prompt; missing: prompt\n  = add --prompt TEXT"),
        (["--prompts-file", "none.txt"], "--prompts-file none.txt: cannot be read: No such file or directory"),
        (["--prompts-file", "empty.txt"], "--prompts-file empty.txt: has no prompt; write one a line"),
        (["--prompts-file", "latin.txt"], "--prompts-file latin.txt: cannot be read: it is not UTF-8 text"),
        ([*BELL, "--cond", "genre"], "--cond: expected KEY=VALUE, got 'genre'"),
        ([*BELL, "--cond", "genre=jazz"], "--cond genre: the model has no such condition"),
        ([*BELL, "--cond", "prompt=x"], "--cond prompt: given by --prompt too"),
        ([*BELL, "--sampler", "eulr"], "sampler: unknown sampler 'eulr'\n  = did you mean \"euler\"?"),
        ([*BELL, "--sampler", "v-ddim"], "sampler 'v-ddim' does not fit the objective 'rectified_flow'"),
        ([*BELL, "--negative-prompt", "x", "--cfg-scale", "1"], "--negative-prompt: acts through guidance, and --cfg-scale 1 is none"),
        ([*BELL, "--init-noise-level", "0.5"], "--init-noise-level: says how far to go from --init-audio, which is missing"),
        ([*BELL, "--init-audio", "none.wav"], "none.wav: no such file"),
        ([*BELL, "--init-audio", "empty.txt"], "empty.txt"),
        ([*BELL, "--inpaint-audio", "none.wav"], "--inpaint-audio: needs --mask, which says what to make anew"),
        ([*BELL, "--mask", "0:1"], "--mask: needs --inpaint-audio, of which it is a part"),
        ([*BELL, "--mask", "1:1"], "expected START:END in seconds, such as 1.5:3, got '1:1'"),
        ([*BELL, "--mask", "now:then"], "expected START:END in seconds"),
        ([*BELL, "--inpaint-audio", "none.wav", "--mask", "0:1"], "none.wav: no such file"),
        ([*BELL, "--init-noise-level", "0"], "expected a number above 0, at most 1, got '0'"),
        ([*BELL, "--seconds", "0"], "expected a number above 0, got '0'"),
        ([*BELL, "--seconds", "long"], "expected a number above 0, got 'long'"),
        ([*BELL, "--steps", "0"], "expected a whole number of 1 or more, got '0'"),
        ([*BELL, "--seed", "-1"], "expected a whole number of 0 or more, got '-1'"),
        ([*BELL, "--cfg-scale", "nan"], "expected a number, got 'nan'"),
        (
            [*BELL, "--out", "clip.m4a"],
            "--out clip.m4a: cannot write .m4a files; name one that ends in .wav, .flac, .ogg, .mp3, or a folder",
        ),
        ([*BELL, *BELL, "--out", "clip.wav"], "--out clip.wav: one file for 2 clips; name a folder"),
        ([*BELL, "--out", "folder.wav"], "--out folder.wav: this is a folder"),
        ([*BELL, "--out", "taken.wav"], "its settings would replace taken.json; choose another name"),
        ([*BELL, "--out", "empty.txt/sub"], "empty.txt is a file"),
        ([*BELL, "--promt", "x"], "--promt"),
    ],
    ids=str,
)
def test_bad_input_is_told_in_one_message(generate, model, tmp_path, arguments, message):
    Path("empty.txt").write_text("\n")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("taken.json").write_text("{}")
    Path("folder.wav").mkdir()
    before = sorted(tmp_path.rglob("*"))
    status, written, err = generate(model, *arguments)
    assert status == 2 and message in err and "Traceback" not in err
    assert not written and sorted(tmp_path.rglob("*")) == before


def test_what_the_model_needs_is_told_all_at_once(generate, timed_model):
    status, _, err = generate(timed_model, "--cond", "gnre=jazz")
    assert status == 2
    assert "its conditions are prompt, seconds_start, seconds_total, genre; missing: prompt, genre" in err
    assert "add --prompt TEXT --cond genre=VALUE" in err
    assert "--cond gnre: the model has no such condition\n" in err and 'did you mean "genre"?' in err


def test_a_wrong_value_of_a_condition_is_told(generate, timed_model):
    status, _, err = generate(timed_model, *BELL, "--cond", "genre=jazz", "--cond", "seconds_total=long")
    assert status == 2 and "seconds_total" in err and "Traceback" not in err


def test_a_model_of_another_kind_is_told(generate, tmp_path):
    config = configs.autoencoder()
    save_model(tmp_path / "ae.safetensors", create_model_from_config(config), config)
    status, _, err = generate(str(tmp_path / "ae.safetensors"), *BELL)
    assert status == 2 and "an autoencoder makes sounds of sounds\n  = --reconstruct FILE encodes and decodes one" in err


@pytest.fixture(scope="module")
def inpainting_model(models):
    return models("inpainting")


@pytest.fixture(scope="module")
def unconditional_model(models):
    return models("unconditional")


def test_parts_of_a_sound_are_made_anew(generate, inpainting_model):
    save_audio(Path("tone.wav"), torch.sin(torch.arange(2048) * 0.1)[None] / 2, 8000)

    def audio(*arguments):
        status, (path,), err = generate(inpainting_model, *BELL, "--seed", "3", "--out", "clip.wav", *arguments)
        assert status == 0, err
        return load_audio(path)[0], json.loads(path.with_suffix(".json").read_text())

    anew, settings = audio()
    assert "inpaint_audio" not in settings and "mask" not in settings
    part, settings = audio("--inpaint-audio", "tone.wav", "--mask", "0.1:0.2", "--mask", "0.22:9")
    assert settings["inpaint_audio"] == "tone.wav" and settings["mask"] == ["0.1:0.2", "0.22:9"]
    other, _ = audio("--inpaint-audio", "tone.wav", "--mask", "0.1:0.15")
    assert not torch.allclose(anew, part) and not torch.allclose(part, other)


def test_a_mask_behind_the_end_or_for_a_model_without_masks_is_told(generate, inpainting_model, model):
    save_audio(Path("tone.wav"), torch.zeros(1, 2048), 8000)
    status, _, err = generate(inpainting_model, *BELL, "--inpaint-audio", "tone.wav", "--mask", "1:2")
    assert status == 2 and "--mask 1:2: the clip ends at 0.256 s\n  = --seconds makes it longer" in err
    status, _, err = generate(model, *BELL, "--inpaint-audio", "tone.wav", "--mask", "0:1")
    assert status == 2 and "--inpaint-audio: the model makes whole clips: it was not trained to inpaint" in err


def test_a_model_without_conditions_generates(generate, unconditional_model):
    status, (path,), err = generate(unconditional_model, "--seed", "3", "--seconds", "0.1")
    assert status == 0, err
    assert path.name == "clip_seed3.wav" and load_audio(path)[0].shape == (1, 800)
    settings = json.loads(path.with_suffix(".json").read_text())
    assert settings["sampler"] == "v-ddim" and "cfg_scale" not in settings and "prompt" not in settings


@pytest.mark.parametrize(
    "arguments, message",
    [
        (BELL, "--prompt: the model has no condition of that name\n  = its conditions: none"),
        (["--cond", "pitch=3"], "--cond pitch: the model has no such condition"),
        (["--cfg-scale", "3"], "--cfg-scale: the model has no conditions to guide by"),
        (["--negative-prompt", "x"], "--negative-prompt: the model has no prompt to guide away from"),
    ],
    ids=["prompt", "cond", "cfg", "negative"],
)
def test_conditions_for_a_model_without_are_told(generate, unconditional_model, arguments, message):
    status, written, err = generate(unconditional_model, *arguments)
    assert status == 2 and not written and message in err


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_model_that_is_not_there_is_told(generate, tmp_path, name):
    (tmp_path / "empty").mkdir()
    status, _, err = generate(name, *BELL)
    assert status == 2 and name in err and "Traceback" not in err


def test_the_help_does_not_load_torch():
    parser = "generate.configure(argparse.ArgumentParser())"
    code = f"import argparse, sys; from stable_audio_tools.cli import generate; {parser}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def lora(path, model, layer="model.transformer.layers.0.self_attn.to_qkv"):
    """An adapter of rank 2, as Stable Audio 3 saves it."""
    weight = load_weights(model).state_dict[f"model.{layer}.weight"]
    generator = torch.Generator().manual_seed(0)
    parts = {"lora_A": torch.randn(2, weight.shape[1], generator=generator), "lora_B": torch.randn(weight.shape[0], 2, generator=generator)}
    named = {f"{layer}.parametrizations.weight.0.{name}": part for name, part in parts.items()}
    save_file(named, path, {"lora_config": '{"rank": 2, "alpha": 2}'})
    return str(path)


def test_an_adapter_changes_what_is_made_and_strength_zero_does_not(generate, model):
    def audio(*adapters):
        return load_audio(generate(model, *BELL, "--seed", "0", "--out", "clip.wav", *adapters)[1][0])[0]

    file = lora("style.safetensors", model)
    plain, whole, half, none = audio(), audio("--adapter", file), audio("--adapter", f"{file}:0.5"), audio("--adapter", f"{file}:0")
    assert torch.equal(plain, none)
    assert not torch.equal(plain, whole) and not torch.equal(whole, half)
    twice = audio("--adapter", f"{file}:0.25", "--adapter", f"{file}:0.25")
    torch.testing.assert_close(twice, half, atol=1e-4, rtol=0)
    assert json.loads(Path("clip.json").read_text())["adapters"] == [f"{file}:0.25"] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.safetensors", "missing.safetensors: no such file"),
        ("style.safetensors:inf", "the strength must be a finite number"),
        ("other.safetensors", "an adapter of another model: 1 not in this model"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_told(generate, model, name, message):
    lora("style.safetensors", model)
    other = {key.replace("layers.0", "layers.9"): value for key, value in load_file("style.safetensors").items()}
    save_file(other, "other.safetensors", {"lora_config": "{}"})
    status, made, err = generate(model, *BELL, "--adapter", name)
    assert (status, made) == (2, []) and message in err
