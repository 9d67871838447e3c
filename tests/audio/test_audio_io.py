"""Reading any part of any format, saving, and what is said about files that cannot be read."""

import logging
import os
import stat

import numpy as np
import pytest
import soundfile
import torch
from audio_files import BAD, FORMATS, make, make_bad, signal, write

from stable_audio_tools.audio.containers import missing_bytes, ogg_end
from stable_audio_tools.audio.io import load_audio, probe, read_part, save_audio, shown, to_channels
from stable_audio_tools.configs.errors import ConfigError

OPUS_RATES = (48000, 24000, 16000)


def places(length: int) -> list[tuple[int, int]]:
    """Starts at the edges, on the last page of an Ogg file, and anywhere; lengths from one frame."""
    random = np.random.default_rng(0)
    starts = [0, 1, 600, length - 1, length - 400, *random.integers(0, length, 9).tolist()]
    return [(start, min(length, start + int(random.integers(1, 3000)))) for start in starts]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rate, channels", [(48000, 2), (24000, 1)])
@pytest.mark.slow
def test_any_part_equals_that_part_of_the_whole(tmp_path, kind, rate, channels):
    path = str(make(tmp_path, kind, 2.7, rate, channels))
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    info = probe(path)
    assert (info.frames, info.sample_rate, info.channels) == (len(whole), rate, channels)
    for start, stop in places(len(whole)):
        assert np.array_equal(read_part(path, info, rate, start, stop).T, whole[start:stop]), (start, stop)


@pytest.mark.parametrize("kind, rate", [("wav", 48000), ("flac", 44100), ("ogg", 22050), ("mp3-vbr", 32000), ("opus", 16000)])
@pytest.mark.parametrize("target", [44100, 16000])
def test_a_resampled_part_equals_that_part_of_the_resampled_whole(tmp_path, kind, rate, target):
    path = make(tmp_path, kind, 1.9, rate)
    whole, at = load_audio(path, sample_rate=target)
    assert at == target
    assert abs(whole.shape[-1] - 1.9 * target) < 1100 * target / rate  # MP3 pads to whole frames
    for start, stop in places(whole.shape[-1]):
        part, _ = load_audio(path, sample_rate=target, start=start, frames=stop - start)
        assert torch.equal(part, whole[:, start:stop]), (start, stop)


def test_a_part_beyond_the_end_is_as_long_as_there_is_audio(tmp_path):
    path = make(tmp_path, "flac", 0.5)
    assert load_audio(path, start=22000, frames=500)[0].shape == (2, 50)
    assert load_audio(path, start=99999, frames=500)[0].shape == (2, 0)
    with pytest.raises(ValueError, match="must not be negative"):
        load_audio(path, start=-1)


@pytest.mark.parametrize("present, wanted", [(1, 1), (1, 2), (2, 1), (1, 4), (6, 2), (6, 1), (4, 4)])
def test_channels(present, wanted):
    audio = torch.randn(present, 8)
    made = to_channels(audio, wanted)
    assert made.shape == (wanted, 8)
    if wanted == 1:
        torch.testing.assert_close(made[0], audio.mean(0))
    else:
        assert torch.equal(made, audio.expand(wanted, 8) if present == 1 else audio[:wanted])


def test_channels_are_not_guessed(tmp_path):
    with pytest.raises(ValueError, match="cannot make 4 channels of 2"):
        to_channels(torch.zeros(2, 8), 4)
    with pytest.raises(ConfigError, match=r"x\.wav: cannot make 3 channels of 2"):
        load_audio(make(tmp_path, "wav", 0.1), channels=3)


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("one_sample.wav", "silent.wav", "long_silence.flac", "nan.wav")])
@pytest.mark.slow
def test_a_bad_file_is_refused_with_its_name_and_cause(tmp_path, name):
    path = make_bad(tmp_path / "bad", tmp_path, name)
    if name == "flac_inside.wav":  # readable; the data layer does not take it
        assert probe(path).container == "FLAC"
        return
    cause = BAD[name][1]
    with pytest.raises(ConfigError) as error:
        load_audio(path)
    assert str(path) in str(error.value) and cause in str(error.value)


