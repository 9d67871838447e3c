"""Configs of tar files: every published key, and what cannot act is refused."""

import json

import pytest

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config

DISK, BUCKET = {"id": "disk", "path": "/tars"}, {"id": "bucket", "s3_path": "s3://bucket/audio/", "profile": "work"}
AUDIO = {
    "dataset_type": "s3",
    "datasets": [BUCKET, DISK],
    "random_crop": False,
    "remove_silence": True,
    "silence_threshold": [0.02, 0.25],
    "max_silence_duration": 0.5,
    "volume_norm": True,
    "volume_norm_param": [-14, 3],
    "epoch_steps": 100,
    "pre_encoded": False,
    "resampled_shards": True,
}
LATENTS = {"dataset_type": "wds", "datasets": [DISK], "pre_encoded": True, "latent_crop_length": 64, "resampled_shards": False}


@pytest.mark.parametrize("document", [AUDIO, LATENTS, {**LATENTS, "dataset_type": "webdataset"}], ids=lambda d: d["dataset_type"])
def test_every_published_key_is_kept(document):
    config = parse_dataset_config(document)
    assert json.loads(json.dumps(config.model_dump(exclude_unset=True))) == document


def test_code_needs_permission():
    item = {**DISK, "custom_metadata_module": "x.py"}
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.custom_metadata_module(.|\n)*--allow-code"):
        create_dataloader_from_config({**AUDIO, "datasets": [item]}, 1, 1024, 8000)


@pytest.mark.parametrize(
    "document, message",
    [
        ({**AUDIO, "datasets": [{"id": "nowhere"}]}, r"datasets\[0\]\n  no place of the data(.|\n)*give path or s3_path"),
        ({**AUDIO, "datasets": [{"id": "two", "path": "a", "s3_path": "s3://buc"}]}, r"datasets\[0\]\n  path and s3_path are two places"),
        ({**AUDIO, "datasets": [DISK, DISK]}, r"datasets\[1\]\.id(.|\n)*another dataset has this id"),
        ({**AUDIO, "datasets": [{**DISK, "profile": "p"}]}, r"datasets\[0\]\.profile\n  has no effect without s3_path"),
        ({**AUDIO, "datasets": [{**DISK, "anonymous": True}]}, r"datasets\[0\]\.anonymous\n  has no effect without s3_path"),
        ({**AUDIO, "datasets": [{**BUCKET, "anonymous": True}]}, r"datasets\[0\]\.profile\n  has no effect with anonymous"),
        ({**AUDIO, "datasets": [{"id": "a", "path": "s3://b/c"}]}, r"datasets\[0\]\.path(.|\n)*s3:// goes into s3_path"),
        ({**AUDIO, "datasets": [{"id": "a", "s3_path": "/tars"}]}, r"datasets\[0\]\.s3_path\n  expected s3://bucket/prefix"),
        ({**AUDIO, "datasets": [{"id": "a", "s3_path": "http://169.254.169.254/x"}]}, r"s3_path\n  expected s3://bucket/prefix"),
        ({**AUDIO, "datasets": [{"id": "a", "s3_path": "s3://$(touch x)/y"}]}, r"s3_path\n  expected s3://bucket/prefix"),
        ({**AUDIO, "remove_silence": False}, r"silence_threshold\n  has no effect without remove_silence"),
        ({**AUDIO, "volume_norm": False}, r'volume_norm_param\n  has no effect without volume_norm(.|\n)*set "volume_norm": true'),
        ({**AUDIO, "variable_length": True}, r"variable_length\n  lengths inside tar files are not known"),
        ({**AUDIO, "datasets": [DISK], "cache_gigabytes": 5}, r"cache_gigabytes\n  has no effect without an s3_path"),
        ({**AUDIO, "datasets": [DISK], "retry_seconds": 5}, r"retry_seconds\n  has no effect without an s3_path"),
        ({**LATENTS, "pre_encoded": False}, r"latent_crop_length\n  has no effect without pre_encoded"),
        ({**LATENTS, "phase_flip": True}, r"phase_flip\n  has no effect with pre_encoded"),
        ({**LATENTS, "epoch_steps": 7}, r"epoch_steps\n  has no effect without resampled_shards"),
        ({**LATENTS, "latent_crop_lenght": 3}, r'did you mean "latent_crop_length"'),
    ],
)
def test_problems_are_named_with_their_fix(document, message):
    with pytest.raises(ConfigError, match=message):
        parse_dataset_config(document)
