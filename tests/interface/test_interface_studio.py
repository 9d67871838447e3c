"""What the page does, without a browser: clips of every kind of model, in a folder of each visitor, that the command line repeats."""

import json
import logging
from pathlib import Path

import pytest
import torch
from interface_models import MODELS, run_of
from safetensors.torch import save_file

from stable_audio_tools.audio.io import load_audio
from stable_audio_tools.cli.main import main
from stable_audio_tools.cli.ui import loopback
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.interface.failures import OUT_OF_MEMORY, Stopped, sentence
from stable_audio_tools.interface.shelf import Shelf, Wanted, find_adapters, find_models
from stable_audio_tools.interface.studio import Studio, shown
from stable_audio_tools.models.checkpoints import load_weights

QUICK = {"steps": 2, "seed": 5}


def path_of(studio, name):
    return str(studio.runs / name / "exports" / "model.safetensors")


def silent(what, share):
    """Told of progress."""


def made(studio, name, values, visitor="someone"):
    (column,) = studio.make([Wanted(path_of(studio, name))], values, studio.visitor(visitor), silent)
    return column.clips


def samples(clip):
    return load_audio(clip.audio)[0]


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("name", "values", "seconds"),
    [
        ("text", {**QUICK, "conditions.prompt": "a bell", "negative_prompt": "noise"}, 0.256),
        *slow(
            ("text", {**QUICK, "init_audio": "sent", "init_noise_level": 0.4, "seconds": 0.1}, 0.1),
            ("conditioned", {**QUICK, "conditions.tempo": 90, "conditions.seconds_total": 1}, 0.256),
            ("inpainting", {**QUICK, "inpaint_audio": "sent", "region": {"start": 0.05, "end": 0.1}}, 0.256),
            ("inpainting", QUICK, 0.256),
            ("told", {**QUICK, "inpaint_audio": "sent", "region": {"start": 0.05, "end": 0.1}}, 0.256),
            ("unconditional", {**QUICK, "sampler": "heun"}, 0.256),
            ("autoencoder", {"audio": "sent", "seed": 5, "latent_noise": 0.1}, 0.2),
            ("diffusion_autoencoder", {"audio": "sent", **QUICK}, 0.2),
            ("language", {"conditions.prompt": "a bell", "seed": 5, "init_audio": "sent", "top_k": 4}, 0.256),
        ),
    ],
)
@pytest.mark.slow
def test_a_clip_of_every_kind_is_made_and_the_command_line_repeats_it(studio, sent, tmp_path, monkeypatch, name, values, seconds):
    (clip,) = made(studio, name, {key: sent if value == "sent" else value for key, value in values.items()})
    audio = samples(clip)
    assert audio.shape[-1] == round(seconds * 8000) and audio.abs().max() > 0
    assert clip.picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--device", "cpu", "--from-settings", str(clip.audio.with_suffix(".json")), "--out", "again.wav"]) == 0
    assert Path("again.wav").read_bytes() == clip.audio.read_bytes()


def test_each_clip_of_several_is_the_one_its_seed_makes_alone(studio):
    together = made(studio, "text", {**QUICK, "clips": 3, "conditions.prompt": "a saw"})
    assert [clip.settings["seed"] for clip in together] == [5, 6, 7]
    (alone,) = made(studio, "text", {**QUICK, "seed": 7, "conditions.prompt": "a saw"})
    torch.testing.assert_close(samples(alone), samples(together[2]), rtol=0, atol=1e-4)


def test_visitors_write_into_folders_of_their_own_and_nowhere_else(studio, tmp_path, monkeypatch):
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    clips = [made(studio, "text", QUICK, visitor)[0] for visitor in ("../../one", "two", "../../one")]
    assert len({clip.audio for clip in clips}) == 3
    assert clips[0].audio.parent == clips[2].audio.parent != clips[1].audio.parent
    assert all(clip.audio.parent.parent == studio.out for clip in clips)
    assert clips[2].audio.name == "clip_seed5_2.wav"  # never over an earlier one
    assert not [*empty.iterdir()]


