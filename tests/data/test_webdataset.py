"""Tar files on disk: items in any order, once an epoch, exactly resumed; metadata as beside files in folders; damage told once."""

import hashlib
import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from audio_files import signal
from tar_files import RATE, audio_bytes, latent_shard, packed, sample, shard_folder

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.types import ItemKey

SIZE = 4000


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def config(*paths, items=None, **options):
    datasets = [{"id": f"set {number}", "path": str(path), **(items or {})} for number, path in enumerate(paths)]
    return {"dataset_type": "webdataset", "datasets": datasets, "resampled_shards": False, **options}


def loader(document, batch_size=4, workers=0, shuffle=True, **options):
    return create_dataloader_from_config(document, batch_size, SIZE, RATE, 1, workers, shuffle, **options)


def dataset(document, channels=1):
    return parse_dataset_config(document).build(sample_size=SIZE, sample_rate=RATE, audio_channels=channels)


def numbers(loader):
    return [[item["number"] for item in metadata] for _, metadata in loader]


def digest(audio):
    return hashlib.sha256(audio.numpy().tobytes()).hexdigest()


def test_items_are_what_they_were_in_their_files(tmp_path):
    shard_folder(tmp_path / "s")
    data = dataset(config(tmp_path / "s", exact_seconds=True))
    assert len(data) == 12
    for index in range(12):
        served = data.visit(ItemKey(1, 2, index))
        whole, _ = soundfile.read(io.BytesIO(audio_bytes(index)), dtype="float32", always_2d=True)
        start = round(served.metadata["seconds_start"] * RATE)
        assert torch.equal(served.audio, torch.from_numpy(whole.T[:, start : start + SIZE]))
        path = f"{tmp_path}/s/{index // 4:03d}.tar/{index:05d}.flac"
        assert served.metadata == {
            "prompt": f"sound {index}",
            "number": index,
            "path": path,
            "relpath": f"{index:05d}.flac",
            "dataset_id": "set 0",
            "sample_rate": RATE,
            "timestamps": (start / 8000, (start + SIZE) / 8000),
            "seconds_start": start / RATE,
            "seconds_total": 0.5,
        }


@pytest.mark.parametrize("spelling", ["webdataset", "wds", "s3"])
def test_every_item_once_an_epoch_in_batches_of_audio_and_masks(tmp_path, spelling):
    made = loader(config(shard_folder(tmp_path / "s"), dataset_type=spelling))
    for _ in range(2):
        batches = list(made)
        assert sorted(item["number"] for _, metadata in batches for item in metadata) == list(range(12))
        assert all(audio.shape == (4, 1, SIZE) and audio.dtype == torch.float32 for audio, _ in batches)
        assert all(item["padding_mask"].all() for _, metadata in batches for item in metadata)


@pytest.mark.parametrize("workers, world", [(0, 1), (2, 1), (0, 2), (2, 2)])
@pytest.mark.slow
def test_a_run_goes_on_where_it_was_whatever_the_workers_and_ranks(tmp_path, workers, world):
    document = config(shard_folder(tmp_path / "s", 4, 8))
    uninterrupted = [(digest(audio), [item["number"] for item in metadata]) for audio, metadata in loader(document)]
    first = loader(document)
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    state, rest = first.state_dict(), []
    for rank in range(world):
        again = loader(document, 4 // world, workers, rank=rank, world_size=world)
        again.load_state_dict(state)
        rest.append([(audio, [item["number"] for item in metadata]) for audio, metadata in again])
        again.close()
    for step, (whole, items) in enumerate(uninterrupted[3:]):
        parts = [ranks[step] for ranks in rest]
        assert digest(torch.cat([audio for audio, _ in parts])) == whole
        assert [number for _, some in parts for number in some] == items


def test_weights_and_several_places(tmp_path):
    one, other = shard_folder(tmp_path / "a", 1, 4), shard_folder(tmp_path / "b", 2, 4)
    document = config(one, other)
    document["datasets"][1]["weight"] = 2
    served = [(item["dataset_id"], item["number"]) for _, metadata in loader(document) for item in metadata]
    assert Counter(served) == Counter([("set 0", i) for i in range(4)] + 2 * [("set 1", i) for i in range(8)])


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("s", 12),
        ("s/001.tar", 4),
        ("s/{000..001}.tar", 8),
        ("s/00[02].tar", 8),
        ("s/{000,002}.tar", 8),
        ("**/*1.tar", 4),
        ("s/{000..007}.tar", 12),
    ],
)
def test_places_are_folders_files_and_patterns(tmp_path, pattern, found):
    shard_folder(tmp_path / "s")
    assert len(dataset(config(tmp_path / pattern))) == found


