"""Dataset configs: files and mappings, every problem at once, and one way in for every type."""

import json

import pytest

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.dataset import DATASETS, create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.synthetic import SyntheticConfig

PEER = {
    "dataset_type": "audio_dir",
    "datasets": [{"id": "my_audio", "path": "/audio/", "custom_metadata_module": "meta.py"}],
    "random_crop": True,
    "drop_last": False,
}


def test_the_peers_config_is_read_from_a_file_or_a_mapping(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(PEER))
    for source in (PEER, path, str(path)):
        config = parse_dataset_config(source)
        assert isinstance(config, AudioDirConfig)
        assert config.datasets[0].path == "/audio/" and not config.drop_last
        assert parse_dataset_config(config) is config
    assert isinstance(parse_dataset_config({"dataset_type": "synthetic"}), SyntheticConfig)
    assert set(DATASETS.names) == {"audio_dir", "synthetic", "pre_encoded", "webdataset", "wds", "s3"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dataset_type": "audio_dirs"}, r'unknown dataset "audio_dirs"(.|\n)*did you mean "audio_dir"'),
        ({"dataset_type": None, "datasets": []}, "dataset_type"),
        ({"datasets": []}, "datasets"),
        ({"random_crops": True}, r'unknown key "random_crops"(.|\n)*did you mean "random_crop"'),
        ({"datasets": [{"id": "a", "path": "x", "weight": 0}]}, r"datasets\[0\]\.weight"),
        ({"datasets": [{"id": "a", "path": "x"}, {"id": "a", "path": "y"}]}, r"datasets\[1\]\.id(.|\n)*another dataset has this id"),
        ({"silence_threshold_db": 3.0}, "silence_threshold_db"),
    ],
)
def test_problems_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_dataset_config({**PEER, **change})


def test_a_missing_file():
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        parse_dataset_config("nowhere.json")


def test_a_missing_folder(tmp_path):
    settings = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path / "no")}]}
    with pytest.raises(ConfigError, match=r"no: no such folder"):
        create_dataloader_from_config(settings, 1, 100, 8000)


@pytest.mark.parametrize("workers", [0, 1])
def test_synthetic_sounds_through_the_same_loader(workers):
    loader = create_dataloader_from_config({"dataset_type": "synthetic", "num_items": 8}, 4, 8192, 22050, num_workers=workers)
    audio, metadata = next(iter(loader))
    loader.close()
    assert audio.shape == (4, 2, 8192)
    assert all(item["padding_mask"].all() and item["prompt"] for item in metadata)
