"""What a model reads, from its config alone; and data that lack it, told before there is a model."""

import pytest
from audio_files import signal, write
from configs import SAMPLE_RATE, autoencoder, language_model, text_to_audio, unconditional

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.needs import Need
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule
from stable_audio_tools.training.metadata_needs import metadata_needs

NUMBER = {"id": "tempo", "type": "number", "config": {"min_val": 0, "max_val": 300}}
WHOLE = {"id": "seconds_total", "type": "int", "config": {}}
CHOICE = {"id": "mood", "type": "list", "config": {"options": ["calm"]}}


def with_tempo():
    """A model of prompt and tempo, the latter from `bpm`, where need be; two further conditioners are idle."""
    config = text_to_audio()
    conditioning = config["model"]["conditioning"]
    conditioning["configs"] += [NUMBER, WHOLE, CHOICE]
    conditioning["default_keys"] = {"tempo": "bpm"}
    config["model"]["diffusion"]["cross_attention_cond_ids"].append("tempo")
    return config


def test_needs_are_what_the_conditioner_reads():
    config = with_tempo()
    needs = metadata_needs(parse_run_config(config))
    assert needs == (Need("prompt", ("prompt",), "text"), Need("tempo", ("tempo", "bpm"), "a number"))
    conditioner = create_model_from_config(config).conditioner
    conditioner([{need.keys[-1]: "a" if need.kind == "text" else 1 for need in needs}], "cpu")
    for left_out in needs:
        with pytest.raises(ConfigError, match=left_out.name):
            conditioner([{need.keys[0]: "a" if need.kind == "text" else 1 for need in needs if need != left_out}], "cpu")


def test_finished_tensors_may_be_anything():
    config = with_tempo()
    config["model"]["conditioning"]["pre_encoded_keys"] = ["tempo"]
    assert metadata_needs(parse_run_config(config))[1].kind == "anything"


def test_needs_of_other_models():
    assert metadata_needs(parse_run_config(language_model())) == (Need("prompt", ("prompt",), "text"),)
    assert metadata_needs(parse_run_config(autoencoder())) == metadata_needs(parse_run_config(unconditional())) == ()


def test_a_run_on_data_without_the_metadata_ends_at_once(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.wav", signal(0.3, SAMPLE_RATE, 1, number), SAMPLE_RATE)
        (tmp_path / f"{number}.txt").write_text("a sound")
    (tmp_path / "1.json").write_text('{"bpm": 90}')
    folder = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path)}]}
    data = AudioDataModule(folder, batch_size=1, num_workers=0)
    with pytest.raises(ConfigError, match=r'2 of 3 items have no "tempo" or "bpm", which the conditioner "tempo" reads: 0\.wav, 2\.wav'):
        data.build(parse_run_config(with_tempo()))
    data.build(parse_run_config(text_to_audio()))
