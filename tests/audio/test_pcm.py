"""Plain WAV files read by their bytes: the values of libsndfile, and nothing at all where that is not certain."""

import numpy as np
import pytest
import soundfile
from audio_files import signal, write

from stable_audio_tools.audio.io import load_audio, probe
from stable_audio_tools.audio.pcm import FORMATS, read_pcm

RATE = 8000


def by_libsndfile(path, start, stop):
    with soundfile.SoundFile(path) as file:
        file.seek(start)
        return file.read(stop - start, dtype="float32", always_2d=True)


@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("codec", FORMATS)
def test_values_are_those_of_libsndfile(tmp_path, codec, channels, form):
    frames = signal(0.5, RATE, channels)
    frames[:3] = [[1.0], [-1.0], [2.0 if codec == "FLOAT" else 0.999999]]
    path = write(tmp_path / "x.wav", frames, RATE, subtype=codec, format=form)
    for start, stop in [(0, 4000), (0, 1), (7, 2011), (3999, 4000)]:
        part = read_pcm(str(path), codec, RATE, channels, start, stop)
        assert part.dtype == np.float32 and np.array_equal(part, by_libsndfile(path, start, stop))
        part *= 2  # a reader may change what it was given


def test_integers_of_32_bits_round_alike(tmp_path):
    values = np.random.default_rng(0).integers(-(2**31), 2**31, (5000, 1)).astype(np.int32)
    with soundfile.SoundFile(tmp_path / "x.wav", "w", RATE, 1, "PCM_32") as file:
        file.write(values)
    assert np.array_equal(read_pcm(str(tmp_path / "x.wav"), "PCM_32", RATE, 1, 0, 5000), by_libsndfile(tmp_path / "x.wav", 0, 5000))


def chunk(name, content):
    return name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)


def with_chunks(path, *chunks):
    """A WAV file with chunks before its format."""
    whole = path.read_bytes()
    body = b"WAVE" + b"".join(chunks) + whole[12:]
    path.write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)
    return path


def test_chunks_before_the_audio(tmp_path):
    path = with_chunks(
        write(tmp_path / "x.wav", signal(0.5, RATE), RATE, subtype="PCM_16"), chunk(b"JUNK", b"odd"), chunk(b"bext", bytes(600))
    )
    assert np.array_equal(read_pcm(str(path), "PCM_16", RATE, 2, 9, 99), by_libsndfile(path, 9, 99))


def test_what_is_left_to_libsndfile(tmp_path):
    path = write(tmp_path / "x.wav", signal(0.5, RATE), RATE, subtype="PCM_16")
    good = (str(path), "PCM_16", RATE, 2, 0, 100)
    assert read_pcm(*good) is not None
    assert read_pcm(str(path), "PCM_16", RATE, 2, 0, 4001) is None  # beyond the end
    assert read_pcm(str(path), "PCM_24", RATE, 2, 0, 100) is None  # not what it was
    assert read_pcm(str(path), "PCM_16", 44100, 2, 0, 100) is None
    assert read_pcm(str(path), "PCM_16", RATE, 1, 0, 100) is None
    assert read_pcm(str(path), "ULAW", RATE, 2, 0, 100) is None
    assert read_pcm(str(tmp_path / "none.wav"), "PCM_16", RATE, 2, 0, 100) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    assert read_pcm(*good) is None  # cut
    path.write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])
    assert np.array_equal(read_pcm(*good), load_audio(path, frames=100)[0].T)  # written to a pipe: it says no length
    with_chunks(path, chunk(b"bext", bytes(9000)))
    assert read_pcm(*good) is None
    assert probe(path).frames == 4000 and load_audio(path, start=3000)[0].shape == (2, 1000)
    path.write_bytes(b"RIFX" + whole[4:])
    assert read_pcm(*good) is None


@pytest.mark.parametrize("length", range(0, 60, 4))
def test_headers_that_end_early(tmp_path, length):
    path = write(tmp_path / "x.wav", signal(0.5, RATE), RATE, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:length])
    assert read_pcm(str(path), "PCM_16", RATE, 2, 0, 100) is None
