"""Text embeddings beside stored latents: what the network gives, asked for once, and refused where another network made them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import configs
import pytest
import torch
from audio_files import signal as tone
from audio_files import write

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import parse_dataset_config
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.stored_texts import frozen_ones, recall_texts

sys.path.append(str(Path(__file__).parents[1] / "models" / "conditioners"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny_text_models import t5_folder

    return t5_folder(tmp_path_factory.mktemp("t5"))


def model_config(t5: Path, **config: Any) -> dict[str, Any]:
    document = configs.text_to_audio(pre_encoded=True)
    document["model"]["conditioning"]["configs"] = [
        {"id": "prompt", "type": "t5", "config": {"t5_model_name": str(t5), "max_length": 12, "project_out": True, **config}}
    ]
    document["model"]["diffusion"]["global_cond_ids"] = []
    document["model"]["diffusion"]["config"] |= {"global_cond_dim": 0, "global_cond_type": "prepend"}
    return document


@pytest.fixture
def stored(tmp_path, t5):
    """A folder of latents with the embeddings of three captions, one of them twice; its dataset, and the command."""
    for number, caption in enumerate(("a soft bell", "drum", "a soft bell", "loud piano")):
        write(tmp_path / "audio" / f"{number}.wav", tone(0.3, configs.SAMPLE_RATE, 1, number), configs.SAMPLE_RATE)
        (tmp_path / "audio" / f"{number}.txt").write_text(caption)
    datasets = [{"id": "set", "path": str(tmp_path / "audio")}]
    (tmp_path / "audio.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": datasets, "random_crop": False}))
    (tmp_path / "model.json").write_text(json.dumps(model_config(t5)))
    command = ["pre-encode", "--model-config", str(tmp_path / "model.json"), "--dataset-config", str(tmp_path / "audio.json")]
    command += ["--output-path", str(tmp_path / "latents"), "--num-workers", "0", "--dtype", "float32", "--text"]
    assert main(command) == 0
    encoded = [{"id": "set", "path": str(tmp_path / "latents")}]
    data = parse_dataset_config({"dataset_type": "pre_encoded", "datasets": encoded})
    return data.build(sample_size=2048, sample_rate=configs.SAMPLE_RATE, audio_channels=1), command


def test_training_asks_the_network_for_no_stored_text(stored, t5, capsys):
    dataset, command = stored
    torch.manual_seed(0)
    fresh, recalling = create_model_from_config(model_config(t5)), create_model_from_config(model_config(t5))
    recalling.load_state_dict(fresh.state_dict())
    metadata = [dataset[index].metadata for index in range(4)]
    expected = fresh.conditioner(metadata, "cpu")["prompt"]
    recall_texts(recalling, dataset)
    found = recalling.conditioner(metadata, "cpu")["prompt"]
    encoder = frozen_ones(recalling.conditioner.conditioners)["prompt"].frozen
    assert not encoder.loaded
    torch.testing.assert_close(found.tensor, expected.tensor, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.mask, expected.mask)
    new = [{"prompt": "a low drum"}, {"prompt": "drum"}]
    torch.testing.assert_close(recalling.conditioner(new, "cpu")["prompt"].tensor, fresh.conditioner(new, "cpu")["prompt"].tensor)
    assert encoder.loaded
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == {"prompt": 3}


def test_the_projection_behind_the_network_still_trains(stored, t5):
    dataset, _ = stored
    model = create_model_from_config(model_config(t5))
    recall_texts(model, dataset)
    model.conditioner([dataset[0].metadata], "cpu")["prompt"].tensor.sum().backward()
    assert all(parameter.grad is not None for parameter in model.conditioner.parameters())


def test_embeddings_of_another_network_are_refused(stored, t5):
    dataset, _ = stored
    model = create_model_from_config(model_config(t5, max_length=20))
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.path\n(.|\n)*texts_prompt_00000(.|\n)*were encoded by(.|\n)*--text again"):
        recall_texts(model, dataset)


def test_a_model_without_a_frozen_text_conditioner_is_refused(stored, capsys):
    _, command = stored
    plain = Path(command[2])
    plain.write_text(json.dumps(configs.text_to_audio()))
    assert main(command) == 2
    assert "the model has no frozen text conditioner" in capsys.readouterr().err