@pytest.mark.slow
def test_draws_with_replacement_are_the_default_and_seeded(tmp_path):
    folder = shard_folder(tmp_path / "s")
    document = {**config(folder), "resampled_shards": True, "epoch_steps": 20}
    made = loader(document, seed=1)
    first, second = numbers(made), numbers(made)
    assert len(first) == len(second) == 20 and first != second
    assert numbers(loader(document, seed=1)) == first != numbers(loader(document, seed=2))
    assert numbers(loader(document, workers=2, seed=1)) == first
    evaluation = loader(document, 5, shuffle=False)
    assert numbers(evaluation) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_words_beside_items(tmp_path):
    sound = audio_bytes()
    members = [
        ("in/song v1.2.flac", sound),
        ("in/song v1.txt", b"of the key"),
        ("plain.flac", sound),
        ("plain.txt", b"text\n"),
        ("plain.json", b'{"caption": "json wins", "bpm": 90}'),
        ("alone.flac", sound),
        ("bad.flac", sound),
        ("bad.json", b'{"prompt": '),
        ("latin.flac", sound),
        ("latin.txt", "für".encode("latin-1")),
        ("._mac.flac", b"resource fork"),
        ("cover.jpg", b"picture"),
    ]
    (tmp_path / "x.tar").write_bytes(packed(members))
    data = dataset(config(tmp_path))
    prompts = {data[i].metadata["relpath"]: data[i].metadata["prompt"] for i in range(len(data))}
    assert prompts == {"in/song v1.2.flac": "of the key", "plain.flac": "json wins", "alone.flac": "", "bad.flac": "", "latin.flac": ""}
    (shards,) = parse_dataset_config(config(tmp_path)).shards()
    assert [problem.removeprefix(f"{tmp_path}/x.tar/") for problem in shards.caption_problems] == [
        "bad.json:1: not valid JSON: Expecting value",
        "latin.txt: not text in UTF-8: byte 1 is no text",
    ]
    assert shards.others == {".jpg": 1}


def test_a_cut_tar_file_gives_its_whole_items_and_is_told_once(tmp_path, caplog):
    shard_folder(tmp_path)
    path = tmp_path / "001.tar"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) * 6 // 10])
    made = loader(config(tmp_path, drop_last=False))
    assert caplog.text.count("it is cut") == 1 and "001.tar/" in caplog.text
    for _ in range(2):
        served = [number for batch in numbers(made) for number in batch]
        assert sorted(served) == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11] or sorted(served) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert not made.faults


def test_items_that_are_no_audio_are_told_when_met_and_others_stand_in(tmp_path, caplog):
    bad = [("bad.flac", b"no audio"), ("short.wav", audio_bytes(seconds=0.001, form="WAV")), ("flac.wav", audio_bytes())]
    (tmp_path / "x.tar").write_bytes(packed([*bad, *(member for number in range(5) for member in sample(number))]))
    made = loader(config(tmp_path))
    for _ in range(3):
        list(made)
    causes = {path.rpartition("/")[2]: cause for path, cause in made.faults.items()}
    assert sorted(causes) == ["bad.flac", "flac.wav", "short.wav"]
    assert "not audio" in causes["bad.flac"] and "too short" in causes["short.wav"] and "wrong extension" in causes["flac.wav"]


def test_nothing_to_serve_ends_at_once(tmp_path):
    (tmp_path / "x.tar").write_bytes(packed([("a.flac", b"no"), ("b.flac", b"no")]))
    with pytest.raises(ConfigError, match=r"16 files in a row cannot be served"):
        next(iter(loader(config(tmp_path), 1)))
    (tmp_path / "x.tar").write_bytes(packed([("a.txt", b"words"), ("b.exe", b"")]))
    with pytest.raises(ConfigError, match=r"nothing in 1 tar files can be used; they hold 1 \.exe"):
        loader(config(tmp_path), 1)
    (tmp_path / "x.tar").unlink()
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no tar files here; there are 1 \.wav(.|\n)*audio_dir"):
        loader(config(tmp_path), 1)
    with pytest.raises(ConfigError, match=r"nowhere: no such folder or file"):
        loader(config(tmp_path / "nowhere"), 1)


def test_compressed_tar_files_are_told(tmp_path, caplog):
    shard_folder(tmp_path, 1)
    (tmp_path / "b.tar.gz").write_bytes(b"")
    assert len(dataset(config(tmp_path))) == 4
    assert "b.tar.gz: .tar.gz: nothing can be found in it without reading it from the start; decompress it" in caplog.text