def test_a_wav_written_to_a_pipe_has_no_size_and_is_fine(tmp_path):
    path = make(tmp_path, "wav", 0.2)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    assert missing_bytes(str(path)) == 0
    assert load_audio(path)[0].shape == (2, 8820)


def test_a_flac_of_unknown_length_says_so(tmp_path):
    path = make(tmp_path, "flac", 0.2)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="does not say how long the audio is"):
        probe(path)


def test_an_mp3_with_a_large_id3_tag_keeps_its_length(tmp_path):
    path = make(tmp_path, "mp3", 0.5)
    content = path.read_bytes()
    path.write_bytes(b"ID3\x04\0\0" + bytes([0, 0, 40, 0]) + bytes(40 * 128) + content)
    assert probe(path).frames == 22050


def test_ogg_pages_are_found_whatever_follows_the_last(tmp_path):
    path = make(tmp_path, "ogg", 2.0, 22050, 1)
    end = ogg_end(str(path))
    assert not end.cut and 0 < end.last_page_start < 44100
    path.write_bytes(path.read_bytes() + b"some tag")
    assert ogg_end(str(path)) == end


@pytest.mark.parametrize("what", ["missing", "folder", "locked"])
def test_files_that_the_system_does_not_give(tmp_path, what):
    path = tmp_path / "a.wav"
    cause = {"missing": "no such file", "folder": "is a folder", "locked": "no permission"}[what]
    if what == "folder":
        path.mkdir()
    if what == "locked":
        make(tmp_path, "wav", 0.1).rename(path)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    with pytest.raises(ConfigError, match=f"{path}: {cause}"):
        probe(path)


def test_a_file_that_changes_after_it_was_looked_at_is_noticed(tmp_path):
    path = make(tmp_path, "wav", 0.5)
    info = probe(path)
    make(tmp_path, "wav", 0.5, 22050)
    with pytest.raises(ConfigError, match="has changed since it was first looked at"):
        read_part(str(path), info, 44100, 0, 100)
    make(tmp_path, "wav", 0.2)
    with pytest.raises(ConfigError, match=r"ends at 0\.\d\d s of 0\.50 s"):
        read_part(str(path), info, 44100, 8000, 9000)


def test_names_are_shown_without_control_characters(tmp_path):
    assert shown(b"a\xff\x1b[31m/\xc3\xa9.wav".decode("utf-8", "surrogateescape")) == r"a\xff\x1b[31m/é.wav"
    name = tmp_path / os.fsdecode(b"odd\xff.wav")
    try:
        name.write_bytes(make(tmp_path, "wav", 0.1).read_bytes())
    except OSError:
        pytest.skip("the file system takes only UTF-8 names")
    assert load_audio(name)[0].shape == (2, 4410)


