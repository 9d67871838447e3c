"""`pre-encode`: what it stores is what the encoder makes, exactly once, whatever stops it; and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import configs
import pytest
import torch
from audio_files import signal as tone
from audio_files import write

from stable_audio_tools.cli.main import main
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.latent_shards import open_shards, read_details
from stable_audio_tools.data.types import ItemKey
from stable_audio_tools.inference.latents import Chunks, LatentEncoder
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model

RATE, SIZE, RATIO = configs.SAMPLE_RATE, 2048, 16


def audio_folder(root: Path, count: int = 7, seconds: float = 1.0) -> Path:
    for number in range(count):
        write(root / f"{number}.wav", tone(seconds + number / 10, RATE, 2, number), RATE)
        (root / f"{number}.txt").write_text(f"clip {number}")
    return root


def autoencoder_file(folder: Path, seed: int = 0, **model: Any) -> tuple[Path, Any]:
    """Weights that carry their config, and the model."""
    torch.manual_seed(seed)
    document = configs.autoencoder()
    document["model"].update(model)
    built = create_model_from_config(document).eval()
    path = folder / f"vae{seed}.safetensors"
    save_model(path, built.state_dict(), document)
    return path, built


def written(path: Path, document: dict[str, Any]) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def audio_config(tmp_path: Path, audio: Path, **options: Any) -> str:
    return written(tmp_path / "audio.json", {"dataset_type": "audio_dir", "datasets": [{"id": "set", "path": str(audio)}], **options})


@pytest.fixture
def made(tmp_path):
    """A folder of audio, an autoencoder's file and itself, and the arguments of a pre-encoding of them."""
    audio = audio_folder(tmp_path / "audio")
    weights, model = autoencoder_file(tmp_path)
    arguments = ["pre-encode", "--model", str(weights), "--dataset-config", audio_config(tmp_path, audio, random_crop=False)]
    arguments += ["--output-path", str(tmp_path / "latents"), "--num-workers", "0", "--shard-items", "3", "--dtype", "float32"]
    return audio, model, arguments


def latents_of(*folders: Path, **options: Any) -> Any:
    datasets = [{"id": f"set {number}", "path": str(folder)} for number, folder in enumerate(folders)]
    return parse_dataset_config({"dataset_type": "pre_encoded", "datasets": datasets, **options}).build(
        sample_size=SIZE, sample_rate=RATE, audio_channels=2
    )


