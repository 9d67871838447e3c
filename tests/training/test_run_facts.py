"""What a run writes down about itself when it starts: its parts, its batch, its memory, and its data, none of it read again."""

import json

import configs
import numpy as np
import pytest
import torch
from audio_files import signal as tone
from audio_files import write
from test_host import fit, loader, wrapper

from stable_audio_tools.audio.loudness import loudness_lufs
from stable_audio_tools.data.dataset import parse_dataset_config
from stable_audio_tools.report.facts import data_facts
from stable_audio_tools.training import run_folder
from stable_audio_tools.training.data_summary import EXAMPLES, summarise
from stable_audio_tools.training.demos.base import Demo, DemoCallback
from stable_audio_tools.training.parts import parts_of
from stable_audio_tools.training.run_folder import RunFolder

RATE = configs.SAMPLE_RATE
TONE = torch.from_numpy(tone(1.0, RATE).T)


def built(document: dict):
    return parse_dataset_config(document).build(sample_size=2048, sample_rate=RATE, audio_channels=2)


def folder_of(root, **options):
    return {"dataset_type": "audio_dir", "datasets": [{"id": "mine", "path": str(root)}], **options}


def test_synthetic_sounds_are_summarised_without_making_one():
    (summary,) = summarise(built({"dataset_type": "synthetic", "num_items": 30, "seconds": [0.1, 0.2]}))
    assert (summary["files"], summary["captioned"], summary["hours"]) == (30, 30, pytest.approx(30 * 0.15 / 3600))


def test_a_folder_is_summarised_from_what_training_has_found_in_it(tmp_path):
    for number in range(4):
        write(tmp_path / f"{number}.wav", tone(1 + number, RATE // 2, 1, number), RATE // 2)
    (tmp_path / "0.txt").write_text("a caption")
    for number in range(EXAMPLES + 3):
        (tmp_path / f"bad{number:02d}.wav").write_bytes(b"")
    dataset = built(folder_of(tmp_path))
    for path in tmp_path.glob("*.wav"):
        path.unlink()  # whoever reads now fails
    (summary,) = summarise(dataset)
    assert (summary["id"], summary["files"], summary["captioned"]) == ("mine", 4, 1)
    assert summary["hours"] == pytest.approx(10 / 3600)
    assert summary["upsampled"] == 4
    assert (len(summary["bad"]), summary["num_bad"]) == (EXAMPLES, EXAMPLES + 3)
    shown = dict(data_facts(json.loads(json.dumps(summary))))
    assert shown["Sample rates"] == f"{RATE // 2} Hz (4)"
    assert shown["Left out as bad"] == f"{EXAMPLES + 3} files"
    assert shown["With a caption"] == "1 (25%)"


def test_stored_latents_are_summarised_without_what_lies_beside_each(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.ones((4, 100 + number), dtype=np.float32))
        (tmp_path / f"{number}.json").write_text(json.dumps({"padding_mask": [1] * 100 + [0] * number, "prompt": "x"}))
    document = {"dataset_type": "pre_encoded", "datasets": [{"id": "mine", "path": str(tmp_path)}], "samples_per_frame": 16}
    dataset = built(document)
    for path in tmp_path.iterdir():
        path.unlink()
    (summary,) = summarise(dataset)
    assert (summary["files"], summary["kind"], summary["frames"]) == (3, "latents", (100, 101, 102))
    assert summary["seconds"] == pytest.approx((1600 / RATE,) * 3)
    assert "captioned" not in summary


def test_a_dataset_of_another_kind_has_no_summary():
    assert summarise([1, 2]) == summarise(None) == []


def test_parts_name_the_discriminator():
    module = wrapper(configs.autoencoder())
    named = {part.name: part for part in parts_of(module)}
    assert named["discriminator"].trainable == sum(p.numel() for p in module.strategy.discriminator.parameters())
    assert named["encoder"].parameters == sum(p.numel() for p in module.model.encoder.parameters())


def test_a_run_writes_down_what_it_is(tmp_path):
    config = configs.text_to_audio()
    module = wrapper(config)
    fit(module, loader(config), 1, RunFolder(tmp_path, name="run", max_steps=1))
    state = json.loads((tmp_path / "run.json").read_text())
    assert (state["devices"], state["precision"], state["accum_batches"]) == (1, "32-true", 1)
    assert sum(part["trainable"] for part in state["parts"]) == state["parameters"]
    assert state["peak_process_memory"] > 2**26
    assert "peak_memory" not in state  # of tensors on a GPU
    assert json.loads((tmp_path / "data.json").read_text())["folders"][0]["files"] == 64
    assert "Training data" in (tmp_path / "index.html").read_text()


def test_a_summary_that_fails_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_folder, "summarise", lambda dataset: 1 / 0)
    config = configs.text_to_audio()
    module = wrapper(config)
    fit(module, loader(config), 1, RunFolder(tmp_path, name="run", max_steps=1))
    assert module.train_step == 1
    assert "what the data are could not be written down" in caplog.text


class Tones(DemoCallback):
    """A tone and silence."""

    def render(self, module):
        return [Demo("tone", TONE), Demo("silence", torch.zeros(2, RATE))]


def test_demos_say_how_loud_they_are(tmp_path):
    config = configs.text_to_audio()
    fit(wrapper(config), loader(config), 1, Tones(1, RATE, folder=tmp_path))
    loud, silent = json.loads((tmp_path / "step_00000001" / "demos.json").read_text())
    assert loud["loudness_lufs"] == pytest.approx(loudness_lufs(TONE, RATE), abs=0.01)
    assert "loudness_lufs" not in silent