@pytest.mark.parametrize("suffix, bit_depth, tolerance", [("wav", 16, 2**-16), ("wav", 24, 2**-24), ("flac", 24, 2**-24), ("ogg", 16, 0.5)])
def test_what_is_saved_is_read_again(tmp_path, suffix, bit_depth, tolerance):
    audio = torch.from_numpy(signal(2.0, 32000).T.copy()).clamp(-0.99, 0.99)
    assert save_audio(tmp_path / f"a.{suffix}", audio, 32000, bit_depth=bit_depth) == (0, 0)
    again, rate = load_audio(tmp_path / f"a.{suffix}")
    assert rate == 32000
    torch.testing.assert_close(again, audio, atol=tolerance, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"]


def test_saved_integers_survive_unchanged(tmp_path):
    audio = torch.arange(-(2**15), 2**15).reshape(2, -1) / 2**15
    save_audio(tmp_path / "a.wav", audio, 8000)
    assert torch.equal(load_audio(tmp_path / "a.wav")[0], audio)


def test_saving_limits_what_is_too_loud_and_silences_what_is_no_number(tmp_path, caplog):
    audio = torch.tensor([[0.5, 1.5, -3.0, float("nan"), float("inf"), 0.25]])
    with caplog.at_level(logging.INFO):
        assert save_audio(tmp_path / "a.flac", audio, 8000) == (2, 2)
    assert "2 samples beyond full scale were limited" in caplog.text
    assert "2 samples that were not finite were silenced" in caplog.text
    again, _ = load_audio(tmp_path / "a.flac")
    torch.testing.assert_close(again, torch.tensor([[0.5, 1.0, -1.0, 0.0, 0.0, 0.25]]), atol=1e-4, rtol=0)


def test_floats_survive_unchanged_beyond_full_scale_too(tmp_path):
    audio = torch.tensor([[0.1, 1.5, -3.0, float("nan"), 1e-9]])
    assert save_audio(tmp_path / "a.wav", audio, 8000, bit_depth=32) == (0, 1)
    assert torch.equal(load_audio(tmp_path / "a.wav")[0], audio.nan_to_num(0.0))


@pytest.mark.parametrize("sample_rate", [8000, 44100])
def test_an_mp3_holds_the_sound_from_its_first_to_its_last_sample(tmp_path, sample_rate):
    time = torch.arange(3 * sample_rate + 7) / sample_rate
    audio = 0.5 * torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (220, 500)])
    save_audio(tmp_path / "a.mp3", audio, sample_rate)
    again, rate = load_audio(tmp_path / "a.mp3")
    assert rate == sample_rate and again.shape == audio.shape
    middle = slice(sample_rate // 10, -sample_rate // 10)  # a start from nothing is not what the codec is best at
    assert (again - audio)[:, middle].square().mean() < 1e-4 * audio.square().mean()


def test_saving_half_precision_with_gradient(tmp_path):
    save_audio(tmp_path / "a.wav", torch.zeros(1, 9, dtype=torch.bfloat16, requires_grad=True), 8000)
    assert load_audio(tmp_path / "a.wav")[0].shape == (1, 9)


def test_saving_refuses(tmp_path):
    audio = torch.zeros(2, 9)
    with pytest.raises(ValueError, match=r"must end in \.wav, \.flac, \.ogg, \.mp3"):
        save_audio(tmp_path / "a.m4a", audio, 8000)
    for name, bits in (("a.wav", 20), ("a.flac", 32), ("a.ogg", 24), ("a.mp3", 32)):
        with pytest.raises(ValueError, match=f"with {bits} bits"):
            save_audio(tmp_path / name, audio, 8000, bit_depth=bits)
    with pytest.raises(ConfigError, match=r"a\.mp3: MP3 has no sample rate of 96000 Hz; choose \.wav or \.flac"):
        save_audio(tmp_path / "a.mp3", audio, 96000)
    with pytest.raises(ConfigError, match=r"a\.mp3: MP3 has at most 2 channels, and the audio 3"):
        save_audio(tmp_path / "a.mp3", torch.zeros(3, 9), 8000)
    with pytest.raises(ConfigError, match=r"a\.flac: FLAC has at most 8 channels, and the audio 9"):
        save_audio(tmp_path / "a.flac", torch.zeros(9, 9), 8000)
    with pytest.raises(ValueError, match="expected \\(C, T\\)"):
        save_audio(tmp_path / "a.wav", audio[0], 8000)
    with pytest.raises(ConfigError, match=r"a\.wav: cannot write the file: No such file or directory"):
        save_audio(tmp_path / "nowhere" / "a.wav", audio, 8000)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    save_audio(tmp_path / "a.wav", torch.zeros(1, 9), 8000)
    before = (tmp_path / "a.wav").read_bytes()
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(ConfigError, match="Permission denied"):
            save_audio(tmp_path / "a.wav", torch.ones(1, 9), 8000)
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    assert (tmp_path / "a.wav").read_bytes() == before


def test_a_long_ogg_is_written_in_blocks(tmp_path):
    write(tmp_path / "a.wav", signal(0.1, 8000), 8000)
    save_audio(tmp_path / "a.ogg", torch.zeros(1, 8000 * 130), 8000)  # in one call libsndfile crashes
    assert probe(tmp_path / "a.ogg").frames == 8000 * 130