def on_the_fly(tmp_path: Path) -> Any:
    return parse_dataset_config(tmp_path / "audio.json").build(sample_size=SIZE, sample_rate=RATE, audio_channels=2)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_is_stored_is_what_the_encoder_makes(tmp_path, made, capsys, batch_size):
    _, model, arguments = made
    assert main([*arguments, "--latents", "mean", "--batch-size", str(batch_size), "--verify", "3"]) == 0
    assert "7 items in 3 shards" in (out := capsys.readouterr().out)
    assert "verified 3 items: the stored latents are as the encoder makes them now" in out and "SNR" in out and "MRSTFT" in out
    stored, audio = latents_of(tmp_path / "latents"), on_the_fly(tmp_path)
    assert len(stored) == len(audio) == 7
    for index in range(7):
        clip, sample = audio[index], stored[index]
        torch.testing.assert_close(sample.audio, model.encode(clip.audio[None], sample=False)[0], rtol=1e-4, atol=1e-5)
        assert sample.valid_length == -(-clip.valid_length // RATIO)
        for key in ("prompt", "path", "relpath", "seconds_start", "seconds_total", "sample_rate", "timestamps"):
            assert sample.metadata[key] == pytest.approx(clip.metadata[key]), key


def test_a_distribution_is_drawn_from_anew_at_each_visit_as_its_name_says(tmp_path, made):
    _, model, arguments = made
    assert main(arguments) == 0
    stored = latents_of(tmp_path / "latents")
    assert stored.folders[0].facts.distribution
    visits = [stored.visit(ItemKey(0, visit, 2)).audio for visit in range(400)]
    assert torch.equal(visits[3], stored.visit(ItemKey(0, 3, 2)).audio) and not torch.equal(visits[3], visits[4])
    mean, deviation = stored.folders[0].read(2, 0, 128).chunk(2)
    torch.testing.assert_close(mean, model.encode(on_the_fly(tmp_path)[2].audio[None], sample=False)[0], rtol=1e-4, atol=1e-5)
    draws = (torch.stack(visits) - mean) / deviation
    assert abs(float(draws.mean())) < 0.02 and abs(float(draws.std()) - 1) < 0.02


@pytest.mark.parametrize("kind", ["sample", "mean"])
def test_one_draw_or_the_mean_is_the_same_at_every_visit(tmp_path, made, kind):
    _, _, arguments = made
    assert main([*arguments, "--latents", kind, "--verify", "2"]) == 0
    stored = latents_of(tmp_path / "latents")
    assert stored.folders[0].facts.channels == 4 and not stored.folders[0].facts.distribution
    assert torch.equal(stored.visit(ItemKey(0, 0, 1)).audio, stored.visit(ItemKey(0, 1, 1)).audio)


@pytest.mark.slow
def test_several_crops_of_a_file_have_exact_times(tmp_path, made):
    audio, model, arguments = made
    audio_config(tmp_path, audio, random_crop=True)
    assert main([*arguments, "--crops", "3", "--latents", "mean", "--batch-size", "2", "--num-workers", "2"]) == 0
    stored = latents_of(tmp_path / "latents", exact_seconds=True)
    assert len(stored) == 21
    starts = set()
    for item in range(21):
        sample = stored[item]
        whole = torch.from_numpy(tone(1 + (item // 3) / 10, RATE, 2, item // 3).T.copy())
        start = round(sample.metadata["seconds_start"] * RATE)
        assert sample.metadata["seconds_start"] == start / RATE and sample.metadata["prompt"] == f"clip {item // 3}"
        starts.add((item // 3, start))
        again = model.encode(whole[None, :, start : start + SIZE], sample=False)[0]
        torch.testing.assert_close(sample.audio, again, rtol=1e-2, atol=1e-3)  # the file has 16 bits
    assert len(starts) == 21


def test_a_finished_folder_is_left_alone(tmp_path, made):
    _, _, arguments = made
    assert main(arguments) == 0
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "latents").glob("0*")}
    assert main(arguments) == 0
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "latents").glob("0*")} == before


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*"))}


def test_processes_share_the_work_and_torchrun_s_variables_are_heard(tmp_path, made, monkeypatch, capsys):
    _, _, arguments = made
    assert main(arguments) == 0
    alone = shard_bytes(tmp_path / "latents")
    arguments[arguments.index("--output-path") + 1] = str(tmp_path / "shared")
    for rank, shards in ((1, 1), (0, 3)):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        assert main(arguments) == 0
        assert len(list((tmp_path / "shared").glob("*.safetensors"))) == shards + 1  # and the probe
    assert shard_bytes(tmp_path / "shared") == alone


@pytest.mark.slow
def test_processes_of_one_command_make_what_one_makes(tmp_path, made):
    _, _, arguments = made
    assert main(arguments) == 0
    alone = shard_bytes(tmp_path / "latents")
    arguments[arguments.index("--output-path") + 1] = str(tmp_path / "shared")
    assert main([*arguments, "--devices", "2", "--device", "cpu"]) == 0
    assert shard_bytes(tmp_path / "shared") == alone


def kill_and_go_on(tmp_path: Path, arguments: list[str], moments: list[float]) -> None:
    """Start the command, and kill it with all it started, at each of these moments after its first file; then let it end."""
    command = [sys.executable, "-m", "stable_audio_tools", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for moment in moments:
        process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        folder, begun = tmp_path / "latents", time.monotonic()
        before = len(list(folder.glob("0*"))) if folder.exists() else 0
        while process.poll() is None and time.monotonic() - begun < 60:
            if folder.exists() and len(list(folder.glob("0*"))) > before:
                break
            time.sleep(0.002)
        time.sleep(moment)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert main(arguments) == 0


def assert_each_once(tmp_path: Path, expected: dict[str, bytes], items: int) -> None:
    folder = open_shards(tmp_path / "latents")
    assert folder.places[:, 0].tolist() == list(range(items)) and not folder.bad
    assert shard_bytes(tmp_path / "latents") == expected
    assert not [path for path in (tmp_path / "latents").iterdir() if ".tmp-" in path.name]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_without_losing_or_repeating_an_item(tmp_path, made):
    _, _, arguments = made
    arguments[arguments.index("--shard-items") + 1] = "1"
    arguments += ["--batch-size", "1"]
    expected_folder = tmp_path / "expected"
    reference = list(arguments)
    reference[reference.index("--output-path") + 1] = str(expected_folder)
    assert main(reference) == 0
    kill_and_go_on(tmp_path, arguments, [0.0, 0.003, 0.01])
    assert_each_once(tmp_path, shard_bytes(expected_folder), 7)


@pytest.mark.exhaustive
def test_killed_twenty_times(tmp_path):
    audio = audio_folder(tmp_path / "audio", count=60, seconds=0.3)
    weights, _ = autoencoder_file(tmp_path)
    arguments = ["pre-encode", "--model", str(weights), "--dataset-config", audio_config(tmp_path, audio, random_crop=False)]
    arguments += ["--num-workers", "0", "--shard-items", "1", "--batch-size", "1", "--output-path"]
    assert main([*arguments, str(tmp_path / "expected")]) == 0
    kill_and_go_on(tmp_path, [*arguments, str(tmp_path / "latents")], [number * 0.0013 for number in range(20)])
    assert_each_once(tmp_path, shard_bytes(tmp_path / "expected"), 60)


# what is refused


def refusal(capsys, arguments: list[str]) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


def changed(arguments: list[str], flag: str, value: str) -> list[str]:
    return [value if before == flag else argument for before, argument in zip([None, *arguments], arguments, strict=False)]


def test_a_folder_made_otherwise_is_refused_with_what_differs(tmp_path, made, capsys):
    audio, _, arguments = made
    assert main([*arguments, "--latents", "mean"]) == 0
    before = shard_bytes(tmp_path / "latents")
    another, _ = autoencoder_file(tmp_path, seed=1)
    message = refusal(capsys, [*changed(arguments, "--model", str(another)), "--latents", "mean"])
    assert "weights\n" in message and "the encoder has other weights than the one that made this folder" in message
    assert "choose another --output-path, or delete this folder" in message and "vae1.safetensors" in message
    assert 'stored\n  the latents in this folder were made with "mean", and now it is "sample"' in refusal(
        capsys, [*arguments, "--latents", "sample"]
    )
    assert "seed\n" in refusal(capsys, [*arguments, "--latents", "mean", "--seed", "1"])
    assert "sample_size\n" in refusal(capsys, [*arguments, "--latents", "mean", "--sample-size", "1024"])
    write(audio / "3.wav", tone(1.3, RATE, 2, 99), RATE)
    assert "audio\n  the audio files, or their metadata, have changed" in refusal(capsys, [*arguments, "--latents", "mean"])
    assert shard_bytes(tmp_path / "latents") == before


def test_a_changed_caption_is_noticed(tmp_path, made, capsys):
    audio, _, arguments = made
    assert main(arguments) == 0
    (audio / "3.txt").write_text("another caption")
    assert "have changed since" in refusal(capsys, arguments)


def test_what_cannot_be_encoded_is_said_before_a_file_is_written(tmp_path, made, capsys):
    audio, _, arguments = made
    plain = written(tmp_path / "model.json", configs.autoencoder())
    wavelike = written(tmp_path / "patched.json", configs.text_to_audio())
    with_config = [argument for argument in arguments if argument not in ("--model", arguments[2])]
    named = [*with_config, "--model-config", plain]
    cases = {
        "neither is given": with_config,
        "both are given": [*arguments, "--model-config", plain],
        "the encoder of this config has random weights": named,
        "no such file": [*named, "--ckpt-path", str(tmp_path / "none.safetensors")],
        "has no weights to load": [*with_config, "--model-config", wavelike, "--ckpt-path", arguments[2]],
        "the crops of a file would all be the same": [*arguments, "--crops", "2"],
        "the encoder makes no tokens": [*arguments, "--is-discrete"],
        "is no multiple of the 16 samples": [*arguments, "--sample-size", "1000"],
        "no GPU can be used here": [*arguments, "--device", "cuda"],
        "holds latents already": changed(arguments, "--dataset-config", written(
            tmp_path / "again.json", {"dataset_type": "pre_encoded", "datasets": [{"id": "x", "path": "x"}]})),
        "holds other files": changed(arguments, "--output-path", str(audio)),
    }  # fmt: skip
    for message, command in cases.items():
        if message == "no GPU can be used here" and torch.cuda.is_available():
            continue
        assert message in refusal(capsys, command), message
    assert not (tmp_path / "latents").exists()


def test_an_unfinished_folder_is_not_trained_on(tmp_path, made):
    _, _, arguments = made
    assert main(arguments) == 0
    (tmp_path / "latents" / "00001.safetensors").unlink()
    with pytest.raises(Exception, match=r"pre-encoding is not finished: 1 of 3 shards are missing(.|\n)*run the same pre-encode command"):
        latents_of(tmp_path / "latents")


def test_a_file_that_goes_bad_is_left_out_and_named_and_no_other_stands_in(tmp_path, made, capsys):
    audio, _, arguments = made
    (audio / "code.py").write_text("def get_custom_metadata(info, audio):\n    return {'__reject__': info['relpath'] == '4.wav'}\n")
    written(
        tmp_path / "audio.json",
        {
            "dataset_type": "audio_dir",
            "datasets": [{"id": "set", "path": str(audio), "custom_metadata_module": str(audio / "code.py")}],
            "random_crop": False,
        },
    )
    assert "--allow-code" in refusal(capsys, arguments)
    assert main([*arguments, "--allow-code", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == 6 and [Path(path).name for path, _ in found["left_out"]] == ["4.wav"]
    stored = latents_of(tmp_path / "latents")
    assert [stored[item].metadata["prompt"] for item in range(6)] == [f"clip {n}" for n in (0, 1, 2, 3, 5, 6)]


# other encoders


def test_tokens_are_stored_and_trained_on(tmp_path, made):
    _, _, arguments = made
    document = configs.language_model()
    torch.manual_seed(0)
    model = create_model_from_config(document).eval()
    save_model(tmp_path / "lm.safetensors", model.state_dict(), document)
    assert main([*changed(arguments, "--model", str(tmp_path / "lm.safetensors")), "--is-discrete", "--verify", "2"]) == 0
    loader = create_dataloader_from_config(
        {"dataset_type": "pre_encoded", "datasets": [{"id": "tokens", "path": str(tmp_path / "latents")}]}, 7, SIZE, RATE, 1, 0, False
    )
    tokens, metadata = next(iter(loader))
    audio = parse_dataset_config(tmp_path / "audio.json").build(sample_size=SIZE, sample_rate=RATE, audio_channels=1)
    expected = model.pretransform.tokenize(torch.stack([audio[index].audio for index in range(7)]))
    assert tokens.dtype == torch.int64 and torch.equal(tokens, expected)
    assert metadata[0]["prompt"] == "clip 0"


def test_the_pretransform_of_a_config_needs_no_other_weights_than_its_own(tmp_path, made):
    _, _, arguments = made
    weights, vae = autoencoder_file(tmp_path, seed=3)
    document = configs.text_to_audio()
    model = configs.autoencoder()["model"]
    document["model"] |= {"io_channels": 4, "pretransform": {"type": "autoencoder", "config": model, "scale": 2.0}}
    document["model"]["diffusion"]["config"]["io_channels"] = 4
    document["audio_channels"] = 2
    config = written(tmp_path / "ldm.json", document)
    with_config = [argument for argument in arguments if argument not in ("--model", arguments[2])]
    assert main([*with_config, "--model-config", config, "--ckpt-path", str(weights), "--latents", "mean"]) == 0
    sample, clip = latents_of(tmp_path / "latents")[0], on_the_fly(tmp_path)[0]
    torch.testing.assert_close(sample.audio, vae.encode(clip.audio[None], sample=False)[0], rtol=1e-4, atol=1e-5)


def test_half_precision_says_so_where_it_cannot_hold_the_latents(tmp_path, made, capsys):
    _, model, arguments = made
    document = configs.autoencoder()
    with torch.no_grad():
        model.encoder.layers[-1].weight_g.mul_(1e7)
    save_model(tmp_path / "loud.safetensors", model.state_dict(), document)
    loud = changed(arguments, "--model", str(tmp_path / "loud.safetensors"))
    message = refusal(capsys, [*changed(loud, "--dtype", "float16"), "--latents", "mean"])
    assert "--dtype float16" in message and "the latents are too large for it: choose bfloat16, or float32" in message


def test_the_encoder_is_known_by_what_it_makes_not_by_how_its_weights_are_written(tmp_path):
    from stable_audio_tools.models.utils import remove_weight_norm_from_model

    _, model = autoencoder_file(tmp_path)
    probe = LatentEncoder(model).probe("distribution")
    again = LatentEncoder(model)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(1.0)
    assert again.differs_from(probe, "distribution") is None and again.fingerprint() == LatentEncoder(model).fingerprint()
    remove_weight_norm_from_model(model)
    assert again.differs_from(probe, "distribution") is None
    assert LatentEncoder(model.half()).differs_from(probe, "distribution") is None
    _, other = autoencoder_file(tmp_path, seed=1)
    assert LatentEncoder(other).differs_from(probe, "distribution") > 0.1


def test_whole_files_in_chunks_are_what_one_pass_makes(tmp_path):
    _, model = autoencoder_file(tmp_path)
    audio = torch.randn(1, 2, 400 * RATIO, generator=torch.Generator().manual_seed(0))
    one, chunked = LatentEncoder(model).encode(audio, "mean"), LatentEncoder(model, Chunks(128, 32)).encode(audio, "mean")
    torch.testing.assert_close(chunked, one, rtol=1e-4, atol=1e-5)


def test_the_details_say_what_was_encoded_by_what(tmp_path, made):
    audio, _, arguments = made
    assert main([*arguments, "--limit", "4"]) == 0
    details = read_details(tmp_path / "latents")
    assert details.items == 4 and details.shards == 2 and details.facts.encoder.endswith("vae0.safetensors")
    assert details.content["dataset"]["datasets"][0]["path"] == str(audio) and len(details.key) == 64


def test_whole_files_are_encoded_whole_and_cropped_in_training(tmp_path, made):
    _, model, arguments = made
    assert main([*arguments, "--whole-files", "--chunk-frames", "200", "--latents", "mean", "--verify", "2"]) == 0
    whole = latents_of(tmp_path / "latents", latent_crop_length=10**4, exact_seconds=True)
    for number in range(7):
        samples = round((1 + number / 10) * RATE)
        assert whole.folders[0].valid[number] == whole.folders[0].frames[number] == -(-samples // RATIO)
        signal_16_bit = torch.from_numpy(tone(1 + number / 10, RATE, 2, number).T.copy())
        padded = torch.nn.functional.pad(signal_16_bit, (0, -samples % RATIO))
        expected = model.encode(padded[None], sample=False)[0]
        torch.testing.assert_close(whole[number].audio[:, : expected.shape[1]], expected, rtol=1e-2, atol=1e-3)
    cropped = latents_of(tmp_path / "latents", random_crop=True, exact_seconds=True)
    assert cropped.frames == SIZE // RATIO  # the model's sample_size
    for visit in range(5):
        sample = cropped.visit(ItemKey(0, visit, 3))
        start = sample.metadata["latent_crop_start"]
        assert torch.equal(sample.audio, whole[3].audio[:, start : start + cropped.frames])
        assert sample.metadata["seconds_start"] == start * RATIO / RATE
        begin, end = sample.metadata["timestamps"]
        assert begin == pytest.approx(start * RATIO / (1.3 * RATE)) and end == pytest.approx(begin + SIZE / (1.3 * RATE))


def test_latents_of_several_lengths_go_into_batches_of_similar_ones(tmp_path, made):
    _, _, arguments = made
    assert main([*arguments, "--whole-files", "--latents", "mean"]) == 0
    data = {"dataset_type": "pre_encoded", "datasets": [{"id": "x", "path": str(tmp_path / "latents")}], "variable_length": True}
    loader = create_dataloader_from_config(data, 2, 20 * RATE, RATE, 2, 0, False)
    seen = []
    for latents, metadata in loader:
        lengths = [int(m["padding_mask"].sum()) for m in metadata]
        assert latents.shape[-1] == max(lengths) and min(lengths) >= max(lengths) - 50
        seen += lengths
    assert sorted(seen) == [-(-round((1 + n / 10) * RATE) // RATIO) for n in range(7)]


def test_whole_files_exclude_what_they_make_idle(tmp_path, made, capsys):
    _, _, arguments = made
    assert "--whole-files makes no crops" in refusal(capsys, [*arguments, "--whole-files", "--sample-size", "1024"])
    assert "has no effect without --whole-files" in refusal(capsys, [*arguments, "--chunk-frames", "8"])
    assert "chunks of 8 frames cannot share 8" in refusal(
        capsys, [*arguments, "--whole-files", "--chunk-frames", "8", "--chunk-overlap", "8"]
    )
    written(tmp_path / "audio.json", {"dataset_type": "synthetic"})
    assert "synthetic data have no files of their own length" in refusal(capsys, [*arguments, "--whole-files"])


def test_recordings_among_the_metadata_are_refused(tmp_path, made, capsys):
    audio, _, arguments = made
    (audio / "code.py").write_text("def get_custom_metadata(info, audio):\n    return {'recording': audio.repeat(1, 9)}\n")
    item = {"id": "set", "path": str(audio), "custom_metadata_module": str(audio / "code.py")}
    written(tmp_path / "audio.json", {"dataset_type": "audio_dir", "datasets": [item], "random_crop": False})
    assert "are too large to be stored: leave recordings out" in refusal(capsys, [*arguments, "--allow-code"])


def test_tar_files_are_encoded_item_by_item_and_a_changed_one_is_noticed(tmp_path, made, capsys, monkeypatch):
    audio, _, arguments = made
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def pack(count: int) -> None:
        with tarfile.open(tmp_path / "shard.tar", "w") as tar:
            for number in range(count):
                for suffix in ("wav", "txt"):
                    tar.add(audio / f"{number}.{suffix}", f"{number}.{suffix}")

    pack(6)
    item = {"id": "tars", "path": str(tmp_path / "shard.tar")}
    written(tmp_path / "audio.json", {"dataset_type": "webdataset", "datasets": [item], "random_crop": False})
    assert main([*arguments, "--latents", "mean", "--verify", "2"]) == 0
    stored = latents_of(tmp_path / "latents")
    assert [stored[index].metadata["prompt"] for index in range(6)] == [f"clip {number}" for number in range(6)] and len(stored) == 6
    pack(7)
    assert "audio\n" in refusal(capsys, [*arguments, "--latents", "mean"])
