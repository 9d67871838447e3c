"""Goal R9 for shards: ten attacks by members, names and configs; none runs anything, leads anywhere, or stops the good items."""

import io
import os
import pickle
import tarfile
import urllib.request

import numpy as np
import pytest
from tar_files import RATE, packed, sample

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """What must not appear; unpickling a bomb would make it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Bomb(path)))
    path.rmdir()
    yield path
    assert not path.exists()


def config(folder, **options):
    return {"dataset_type": "wds", "datasets": [{"id": "a", "path": str(folder)}], "resampled_shards": False, "drop_last": False, **options}


def served(folder):
    loader = create_dataloader_from_config(config(folder), 2, 4000, RATE, 1, 0)
    return sorted(item["number"] for _, metadata in loader for item in metadata)


def shard(folder, *members, name="x.tar"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(packed([*sample(0), *members, *sample(1)]))
    return folder


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "pt", "py", "so", "exe", "msg", "cbor", "ten", "cls"])
def test_members_of_other_kinds_are_never_read(tmp_path, canary, extension):
    bomb = pickle.dumps(Bomb(canary))
    assert served(shard(tmp_path / "s", (f"00000.{extension}", bomb), (f"bomb.{extension}", bomb))) == [0, 1]


@pytest.mark.parametrize("extension", ["flac", "wav", "json", "txt"])
def test_pickles_under_good_names_are_damaged_members(tmp_path, canary, extension):
    bomb = pickle.dumps(Bomb(canary))
    assert served(shard(tmp_path / "s", (f"bomb.{extension}", bomb)))[:2] in ([0, 0], [0, 1])


def test_arrays_of_objects_are_refused(tmp_path, canary, caplog):
    objects = io.BytesIO()
    np.save(objects, np.array([[Bomb(canary)]], dtype=object), allow_pickle=True)
    good = io.BytesIO()
    np.save(good, np.zeros((2, 3), np.float32))
    shard(tmp_path / "s", ("bomb.npy", objects.getvalue()), ("good.npy", good.getvalue()))
    loader = create_dataloader_from_config(config(tmp_path / "s", pre_encoded=True), 1, 4000, RATE, 1, 0)
    assert len(list(loader)) == 1
    assert "bomb.npy: object of shape (1, 1); expected numbers" in caplog.text


def test_an_array_whose_header_is_exchanged_after_it_was_looked_at_is_not_unpickled(tmp_path, canary):
    good, bad = io.BytesIO(), io.BytesIO()
    np.save(bad, np.array([[Bomb(canary)]], dtype=object), allow_pickle=True)
    np.save(good, np.zeros((1, (len(bad.getvalue()) - 128) // 4 + 1), np.float32))
    members = [("a.npy", good.getvalue()), ("b.npy", good.getvalue())]
    path = tmp_path / "s" / "x.tar"
    path.parent.mkdir()
    path.write_bytes(packed(members))
    loader = create_dataloader_from_config(config(tmp_path / "s", pre_encoded=True), 2, 4000, RATE, 1, 0)
    content = bytearray(path.read_bytes())
    content[512 : 512 + len(bad.getvalue())] = bad.getvalue()
    path.write_bytes(content)
    assert len(list(loader)) == 1
    (cause,) = loader.faults.values()
    assert "cannot be read: Object arrays cannot be loaded when allow_pickle=False" in cause


@pytest.mark.parametrize("name", ["../canary", "../../canary/a.flac", "/canary.flac", "a/../../../canary.flac"])
def test_names_that_lead_elsewhere_are_left_out(tmp_path, canary, name):
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert served(shard(tmp_path / "s", (name, b"words"))) == [0, 1]
    after = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert after - before == {tmp_path / "s", tmp_path / "s" / "x.tar"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_followed(tmp_path, canary, kind):
    secret = tmp_path / "secret.json"
    secret.write_text('{"prompt": "secret"}')
    entry = tarfile.TarInfo("00000.json")
    entry.type, entry.linkname = kind, str(secret)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.tar").write_bytes(packed([sample(0)[0], (entry, b"")]))
    loader = create_dataloader_from_config(config(tmp_path / "s"), 1, 4000, RATE, 1, 0)
    assert "secret" not in str(list(loader))


@pytest.mark.parametrize("text", ["$(mkdir {})", "`mkdir {}`", "a; mkdir {} #", "| mkdir {}", "&& mkdir {} &&"])
def test_names_are_no_commands(tmp_path, canary, text):
    words = text.format(canary).replace("/", "_")
    assert served(shard(tmp_path / "s", (f"{words}.bin", b""), name=f"{words}.tar")) == [0, 1]
    with pytest.raises(ConfigError):
        served(tmp_path / text.format(canary))


@pytest.mark.parametrize(
    "text", ["pipe:mkdir {}", "!mkdir {}", "s3://a/b; mkdir {}", "file://{}", "http://169.254.169.254/latest", "gs://a/b"]
)
@pytest.mark.parametrize("key", ["path", "s3_path"])
def test_places_are_no_commands_and_no_other_servers(tmp_path, canary, text, key, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    document = {"dataset_type": "wds", "datasets": [{"id": "a", key: text.format(canary)}]}
    document |= {"retry_seconds": 0.1} if key == "s3_path" else {}
    with pytest.raises(ConfigError):
        create_dataloader_from_config(document, 1, 4000, RATE, 1, 0)


def test_a_module_runs_with_permission_alone(tmp_path, canary):
    code = tmp_path / "meta.py"
    code.write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    document = config(shard(tmp_path / "s"))
    document["datasets"][0]["custom_metadata_module"] = str(code)
    with pytest.raises(ConfigError, match="--allow-code"):
        create_dataloader_from_config(document, 1, 4000, RATE, 1, 0)


def test_an_index_in_the_cache_is_never_unpickled(tmp_path, canary):
    folder = shard(tmp_path / "s")
    parse_dataset_config(config(folder)).build(sample_size=4000, sample_rate=RATE)
    (entry,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    entry.write_bytes(pickle.dumps(Bomb(canary)))
    assert served(folder) == [0, 1]


def test_descriptions_that_are_too_large_or_too_deep_are_left_out(tmp_path, canary):
    deep = b'{"prompt":' + b"[" * 100_000
    assert served(shard(tmp_path / "s", ("00000.txt", b"x" * (2 << 20)), ("deep.json", deep))) == [0, 1]
