"""Tags inside audio files, of each kind, damaged ones too; other sources win over them."""

import random
import struct

import pytest
import soundfile
from audio_files import make, signal

from stable_audio_tools.data.dataset import parse_dataset_config
from stable_audio_tools.data.scan import scan_folder
from stable_audio_tools.data.tags import read_tags

RATE = 48000
SAID = {"title": "Song é", "artist": "Nina", "genre": "Soul", "date": "1968-04-07", "comment": "live"}
READ = {"title": "Song é", "artist": "Nina", "genre": "Soul", "year": 1968, "comment": "live"}


def tagged(path, **options):
    with soundfile.SoundFile(path, "w", RATE, 1, **options) as file:
        for name, text in SAID.items():
            setattr(file, name, text)
        file.write(signal(0.3, RATE, 1))
    return path


def id3(**frames):
    """An ID3v2.4 tag with text frames in UTF-8."""
    bodies = {name: b"\x03" + text.encode() for name, text in frames.items()}
    content = b"".join(name.encode() + _syncsafe(len(body)) + b"\0\0" + body for name, body in bodies.items())
    return b"ID3\4\0\0" + _syncsafe(len(content)) + content


def _syncsafe(number):
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def mp3(folder, tag):
    whole = make(folder, "mp3", 0.3, RATE).read_bytes()
    path = folder / "tagged.mp3"
    path.write_bytes(tag + whole)
    return path


@pytest.mark.parametrize(
    "name, options", [("a.wav", {}), ("a.flac", {}), ("a.ogg", {}), ("a.opus", {"format": "OGG", "subtype": "OPUS"})], ids=lambda x: str(x)
)
def test_tags_of_each_kind(tmp_path, name, options):
    assert read_tags(str(tagged(tmp_path / name, **options))) == (READ, [])


def test_aiff_has_few(tmp_path):
    assert read_tags(str(tagged(tmp_path / "a.aiff"))) == ({name: READ[name] for name in ("title", "artist", "comment")}, [])


def test_numbers_are_numbers_and_several_values_one_text(tmp_path):
    path = mp3(tmp_path, id3(TIT2="1999", TBPM="92.5", TKEY="Am", TCON="Rock\0Pop", TDRC="2004", TRCK="3", TSSE="an encoder"))
    assert read_tags(str(path)) == ({"title": "1999", "bpm": 92.5, "key": "Am", "genre": "Rock, Pop", "year": 2004}, [])


def test_mp4(tmp_path):
    def atom(name, content):
        return struct.pack(">I", len(content) + 8) + name + content

    def item(name, kind, content):
        return atom(name, atom(b"data", struct.pack(">II", kind, 0) + content))

    items = item(b"\xa9nam", 1, b"Song") + item(b"\xa9gen", 1, b"Soul") + item(b"tmpo", 21, b"\0\x5a")
    moov = atom(b"moov", atom(b"udta", atom(b"meta", b"\0\0\0\0" + atom(b"ilst", items))))
    (tmp_path / "a.m4a").write_bytes(atom(b"ftyp", b"M4A \0\0\0\0") + moov)
    assert read_tags(str(tmp_path / "a.m4a")) == ({"title": "Song", "genre": "Soul", "bpm": 90}, [])


def test_files_without_tags_say_nothing(tmp_path):
    assert [read_tags(str(make(tmp_path, kind, 0.3, RATE))) for kind in ("wav", "flac", "ogg", "mp3", "aiff")] == [({}, [])] * 5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name, options", [("a.wav", {}), ("a.flac", {}), ("a.ogg", {})], ids=lambda x: str(x))
def test_damaged_tags_are_at_worst_named(tmp_path, name, options, seed):
    """Whatever bytes there are, reading ends, and raises nothing."""
    draw = random.Random(seed)
    content = bytearray(tagged(tmp_path / name, **options).read_bytes())
    for _ in range(40):
        content[draw.randrange(min(400, len(content)))] = draw.randrange(256)
    (tmp_path / name).write_bytes(content[: draw.randrange(20, len(content))])
    metadata, problems = read_tags(str(tmp_path / name))
    assert isinstance(metadata, dict) and all(problem.startswith(f"{tmp_path / name}: its tags cannot be read: ") for problem in problems)


def test_a_tag_that_ends_too_early_is_named(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(tagged(tmp_path / "b.flac").read_bytes()[:60])
    metadata, problems = read_tags(str(path))
    assert metadata == {} and len(problems) <= 1
    assert read_tags(str(tmp_path / "gone.flac")) == ({}, [f"{tmp_path / 'gone.flac'}: its tags cannot be read: No such file or directory"])


def test_tags_are_read_on_request_and_all_other_sources_of_a_file_win(tmp_path):
    tagged(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text("path,genre,artist\na.wav,Jazz,Other\n")
    (tmp_path / "a.json").write_text('{"artist": "Third"}')
    assert scan_folder(tmp_path).files[0].metadata == {"genre": "Jazz", "artist": "Third"}
    assert scan_folder(tmp_path, tags=True).files[0].metadata == {**READ, "genre": "Jazz", "artist": "Third"}


def test_tags_win_over_paths(tmp_path):
    tagged(tmp_path / "Someone - Else.wav")
    item = {"id": "a", "path": str(tmp_path), "file_tags": True, "path_pattern": "{artist} - {key}"}
    config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [item]})
    metadata = config.build(sample_size=1000, sample_rate=RATE, audio_channels=1)[0].metadata
    assert (metadata["artist"], metadata["key"], metadata["year"]) == ("Nina", "Else", 1968)