def test_a_tar_file_that_is_replaced_or_deleted_is_noticed(tmp_path):
    shard_folder(tmp_path)
    made = loader(config(tmp_path, drop_last=False))
    (tmp_path / "000.tar").unlink()
    (tmp_path / "001.tar").write_bytes(packed([("00004.flac", audio_bytes(77, 0.9)), *sample(5)]))
    served = [item["number"] for _, metadata in made for item in metadata]
    assert set(served) == {8, 9, 10, 11}
    causes = Counter(cause for cause in made.faults.values())
    assert len(made.faults) == 8 and any("cannot be read any more: No such file" in cause for cause in causes)
    assert any("another one than when it was first looked at" in cause or "shorter than it was" in cause for cause in causes)


def test_the_index_is_kept_and_made_again_when_the_tar_file_changes(tmp_path, monkeypatch):
    shard_folder(tmp_path / "s", 1, 2)
    document = config(tmp_path / "s", cache_dir=str(tmp_path / "kept"))
    assert len(dataset(document)) == 2
    (entry,) = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    text = entry.read_bytes()
    entry.write_bytes(text.replace(b"sound 1", b"other 1"))
    assert dataset(document)[1].metadata["prompt"] == "other 1"
    for damaged in (b"", b"{", text[:-30], text.splitlines(True)[-1], b"\x80\x04pickle"):
        entry.write_bytes(damaged)
        assert dataset(document)[1].metadata["prompt"] == "sound 1"
        assert entry.read_bytes() == text
    (tmp_path / "s" / "000.tar").write_bytes(packed([member for number in (5, 6, 7) for member in sample(number)]))
    assert [dataset(document)[i].metadata["number"] for i in range(3)] == [5, 6, 7]


def test_options_of_audio_act(tmp_path):
    loud = dataset(config(shard_folder(tmp_path), volume_norm="rms", volume_norm_param=[-40, 0]))
    plain = dataset(config(tmp_path))
    assert float(loud[0].audio.abs().max()) < 0.5 * float(plain[0].audio.abs().max())
    flipped = dataset(config(tmp_path, phase_flip=True))
    signs = {float((flipped.visit(ItemKey(0, v, 0)).audio / plain.visit(ItemKey(0, v, 0)).audio).nanmedian()) for v in range(9)}
    assert signs == {-1.0, 1.0}


def test_silence_is_shortened_and_times_follow(tmp_path):
    frames = np.concatenate([signal(0.1, RATE, 1), np.zeros((RATE, 1), np.float32), signal(0.1, RATE, 1)])
    file = io.BytesIO()
    soundfile.write(file, frames, RATE, format="WAV", subtype="FLOAT")
    (tmp_path / "x.tar").write_bytes(packed([("a.wav", file.getvalue())]))
    options = {"remove_silence": True, "silence_threshold": [0.0001, 0.1], "exact_seconds": True}
    assert dataset(config(tmp_path, **options))[0].metadata["seconds_total"] == pytest.approx(0.3, abs=0.01)


