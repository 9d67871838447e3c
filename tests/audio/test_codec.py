"""AAC needs torchcodec and FFmpeg: what is said without them, and what is read with them."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from audio_files import signal, write

from stable_audio_tools.audio.io import load_audio, probe, read_part
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import parse_dataset_config
from stable_audio_tools.data.types import ItemKey

WITHOUT = {"torchcodec": "raise ImportError('none')", "FFmpeg": "raise RuntimeError('Could not load libtorchcodec')"}
STAND_IN = """
import types
import soundfile
import torch

class AudioDecoder:
    '''A decoder with torchcodec's interface, of files that libsndfile reads whatever they are called.'''
    metadata = types.SimpleNamespace(codec='aac')
    def __init__(self, path):
        try:
            self.frames, self.rate = soundfile.read(path, dtype='float32', always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError('not a video') from error
    def get_all_samples(self):
        return types.SimpleNamespace(data=torch.from_numpy(self.frames.T.copy()), sample_rate=self.rate)
"""


@pytest.fixture
def decoder(tmp_path_factory, monkeypatch):
    """Puts a module in the place of torchcodec.decoders."""

    def use(code):
        root = tmp_path_factory.mktemp("modules")
        (root / "torchcodec").mkdir()
        (root / "torchcodec" / "__init__.py").touch()
        (root / "torchcodec" / "decoders.py").write_text(code)
        monkeypatch.syspath_prepend(root)
        for name in ("torchcodec", "torchcodec.decoders"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    yield use
    for name in ("torchcodec", "torchcodec.decoders"):
        sys.modules.pop(name, None)


def m4a(folder, seconds=1.0, name="x.m4a"):
    path = write(folder / "x.flac", signal(seconds, 16000), 16000)
    shutil.move(path, folder / name)
    return folder / name


@pytest.mark.parametrize("missing, fix", [("torchcodec", r"stable-audio-tools\[codec\]"), ("FFmpeg", "install it, or convert")])
def test_what_is_missing_is_named(tmp_path, decoder, missing, fix):
    decoder(WITHOUT[missing])
    path = m4a(tmp_path)
    with pytest.raises(ConfigError, match=rf"x\.m4a.*\n?.*\.m4a cannot be read without {missing}.*{fix}"):
        probe(path)
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path)}]}
    with pytest.raises(ConfigError, match=f"none of 1 audio files can be used(.|\n)*without {missing}"):
        parse_dataset_config(config).build(sample_size=100, sample_rate=16000)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_parts_are_those_of_the_whole(tmp_path, decoder, rate):
    decoder(STAND_IN)
    path = m4a(tmp_path)
    info = probe(path)
    assert info == (16000, 16000, 2, "FFMPEG", "aac")
    whole, _ = load_audio(path, sample_rate=rate)
    for start, stop in [(0, 10), (777, 9000), (rate - 1, rate)]:
        assert torch.equal(read_part(str(path), info, rate, start, stop), whole[:, start:stop])
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path)}], "exact_seconds": True}
    sample = parse_dataset_config(config).build(sample_size=500, sample_rate=rate).visit(ItemKey(0, 0, 0))
    start = round(sample.metadata["seconds_start"] * rate)
    assert torch.equal(sample.audio, whole[:, start : start + 500].clamp(-1, 1))


def test_files_that_changed_or_are_no_audio(tmp_path, decoder):
    decoder(STAND_IN)
    path = m4a(tmp_path)
    info = probe(path)
    m4a(tmp_path, 0.5)
    with pytest.raises(ConfigError, match="has changed since"):
        read_part(str(path), info, 16000, 0, 10)
    path.write_bytes(os.urandom(500))
    with pytest.raises(ConfigError, match=r"not \.m4a audio that can be read"):
        probe(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="0 bytes"):
        probe(path)
    with pytest.raises(ConfigError, match="no such file"):
        probe(tmp_path / "none.m4a")


@pytest.mark.parametrize("name, rate, channels", [("tone.m4a", 44100, 2), ("tone.aac", 48000, 1)])
def test_real_aac(tmp_path, name, rate, channels):
    """Where torchcodec and FFmpeg are installed, as for users of the extra `codec`."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg on PATH to make a file with")
    pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError, OSError))
    path, tone = tmp_path / name, f"sine=frequency=440:duration=3:sample_rate={rate}"
    subprocess.run(["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", tone, "-ac", str(channels), "-c:a", "aac", path], check=True)
    info = probe(path)
    assert (info.sample_rate, info.channels, info.codec) == (rate, channels, "aac")
    assert info.seconds == pytest.approx(3, abs=0.1)
    whole, _ = load_audio(path)
    for start, stop in [(0, 100), (50_000, 90_000), (info.frames - 10, info.frames)]:
        assert torch.equal(read_part(str(path), info, rate, start, stop), whole[:, start:stop])
    mono, _ = load_audio(path, sample_rate=16000, channels=1)
    spectrum = torch.fft.rfft(mono[0] * torch.hann_window(mono.shape[1])).abs()
    assert spectrum.argmax() * 16000 / mono.shape[1] == pytest.approx(440, abs=1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if name.endswith("m4a") else b"none")
    with pytest.raises(ConfigError, match="audio that can be read, or damaged"):
        probe(path)