def test_two_models_are_compared_with_one_seed(studio):
    wanted = [Wanted(path_of(studio, "text")), Wanted(path_of(studio, "inpainting"))]
    columns = studio.make(wanted, {"steps": 2, "seed": -1, "conditions.prompt": "a bell"}, studio.visitor("x"), silent)
    assert [column.title for column in columns] == ["text · model", "inpainting · model"]
    assert len({column.clips[0].settings["seed"] for column in columns}) == 1
    assert not torch.equal(*(samples(column.clips[0]) for column in columns))
    named = [clip["audio"] for column in shown(columns, studio.out) for clip in column["clips"]]
    assert all((studio.out / name).is_file() for name in named)


def test_a_model_that_cannot_take_the_settings_is_told_by_name(studio):
    wanted = [Wanted(path_of(studio, "text")), Wanted(path_of(studio, "unconditional"))]
    with pytest.raises(ConfigError) as raised:
        studio.make(wanted, {**QUICK, "conditions.prompt": "a bell"}, studio.visitor("x"), silent)
    assert str(raised.value).startswith(
        f"{path_of(studio, 'unconditional')} does not take these settings: conditions.prompt: there is nothing"
    )
    untouched = {**QUICK, "conditions.prompt": "", "cfg_scale": 3.0, "negative_prompt": "", "scale_phi": None}
    assert len(studio.make(wanted, untouched, studio.visitor("x"), silent)) == 2


def adapter_of(model, path, layer="model.transformer.layers.0.self_attn.to_qkv"):
    """An adapter of rank 2, as Stable Audio 3 saves it."""
    weight = load_weights(model).state_dict[f"model.{layer}.weight"]
    generator = torch.Generator().manual_seed(0)
    parts = {"lora_A": torch.randn(2, weight.shape[1], generator=generator), "lora_B": torch.randn(weight.shape[0], 2, generator=generator)}
    named = {f"{layer}.parametrizations.weight.0.{name}": part for name, part in parts.items()}
    save_file(named, path, {"lora_config": '{"rank": 2, "alpha": 2}'})
    return str(path)


@pytest.mark.slow
def test_an_adapter_is_offered_and_merged_by_its_strength(tmp_path):
    model = run_of(tmp_path / "runs", "base", MODELS["text"]())
    adapter = adapter_of(model, tmp_path / "runs" / "base" / "exports" / "adapter.safetensors")
    studio = Studio(Shelf(), tmp_path / "runs", tmp_path / "out")
    assert [choice.path for choice in find_adapters(studio.runs)] == [adapter]
    assert [choice.label for choice in find_models(studio.runs)] == ["base · model"]
    wanted = [Wanted(model), Wanted(model, ((adapter, 0.0),)), Wanted(model, ((adapter, 0.5),))]
    plain, none, half = studio.make(wanted, QUICK, studio.visitor("x"), silent)
    assert torch.equal(samples(plain.clips[0]), samples(none.clips[0]))
    assert not torch.equal(samples(plain.clips[0]), samples(half.clips[0]))
    assert half.title == "base · model + base · adapter 0.5" and "at strength 0.5" in half.notes[0]
    assert half.clips[0].settings["adapters"] == [f"{adapter}:0.5"]


@pytest.mark.slow
def test_one_model_stays_in_memory_and_a_file_that_was_written_anew_is_read_again(tmp_path):
    paths = [run_of(tmp_path, name, MODELS["text"]()) for name in ("a", "b")]
    shelf, read = Shelf(), []
    for path in (paths[0], paths[0], paths[1], paths[0]):
        with shelf.lent(Wanted(path), read.append) as opened:
            assert opened.wanted.model == path
    assert len(read) == 3  # one stayed
    run_of(tmp_path, "a", MODELS["inpainting"]())
    with shelf.lent(Wanted(paths[0]), read.append) as opened:
        assert opened.config.model_type == "diffusion_cond_inpaint"
    two, read = Shelf(keep=2), []
    for path in (*paths, *paths):
        with two.lent(Wanted(path), read.append):
            pass
    assert len(read) == 2


def test_a_visitor_can_stop_at_the_next_step_and_begin_again(studio):
    visitor, steps = studio.visitor("x"), []

    def say(what, share):
        steps.append(what)
        if what.startswith("step"):
            visitor.stop.set()

    with pytest.raises(Stopped):
        studio.make([Wanted(path_of(studio, "text"))], {"steps": 50}, visitor, say)
    assert steps[-1] == "step 1 of 50"
    studio.leave("x")
    assert len(made(studio, "text", QUICK, "x")) == 1


