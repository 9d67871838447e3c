"""Dataset configs that are checked although their data cannot be read yet."""

import json

import pytest

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config

BUCKET = {
    "dataset_type": "s3",
    "datasets": [{"id": "bucket", "s3_path": "s3://bucket/audio/", "profile": "work"}, {"id": "disk", "path": "/tars"}],
    "random_crop": False,
    "remove_silence": True,
    "silence_threshold": [0.02, 0.25],
    "max_silence_duration": 0.5,
    "volume_norm": True,
    "volume_norm_param": [-14, 3],
    "epoch_steps": 100,
    "pre_encoded": True,
    "latent_crop_length": 64,
    "resampled_shards": True,
}


@pytest.mark.parametrize("document", [BUCKET, {**BUCKET, "dataset_type": "wds"}], ids=lambda d: d["dataset_type"])
def test_every_published_key_is_kept(document, tmp_path, capsys):
    config = parse_dataset_config(document)
    assert json.loads(json.dumps(config.model_dump(exclude_unset=True))) == document
    path = tmp_path / "data.json"
    path.write_text(json.dumps(document))
    assert main(["check", str(path)]) == 0
    assert "good dataset config" in capsys.readouterr().out
    assert main(["check", "--data", str(path)]) == 2
    assert f"{document['dataset_type']} data cannot be read in this version" in capsys.readouterr().err


@pytest.mark.parametrize("document", [BUCKET], ids=lambda d: d["dataset_type"])
def test_training_on_it_is_refused_with_what_there_is(document):
    with pytest.raises(ConfigError, match=r"dataset_type(.|\n)*cannot be read in this version(.|\n)*audio_dir reads folders"):
        create_dataloader_from_config(document, 1, 1024, 8000)


def test_code_needs_permission_there_too():
    item = {**BUCKET["datasets"][0], "custom_metadata_module": "x.py"}
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.custom_metadata_module(.|\n)*--allow-code"):
        create_dataloader_from_config({**BUCKET, "datasets": [item]}, 1, 1024, 8000)


@pytest.mark.parametrize(
    "document, message",
    [
        ({**BUCKET, "datasets": [{"id": "nowhere"}]}, r"datasets\[0\]\n  no place of the data(.|\n)*give path or s3_path"),
        ({**BUCKET, "datasets": [{"id": "two", "path": "a", "s3_path": "s3://b"}]}, r"datasets\[0\]\n  path and s3_path are two places"),
        ({**BUCKET, "datasets": [{"id": "disk", "path": "a", "profile": "p"}]}, r"datasets\[0\]\.profile\n  has no effect without s3_path"),
        ({**BUCKET, "remove_silence": False}, r"silence_threshold\n  has no effect without remove_silence"),
        ({**BUCKET, "volume_norm": False}, r'volume_norm_param\n  has no effect without volume_norm(.|\n)*set "volume_norm": true'),
        ({**BUCKET, "pre_encoded": False}, r"latent_crop_length\n  has no effect without pre_encoded"),
        ({**BUCKET, "resampled_shards": False}, r"epoch_steps\n  has no effect without resampled_shards"),
    ],
)
def test_problems_are_named_with_their_fix(document, message):
    with pytest.raises(ConfigError, match=message):
        parse_dataset_config(document)