def test_latents(tmp_path):
    document = config(latent_shard(tmp_path / "l"), pre_encoded=True, latent_crop_length=8, samples_per_frame=RATE // 2, exact_seconds=True)
    made = loader(document, 5)
    audio, metadata = next(iter(made))
    assert audio.shape == (5, 3, 8) and audio.dtype == torch.float32
    for clip, item in zip(audio, metadata, strict=True):
        start = item["latent_crop_start"]
        assert torch.equal(clip[0], torch.arange(start, start + 8) + 100.0 * item["number"])
        assert item["seconds_start"] == start / 2 and item["seconds_total"] == 10
        assert start + 8 <= 20 - item["number"] and item["padding_mask"].all()
        assert item["prompt"] == f"sound {item['number']}" and item["path"].endswith(f"x.tar/{item['number']}.npy")


def test_whole_latents_have_masks_and_draws(tmp_path):
    document = config(latent_shard(tmp_path / "l"), pre_encoded=True, resampled_shards=True, epoch_steps=7)
    batches = list(loader(document, 2))
    assert len(batches) == 7
    for audio, metadata in batches:
        assert audio.shape == (2, 3, 20)
        assert [int(item["padding_mask"].sum()) for item in metadata] == [20 - item["number"] for item in metadata]


def test_crops_of_latents_need_a_frame_rate(tmp_path):
    with pytest.raises(ConfigError, match=r"samples_per_frame(.|\n)*a crop's seconds_start is not known(.|\n)*random_crop to false"):
        loader(config(latent_shard(tmp_path / "l"), pre_encoded=True, latent_crop_length=8))
    assert loader(config(tmp_path / "l", pre_encoded=True, latent_crop_length=8, random_crop=False))


def test_latents_that_cannot_be_used_are_told(tmp_path, caplog):
    objects = io.BytesIO()
    np.save(objects, np.array([[{}]], dtype=object), allow_pickle=True)
    flat = io.BytesIO()
    np.save(flat, np.zeros(5))
    good = io.BytesIO()
    np.save(good, np.zeros((3, 5)))
    members = [
        ("o.npy", objects.getvalue()),
        ("f.npy", flat.getvalue()),
        ("c.npy", good.getvalue()[:-9]),
        ("t.npy", b"text"),
        ("g.npy", good.getvalue()),
    ]
    (tmp_path / "x.tar").write_bytes(packed(members))
    assert len(dataset(config(tmp_path, pre_encoded=True))) == 1
    assert all(
        f"x.tar/{name}.npy: {cause}" in caplog.text
        for name, cause in [("o", "object"), ("f", "float64 of shape (5,)"), ("c", "cut off"), ("t", "no NumPy")]
    )


def test_check_reports_what_is_there(tmp_path, capsys):
    shard_folder(tmp_path / "s")
    (tmp_path / "s" / "z.tar").write_bytes(packed([("bad.flac", b"no audio"), ("silent.wav", silent()), ("link.wav", b"")]))
    path = tmp_path / "data.json"
    path.write_text(json.dumps(config(tmp_path / "s")))
    assert main(["check", "--data", str(path)]) == 0
    said = capsys.readouterr().out
    assert "12 of 15 audio files can be used" in said and "16000 Hz (12)" in said and "captions: 12 with, 0 without" in said
    assert "z.tar/bad.flac: not audio" in said and "z.tar/silent.wav: silent" in said
    assert main(["check", "--data", "--json", str(path)]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    (folder,) = report["data"]["folders"]
    assert folder["files"] == 12 and folder["hours"] == pytest.approx(6 / 3600) and len(folder["bad"]) == 3


def silent():
    file = io.BytesIO()
    soundfile.write(file, np.zeros((9000, 1)), RATE, format="WAV")
    return file.getvalue()


def test_training_processes_made_by_spawn_serve_the_same(tmp_path):
    import pickle

    data = dataset(config(shard_folder(tmp_path)))
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.visit(ItemKey(3, 1, 5)).audio, data.visit(ItemKey(3, 1, 5)).audio)


def test_gnu_and_pax_names_serve(tmp_path):
    name = "folder/" * 20 + "ä.flac"
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        (tmp_path / f"{number}.tar").write_bytes(packed([(name, audio_bytes(number))], form))
    data = dataset(config(tmp_path))
    assert [data[i].metadata["relpath"] for i in range(2)] == [name, name]


def test_check_finds_clipping_and_duplicates(tmp_path, capsys):
    loud = io.BytesIO()
    soundfile.write(loud, (9 * signal(0.5, RATE, 1)).clip(-1, 1), RATE, format="WAV")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.tar").write_bytes(packed([("a.wav", loud.getvalue()), *sample(1), ("again.flac", audio_bytes(1))]))
    path = tmp_path / "data.json"
    path.write_text(json.dumps(config(tmp_path / "s")))
    assert main(["check", "--data", "--json", str(path)]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    prefix = f"{tmp_path}/s/x.tar/"
    assert [sorted(group) for group in report["data"]["duplicates"]] == [[f"{prefix}00001.flac", f"{prefix}again.flac"]]
    assert prefix + "a.wav" in json.dumps(report["data"]["folders"][0])


def test_code_of_the_user_sees_where_an_item_is_from(tmp_path):
    code = tmp_path / "meta.py"
    code.write_text("def get_custom_metadata(info, audio):\n    return {'seen': info['path'], 'prompt': info['prompt'].upper()}\n")
    document = config(shard_folder(tmp_path / "s", 1), items={"custom_metadata_module": str(code)})
    (metadata,) = (metadata for _, metadata in loader(document, allow_code=True))
    assert {item["seen"].rpartition("s/")[2] for item in metadata} == {f"000.tar/0000{number}.flac" for number in range(4)}
    assert all(item["prompt"].startswith("SOUND ") for item in metadata)


def test_prompts_are_made_as_for_folders(tmp_path):
    items = {"path_pattern": "{number_in_path}", "prompts": {"templates": ["number {number} of {number_in_path}"]}}
    data = dataset(config(shard_folder(tmp_path), items=items))
    assert data[2].metadata["prompt"] == "number 2 of 00002"
    with pytest.raises(ConfigError, match=r'datasets\[0\]\.prompts\.templates\[0\](.|\n)*no item has "nunber"'):
        dataset(config(tmp_path, items={"prompts": {"templates": ["{nunber}"]}}))