def test_nothing_but_what_is_offered_is_opened_and_nothing_but_what_was_sent_is_heard(studio, tone, runs, tmp_path):
    elsewhere = run_of(tmp_path / "other", "hidden", MODELS["text"]())
    for wanted in (Wanted(elsewhere), Wanted(path_of(studio, "text"), ((str(tmp_path / "adapter.safetensors"), 1.0),))):
        with pytest.raises(ConfigError, match="this is not offered here"):
            studio.make([wanted], QUICK, studio.visitor("x"), silent)
    with pytest.raises(ConfigError, match="this is not offered here"):
        studio.form(elsewhere)
    with pytest.raises(ConfigError, match="this sound was not sent to the page, nor made by it"):
        made(studio, "text", {**QUICK, "init_audio": str(tone)})
    free = Studio(studio.shelf, runs, tmp_path / "out", any_path=True)
    assert free.form(elsewhere).work == "diffusion"


def test_clips_can_be_had_in_other_formats_and_no_other_file_can(studio, tmp_path):
    (clip,) = made(studio, "text", QUICK)
    name = clip.audio.relative_to(studio.out).as_posix()
    for form in ("flac", "mp3", "ogg"):
        audio, rate = load_audio(studio.converted(name, form))
        assert rate == 8000 and abs(audio.shape[-1] - 2048) <= (0 if form != "mp3" else 2 * 1152)
    assert torch.equal(load_audio(studio.converted(name, "flac"))[0], samples(clip))
    (tmp_path / "secret.wav").write_bytes(clip.audio.read_bytes())
    for bad in ("../secret.wav", str(tmp_path / "secret.wav"), "missing.wav", name.replace(".wav", ".json")):
        with pytest.raises(ConfigError, match="there is no such clip"):
            studio.converted(bad, "flac")
    with pytest.raises(ConfigError, match="there is no such clip"):
        studio.converted(name, "exe")


def test_a_prompt_is_no_part_of_a_path(studio):
    (clip,) = made(studio, "text", {**QUICK, "conditions.prompt": "../../etc/; rm -rf $(x) `y` ü"})
    assert clip.audio.parent.parent == studio.out and clip.audio.name == "etc_rm_rf_x_y_ü_seed5.wav"
    assert json.loads(clip.audio.with_suffix(".json").read_text())["prompt"] == "../../etc/; rm -rf $(x) `y` ü"


def test_checkpoints_of_a_run_are_offered_newest_first(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for step in range(7):
        (tmp_path / "run" / "checkpoints" / f"step={step:08}.ckpt").touch()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "notes").mkdir()
    labels = [choice.label for choice in find_models(tmp_path, ["mine.safetensors"])]
    assert labels == ["mine.safetensors", *(f"run · checkpoint, step {step:08}" for step in (6, 5, 4, 3, 2))]
    assert find_models(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("no such file", "x.wav"), "x.wav: no such file"),
        (ValueError("seconds must be above 0"), "seconds must be above 0"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), OUT_OF_MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"), OUT_OF_MEMORY),
        (MemoryError(), OUT_OF_MEMORY),
        (OSError(28, "No space left on device"), "The disk is full"),
        (Stopped(), "Stopped."),
        (KeyError("x"), "This failed in a way that the page did not expect (KeyError: 'x')"),
    ],
)
def test_errors_are_sentences(error, said, caplog):
    with caplog.at_level(logging.ERROR):
        assert sentence(error).startswith(said)
    assert bool(caplog.records) == isinstance(error, KeyError)


def test_real_memory_errors_are_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert sentence(raised.value) == OUT_OF_MEMORY


def test_which_addresses_are_of_this_machine_alone():
    assert all(map(loopback, ("127.0.0.1", "127.0.1.1", "::1", "localhost")))
    assert not any(map(loopback, ("0.0.0.0", "::", "10.0.0.2", "my-machine")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--auth", "me"], "--auth: expected USER:PASSWORD"),
        (["--auth", ":x"], "--auth: expected USER:PASSWORD"),
        (["--out", "file.txt/below"], "--out file.txt/below: cannot make the folder"),
        (["--port", "0"], "expected a whole number of 1 or more"),
        (["--device", "tpu"], "expected auto, cpu, cuda"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_anything_opens(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("")
    assert main(["ui", *arguments]) == 2
    assert message in capsys.readouterr().err
