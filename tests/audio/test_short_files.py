"""Header and audio of short files in one opening: what `probe` and `read_part` say, and what they refuse."""

import pytest
import torch
from audio_files import BAD, FORMATS, make, make_bad, signal, write

from stable_audio_tools.audio.io import probe, probe_short, read_part
from stable_audio_tools.configs.errors import ConfigError

WAVS = {"pcm16": "PCM_16", "pcm24": "PCM_24", "pcm32": "PCM_32", "float": "FLOAT", "pcm8": "PCM_U8", "double": "DOUBLE", "ulaw": "ULAW"}


def agrees(path):
    info, audio = probe_short(str(path), 1 << 16)
    assert info == probe(path)
    if audio is not None:
        assert torch.equal(audio, read_part(str(path), info, info.sample_rate, 0, info.frames))
    return audio


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(tmp_path, kind):
    assert (agrees(make(tmp_path, kind, 0.3, 48000)) is None) == (kind == "mp3-untagged")


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("name", WAVS)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_kind_of_wav(tmp_path, container, name, channels):
    path = write(tmp_path / "x.wav", signal(0.1, 8000, channels), 8000, format=container, subtype=WAVS[name])
    assert agrees(path) is not None


def test_a_longer_file_is_not_read(tmp_path):
    path = write(tmp_path / "x.wav", signal(0.1, 8000), 8000)
    assert probe_short(str(path), 799) == (probe(path), None)
    assert probe_short(str(path), 800)[1].shape == (2, 800)


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("nan.wav", "aac.m4a")])
def test_bad_files_have_one_cause_either_way(tmp_path, name):
    path = make_bad(tmp_path / "bad", tmp_path, name)
    try:
        info = probe(path)
        read_part(str(path), info, info.sample_rate, 0, info.frames)
    except ConfigError as error:
        with pytest.raises(ConfigError) as short:
            probe_short(str(path), 1 << 16)
        assert str(short.value) == str(error)
    else:
        agrees(path)
