"""What `generate` writes: formats, levels, settings that make the same clip again, and what is left when it is stopped."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from stable_audio_tools.audio.io import load_audio, probe
from stable_audio_tools.audio.loudness import loudness_lufs
from stable_audio_tools.cli.generate import levels
from stable_audio_tools.cli.main import main

BELL = ["--prompt", "a bell", "--steps", "2", "--seed", "0"]


def settings(path):
    return json.loads(Path(path).with_suffix(".json").read_text())


@pytest.fixture
def made(generate, models):
    """Runs the command on the text-to-audio model; gives the file."""

    def call(*arguments):
        status, paths, err = generate("--model", models("text_to_audio"), *BELL, *arguments)
        assert status == 0, err
        return paths[0]

    return call


@pytest.mark.parametrize(
    "arguments, container, codec",
    [
        ([], "WAV", "PCM_16"),
        (["--bits", "24"], "WAV", "PCM_24"),
        (["--bits", "32"], "WAV", "FLOAT"),
        (["--format", "flac"], "FLAC", "PCM_16"),
        (["--format", "flac", "--bits", "24"], "FLAC", "PCM_24"),
        (["--format", "ogg"], "OGG", "VORBIS"),
        (["--format", "mp3"], "MP3", "MPEG_LAYER_III"),
        (["--out", "clip.mp3"], "MP3", "MPEG_LAYER_III"),
    ],
    ids=str,
)
def test_every_format_holds_the_clip_at_its_length(made, arguments, container, codec):
    path = made("--seconds", "0.2", *arguments)
    info = probe(path)
    assert (info.container, info.codec, info.frames, info.sample_rate) == (container, codec, 1600, 8000)
    assert settings(path)["format"] == path.suffix[1:] and ("bits" in settings(path)) == (codec not in ("VORBIS", "MPEG_LAYER_III"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bits", "24", "--format", "mp3"], "--bits 24: .mp3 files have no bit depth\n  = leave it out, or choose another format"),
        (["--bits", "32", "--out", "clip.flac"], "--bits 32: .flac has 16 or 24"),
        (["--bits", "20"], "invalid choice: 20"),
        (["--format", "wav", "--out", "clip.mp3"], "--out clip.mp3: ends in .mp3, and --format is wav\n  = leave --format out"),
        (["--format", "aac"], "invalid choice: 'aac'"),
        (["--device", "tpu"], "expected auto, cpu, cuda, cuda:1 (the second GPU) or mps, got 'tpu'"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--skip-existing"], "--skip-existing: clips are known again by their seeds, and some have none\n  = add --seed"),
        (["--from-settings", "none.json"], "none.json: no such file"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_told(generate, models, arguments, message):
    status, paths, err = generate("--model", models("text_to_audio"), "--prompt", "a", *arguments)
    assert (status, paths) == (2, []) and message in err and "Traceback" not in err and not list(Path().iterdir())


def test_a_rate_that_mp3_lacks_is_told_before_anything_is_made(generate, saved):
    import configs

    config = {**configs.text_to_audio(), "sample_rate": 9000}
    status, paths, err = generate("--model", saved(config), *BELL, "--out", "clip.mp3")
    assert (status, paths) == (2, []) and "--out clip.mp3: MP3 has no sample rate of 9000 Hz; choose .wav or .flac" in err


SIGNAL = 1.5 * torch.sin(torch.arange(8000) * 0.3)[None]


@pytest.mark.parametrize(
    "scale, normalize, peak, gain",
    [(1, "over", 1.0, True), (0.5, "over", 0.75, False), (0.5, "always", 1.0, True), (1, "never", 1.5, False), (0, "always", 0.0, False)],
)
def test_what_becomes_of_the_peak(scale, normalize, peak, gain):
    audio, facts = levels.levelled(SIGNAL * scale, 8000, normalize=normalize, loudness=None)
    assert float(audio.abs().max()) == pytest.approx(peak, abs=1e-3)
    assert facts["peak"] == pytest.approx(1.5 * scale, abs=1e-3) and ("gain_db" in facts) == gain


def test_loudness_is_reached_and_silence_stays(made):
    audio, facts = levels.levelled(SIGNAL, 8000, normalize="over", loudness=-23.0)
    assert loudness_lufs(audio, 8000) == pytest.approx(-23, abs=0.01) and facts["gain_db"] < 0
    silence, facts = levels.levelled(SIGNAL * 0, 8000, normalize="over", loudness=-23.0)
    assert not silence.any() and facts == {"peak": 0.0}
    quiet, loud = (load_audio(made("--loudness", level, "--bits", "32"))[0] for level in ("-40", "-30"))
    torch.testing.assert_close(quiet * 10**0.5, loud, rtol=1e-4, atol=1e-6)


def test_a_clip_over_full_scale_is_scaled_and_says_by_how_much(made):
    floats = load_audio(made("--bits", "32", "--normalize", "never"))[0]
    peak = float(floats.abs().max())
    assert peak > 1
    path = made()
    result = settings(path)["result"]
    torch.testing.assert_close(load_audio(path)[0], floats / peak, atol=2**-15, rtol=0)
    assert result["peak"] == pytest.approx(peak, abs=1e-3) and 10 ** (result["gain_db"] / 20) == pytest.approx(1 / peak, abs=1e-3)
    assert settings(made("--normalize", "never"))["result"]["clipped"] == int((floats.abs() > 1).sum())


REPEATED = {
    "text_to_audio": [
        *("--prompt", "a bell, “soft”", "--negative-prompt", "noise", "--cfg-scale", "4.25", "--cfg-interval", "0.1:0.9"),
        *("--cfg-rescale", "0.3", "--apg-scale", "0.5", "--apg-momentum", "-0.25", "--cfg-norm-threshold", "2.5", "--no-batch-cfg"),
        *("--sampler", "dpmpp-2m-sde", "--sampler-option", "eta=0.5", "--steps", "3", "--seconds", "0.1234", "--format", "flac"),
        *("--bits", "24", "--init-audio", "tone.wav", "--init-noise-level", "0.35", "--loudness", "-20", "--precision", "bf16"),
    ],
    "inpainting": ["--prompt", "a bell", "--inpaint-audio", "tone.wav", "--mask", "0.0123456789:0.1", "--mask", "0.2:9", "--steps", "2"],
    "unconditional": ["--steps", "2", "--sampler-option", "eta=1", "--normalize", "never"],
    "language_model": ["--prompt", "a bell", "--temperature", "0.7", "--top-p", "0.6", "--cfg-scale", "2", "--continue-from", "tone.wav"],
    "autoencoder": ["--reconstruct", "tone.wav", "--latent-noise", "0.25", "--bits", "32"],
    "diffusion_autoencoder": ["--reconstruct", "tone.wav", "--steps", "3"],
}


QUICK = ("text_to_audio", "autoencoder")


@pytest.mark.parametrize("kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in REPEATED])
def test_the_settings_beside_a_clip_make_it_again_bit_for_bit(generate, models, kind):
    channels = 2 if kind == "autoencoder" else 1
    soundfile.write("tone.wav", (0.5 * torch.sin(torch.arange(1000) * 0.1)).expand(channels, -1).T.numpy(), 8000)
    _, (first,), err = generate("--model", models(kind), *REPEATED[kind])
    _, (again,), err = generate("--from-settings", str(first.with_suffix(".json")), "--out", "again")
    assert first.read_bytes() == again.read_bytes(), err
    assert settings(first) == settings(again)
    other = ["--steps", "1"] if kind in ("text_to_audio", "inpainting", "unconditional", "diffusion_autoencoder") else ["--seed", "99"]
    _, (changed,), err = generate("--from-settings", str(first.with_suffix(".json")), "--out", "changed", *other)
    assert first.read_bytes() != changed.read_bytes(), err


def test_settings_tell_whether_the_weights_are_still_the_same(generate, saved, tmp_path, caplog):
    import configs

    file, other = Path(saved(configs.unconditional())), configs.unconditional()
    other["model"]["config"]["depth"] = 1
    shutil.copy(file, "model.safetensors")
    arguments = ["--model", "model.safetensors", "--steps", "1", "--seed", "0", "--out", "clips"]
    _, (path,), _ = generate(*arguments)
    generate("--from-settings", str(path.with_suffix(".json")), "--out", "again.wav")
    assert "the weights are others" not in caplog.text
    shutil.copy(saved(other), "model.safetensors")
    generate("--from-settings", str(path.with_suffix(".json")), "--out", "again.wav")
    assert "the weights are others than those that made the clip, so this one will differ" in caplog.text
    status, _, err = generate(*arguments, "--skip-existing")
    assert status == 2 and "is there, made with weights " in err


@pytest.mark.slow
def test_another_prompt_or_way_to_draw_takes_the_place_of_that_of_the_settings(generate, models):
    _, (first,), _ = generate("--model", models("text_to_audio"), *BELL)
    beside = str(first.with_suffix(".json"))
    Path("list.txt").write_text("a saw\na sine\n")
    _, paths, _ = generate("--from-settings", beside, "--prompts-file", "list.txt")
    assert [path.name for path in paths] == ["a_saw_seed0.wav", "a_sine_seed1.wav"] and settings(paths[0])["steps"] == 2
    _, (first,), _ = generate("--model", models("text_to_audio"), "--prompt", "a", "--steps", "1", "--seed", "7", "--out", "seeds")
    _, (path,), _ = generate("--from-settings", str(first.with_suffix(".json")), "--seed", "0", "--cfg-scale", "0", "--out", "seeds")
    assert (settings(path)["seed"], settings(path)["cfg_scale"]) == (0, 0.0)
    _, (path,), _ = generate("--from-settings", beside, "--out", "clip.mp3")
    assert settings(path)["format"] == "mp3"
    _, (first,), _ = generate("--model", models("language_model"), "--prompt", "a", "--top-p", "0.5", "--out", "lm")
    _, (path,), _ = generate("--from-settings", str(first.with_suffix(".json")), "--top-k", "3", "--out", "other")
    assert settings(path)["top_k"] == 3 and "top_p" not in settings(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"model": "x", "stepz": 3}', '--from-settings clip.json: stepz: no such setting\n  = did you mean "steps"?'),
        (
            '{"model": "x", "steps": "many"}',
            "--from-settings clip.json: argument --steps: expected a whole number of 1 or",
        ),
        ('{"prompt": "a"}', "generate: --model is missing\n  = name a run's folder, or a file of weights"),
        ("[]", "clip.json: expected an object"),
    ],
)
def test_settings_that_are_none_are_told(generate, text, message):
    Path("clip.json").write_text(text)
    status, _, err = generate("--from-settings", "clip.json")
    assert status == 2 and message in err and "Traceback" not in err


def test_an_interrupted_list_goes_on_where_it_stopped(generate, models, monkeypatch, capsys):
    from stable_audio_tools.cli.generate import makers

    Path("list.txt").write_text("one\ntwo\nthree\n")
    arguments = ["--model", models("text_to_audio"), "--prompts-file", "list.txt", "--seed", "4", "--steps", "2", "--batch-size", "1"]
    make, calls = makers.DiffusionMaker.make, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(*given)

    with monkeypatch.context() as patch:
        patch.setattr(makers.DiffusionMaker, "make", interrupted)
        status, paths, err = generate(*arguments)
    assert status == 130 and [path.name for path in paths] == ["one_seed4.wav", "two_seed5.wav"] and "error: interrupted" in err
    before = {path: path.stat().st_mtime_ns for path in paths}
    status, paths, _ = generate(*arguments, "--skip-existing")
    assert status == 0 and [path.name for path in paths] == ["three_seed6.wav"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert generate(*arguments, "--skip-existing")[:2] == (0, [])


def test_clips_of_other_settings_are_not_taken_for_finished(generate, models):
    arguments = ["--model", models("text_to_audio"), *BELL]
    generate(*arguments)
    status, _, err = generate(*arguments, "--steps", "3", "--skip-existing")
    assert status == 2 and "a_bell_seed0.wav is there, made with steps 2, and 3 is asked for\n  = choose another --out, or remove it" in err
    Path("generated/a_bell_seed0.json").unlink()
    status, _, err = generate(*arguments, "--skip-existing")
    assert status == 2 and "a_bell_seed0.wav is there without its settings" in err


def test_running_out_of_memory_is_told_with_what_helps(generate, models):
    Path("list.txt").write_text("one\ntwo\n")
    status, paths, err = generate(
        "--model", models("text_to_audio"), "--prompts-file", "list.txt", "--seconds", "1e12"
    )  # beyond what any machine can address
    assert (status, paths) == (1, []) and "error: out of memory: " in err and "Traceback" not in err
    assert "= try a smaller --batch-size, a shorter --seconds, --precision bf16" in err


def test_a_training_checkpoint_and_bare_weights_with_a_config_make_the_clip_of_the_export(generate, models, tmp_path):
    import configs

    from stable_audio_tools.models.checkpoints import load_weights

    weights = load_weights(models("text_to_audio")).state_dict
    content = {"state_dict": {f"diffusion.{key}": value for key, value in weights.items()}, "pytorch-lightning_version": "2.6"}
    torch.save({**content, "model_config": configs.text_to_audio()}, "training.ckpt")
    torch.save(content, "peer.ckpt")
    Path("config.json").write_text(json.dumps(configs.text_to_audio()))
    clips = []
    for model in ([models("text_to_audio")], ["training.ckpt"], ["peer.ckpt", "--model-config", "config.json"]):
        status, (path,), err = generate("--model", *model, *BELL)
        assert status == 0, err
        clips.append(path.read_bytes())
    assert clips[0] == clips[1] == clips[2]
    status, _, err = generate("--model", "peer.ckpt", *BELL)
    assert status == 2 and "peer.ckpt: carries no model config\n  = put its config beside it as model_config.json" in err


@pytest.mark.parametrize("text", ["README", "\x80nothing"])
def test_what_is_no_model_is_told(generate, text):
    Path("model.safetensors").write_text(text)
    for name in ("model.safetensors", "nowhere.safetensors"):
        status, _, err = generate("--model", name, *BELL)
        assert status == 2 and f"error: {name}: " in err and "\n  = " in err and "Traceback" not in err


def test_clips_longer_than_those_of_training_are_pointed_out(made, caplog):
    made("--seconds", "1")
    assert "1 s are longer than the clips of 0.256 s that the model was trained on" in caplog.text


def test_main_shows_progress_on_a_terminal(monkeypatch, models, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["generate", "--device", "cpu", "--model", models("text_to_audio"), *BELL]) == 0
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert any(text.startswith("clip 1 of 1, step 2 of 2, about 0 s left") for text in shown) and shown[-1] == ""


@pytest.mark.parametrize(
    "prompt", ["../../up", "`touch owned`; $(touch owned) | x", "/etc/passwd", "..", "\\\\host\\share", "音" * 90, "\x00\n"]
)
def test_a_prompt_names_a_file_inside_the_folder_and_nothing_else(generate, models, tmp_path, prompt):
    Path("list.jsonl").write_text(json.dumps({"prompt": prompt}))
    arguments = ["--steps", "1", "--seed", "0", "--format", "mp3", "--out", "clips"]
    status, (path,), err = generate("--model", models("text_to_audio"), "--prompts-file", "list.jsonl", *arguments)
    assert status == 0 and path.resolve().parent == tmp_path / "clips", err
    assert {file.name for file in tmp_path.iterdir()} == {"list.jsonl", "clips"} and len(list(path.parent.iterdir())) == 2
    assert settings(path)["prompt"] == prompt
