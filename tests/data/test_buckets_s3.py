"""Buckets, on a real S3 server on loopback: batches as from disk, a cache, patience with servers, and every refusal in words."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from s3_server import Way, first, no_fault
from tar_files import RATE, audio_bytes, latent_shard, packed, sample, shard_folder

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.objects import connection
from stable_audio_tools.data.types import ItemKey

pytest.importorskip("s3fs", reason="pip install -e '.[s3]'")
moto_server = pytest.importorskip("moto.server", reason="pip install -e '.[test]'")
pytestmark = pytest.mark.slow
SIZE = 4000


@pytest.fixture(scope="module")
def server():
    made = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def way(server, tmp_path_factory, monkeypatch):
    """An empty server, which the usual places point to."""
    home = tmp_path_factory.mktemp("home")
    made = Way(server)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "AWS_ENDPOINT_URL": made.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).read()
    connection.cache_clear()
    yield made
    made.server.shutdown()
    made.server.server_close()
    connection.cache_clear()


def filled(way, folder, bucket="data", prefix="audio/"):
    """The bucket with all files of a folder."""
    s3 = client(way)
    s3.create_bucket(Bucket=bucket)
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            s3.put_object(Bucket=bucket, Key=prefix + str(path.relative_to(folder)), Body=path.read_bytes())
    return s3


def client(way):
    import boto3

    return boto3.client("s3", endpoint_url=f"http://{way.target}")


def config(s3_path="s3://data/audio", items=None, **options):
    item = {"id": "bucket", "s3_path": s3_path, **(items or {})}
    return {"dataset_type": "s3", "datasets": [item], "resampled_shards": False, "retry_seconds": 5, **options}


def loader(document, batch_size=4, workers=0, **options):
    return create_dataloader_from_config(document, batch_size, SIZE, RATE, 1, workers, **options)


def dataset(document):
    return parse_dataset_config(document).build(sample_size=SIZE, sample_rate=RATE, audio_channels=1)


def batches(loader):
    return [(audio, [item["number"] for item in metadata]) for audio, metadata in loader]


def equal(some, others):
    return len(some) == len(others) and all(a[1] == b[1] and torch.equal(a[0], b[0]) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_same_files_on_disk(way, tmp_path, workers):
    filled(way, shard_folder(tmp_path / "s"))
    local = loader({"dataset_type": "wds", "datasets": [{"id": "a", "path": str(tmp_path / "s")}], "resampled_shards": False})
    remote = loader(config(), workers=workers)
    assert equal(batches(remote), batches(local)) and equal(batches(remote), batches(local))
    remote.close()
    served = dataset(config())[5].metadata
    assert served["path"] == "s3://data/audio/001.tar/00005.flac" and served["prompt"] == "sound 5"


def test_a_run_goes_on_where_it_was_with_other_workers_and_ranks(way, tmp_path):
    filled(way, shard_folder(tmp_path / "s", 4, 6))
    whole = batches(loader(config()))
    begun = loader(config())
    iterator = iter(begun)
    for _ in range(2):
        next(iterator)
    state = begun.state_dict()
    rest = []
    for rank in range(2):
        again = loader(config(), 2, 2, rank=rank, world_size=2)
        again.load_state_dict(state)
        rest.append(batches(again))
        again.close()
    together = [(torch.cat((a, b)), [*x, *y]) for (a, x), (b, y) in zip(*rest, strict=True)]
    assert equal(together, whole[2:])


@pytest.mark.parametrize(
    "place, count",
    [
        ("s3://data", 8),
        ("s3://data/audio/", 8),
        ("s3://data/audio/in/001.tar", 4),
        ("s3://data/audio/in/{000..000}.tar", 4),
        ("s3://data/*/1.tar", 0),
    ],
)
def test_places_are_buckets_prefixes_objects_and_patterns(way, tmp_path, place, count):
    filled(way, shard_folder(tmp_path / "s" / "in", 2).parent)
    if count:
        assert len(dataset(config(place))) == count
    else:
        with pytest.raises(ConfigError, match=r"no tar files here"):
            dataset(config(place))


def test_what_was_read_is_read_from_this_machine_after_that(way, tmp_path):
    filled(way, shard_folder(tmp_path / "s"))
    first_pass = batches(loader(config(drop_last=False)))
    reads = way.reads()
    assert len(reads) == 3 + 12  # an index of each tar file, each item once
    assert equal(batches(loader(config(drop_last=False))), first_pass)
    assert not way.reads()
    uncached = loader(config(drop_last=False, cache_gigabytes=0, cache_dir=str(tmp_path / "other")))
    assert equal(batches(uncached), first_pass)
    assert len(batches(uncached)) == 3
    assert len(way.reads()) == 3 + 12 + 12
    assert not (tmp_path / "other" / "items").exists()


def test_the_cache_keeps_to_its_size_and_damage_in_it_is_read_again(way, tmp_path):
    shards = shard_folder(tmp_path / "s")
    filled(way, shards)
    limit = sum(path.stat().st_size for path in shards.iterdir()) / 3
    made = loader(config(cache_gigabytes=limit / 1e9, cache_dir=str(tmp_path / "c")))
    before = batches(made)
    kept = [path for path in (tmp_path / "c" / "items").rglob("*") if path.is_file()]
    assert 0 < len(kept) < 12 and sum(path.stat().st_size for path in kept) <= limit
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    assert equal(batches(loader(config(cache_gigabytes=limit / 1e9, cache_dir=str(tmp_path / "c")))), before)


@pytest.mark.parametrize("fault", [500, 503, "cut", "drop"])
def test_a_server_that_fails_twice_is_asked_again(way, tmp_path, fault):
    filled(way, shard_folder(tmp_path / "s", 1))
    data = dataset(config(retry_seconds=30))
    way.fault = first(2, fault)
    served = data.visit(ItemKey(0, 0, 1))
    assert served.metadata["number"] == 1 and not served.faults
    way.fault = first(2, fault, reads_only=False)
    connection.cache_clear()
    assert len(dataset(config(retry_seconds=30))) == 4


@pytest.mark.parametrize("fault", [503, "cut", "drop"])
def test_a_server_that_goes_on_failing_ends_the_run_in_time(way, tmp_path, fault):
    filled(way, shard_folder(tmp_path / "s", 1))
    data = dataset(config(retry_seconds=1.5))
    way.fault = first(10**9, fault)
    started = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"s3://data/audio/000\.tar: does not answer: \d requests in \d s failed, the last one: (.|\n)*AWS_ENDPOINT_URL"
    ):
        data.visit(ItemKey(0, 0, 1))
    assert time.monotonic() - started < 5


def test_nobody_at_the_endpoint(way, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"s3://data/audio: does not answer(.|\n)*127\.0\.0\.1:9"):
        dataset(config(retry_seconds=0.5))


def test_a_refusal_without_credentials_is_told(way, tmp_path):
    filled(way, shard_folder(tmp_path / "s", 1))
    with pytest.raises(ConfigError, match=r"access without credentials is refused"):
        dataset(config(items={"anonymous": True}))


def test_a_bucket_that_is_not_there(way):
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"s3://nowhere/audio: there is no such bucket(.|\n)*endpoint"):
        dataset(config("s3://nowhere/audio", retry_seconds=60))
    assert time.monotonic() - started < 20


def test_a_prefix_that_is_not_there(way, tmp_path):
    filled(way, shard_folder(tmp_path / "s", 1))
    with pytest.raises(ConfigError, match=r"s3://data/video: no tar files here"):
        dataset(config("s3://data/video"))


def test_wrong_credentials(way, server, tmp_path):
    filled(way, shard_folder(tmp_path / "s", 1))
    ask_who(server, 0)
    try:
        with pytest.raises(ConfigError, match=r"access with the default credentials is refused: (.|\n)*AWS_PROFILE"):
            dataset(config(retry_seconds=60))
    finally:
        ask_who(server, float("inf"))


def ask_who(server, after):
    """Requests after so many must be signed by somebody whom the server knows."""
    body, headers = str(after).encode(), {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset-auth", body, headers)).read()


def test_no_credentials_and_public_buckets(way, tmp_path, monkeypatch):
    s3 = filled(way, shard_folder(tmp_path / "s", 1))
    s3.put_bucket_acl(Bucket="data", ACL="public-read")
    s3.put_object_acl(Bucket="data", Key="audio/000.tar", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match=r'no credentials: (.|\n)*"anonymous": true'):
        dataset(config(retry_seconds=60))
    assert len(dataset(config(items={"anonymous": True}))) == 4


def test_profiles(way, tmp_path, monkeypatch):
    filled(way, shard_folder(tmp_path / "s", 1))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    folder = Path(os.environ["HOME"]) / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
    (folder / "config").write_text(f"[profile work]\nregion = us-east-1\nendpoint_url = {way.url}\n")
    assert len(dataset(config(items={"profile": "work"}))) == 4
    with pytest.raises(ConfigError, match=r"profile \(?'?play'?\)?(.|\n)*~/\.aws/config"):
        dataset(config(items={"profile": "play"}, retry_seconds=60))


def test_a_tar_file_that_disappears_or_changes_is_told_and_others_stand_in(way, tmp_path):
    s3 = filled(way, shard_folder(tmp_path / "s"))
    made = loader(config(drop_last=False))
    s3.delete_object(Bucket="data", Key="audio/000.tar")
    s3.put_object(
        Bucket="data", Key="audio/001.tar", Body=packed([("00004.flac", audio_bytes(77, 0.9)), *sample(5), *sample(6), *sample(7)])
    )
    served = {number for _, numbers in batches(made) for number in numbers}
    assert {8, 9, 10, 11} <= served and not served & {0, 1, 2, 3}
    assert made.faults["s3://data/audio/000.tar/00000.flac"] == "the object is not there any more"
    assert "another one than when it was first looked at" in made.faults["s3://data/audio/001.tar/00004.flac"]


def test_an_epoch_costs_one_request_an_item_and_an_index_few(way, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.tar").write_bytes(packed([member for number in range(40) for member in sample(number)]))
    filled(way, tmp_path / "s")
    data = dataset(config())
    assert len(way.reads()) <= 4
    data.visit(ItemKey(0, 0, 7))
    data.visit(ItemKey(0, 1, 7))
    assert len(way.reads()) == 1


def test_check_reads_a_bucket(way, tmp_path, capsys):
    shards = shard_folder(tmp_path / "s")
    (shards / "z.tar").write_bytes(packed([("bad.flac", b"no audio")]))
    filled(way, shards)
    path = tmp_path / "data.json"
    path.write_text(json.dumps(config()))
    assert main(["check", "--data", "--json", str(path)]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    (folder,) = report["data"]["folders"]
    assert folder["files"] == 12 and folder["captioned"] == 12 and folder["path"] == "s3://data/audio"
    assert folder["bad"][0][0] == "s3://data/audio/z.tar/bad.flac"
    path.write_text(json.dumps(config("s3://nowhere/audio")))
    assert main(["check", "--data", str(path)]) == 2
    assert "there is no such bucket" in capsys.readouterr().err


def test_names_with_shell_characters_are_names(way, tmp_path):
    canary = tmp_path / "canary"
    names = [
        f"$(touch {canary}).tar",
        f"`touch {canary}`.tar",
        f"a; touch {canary} #.tar",
        f"| touch {canary}.tar",
        "a'b\"c & d.tar",
        "ü {x} [y] *.tar",
    ]
    s3 = client(way)
    s3.create_bucket(Bucket="data")
    for number, name in enumerate(names):
        s3.put_object(Bucket="data", Key=f"audio/{name}", Body=packed(sample(number)))
    served = sorted(number for _, numbers in batches(loader(config(drop_last=False))) for number in numbers)
    assert served == list(range(len(names)))
    for name in names:
        assert len(dataset(config(f"s3://data/audio/{name}"))) == 1
    assert not canary.exists()


def test_without_the_package_the_extra_is_named(tmp_path):
    lines = ("import sys", "sys.modules['s3fs'] = None", "from stable_audio_tools.data.dataset import *")
    program = "\n".join((*lines, "create_dataloader_from_config(%r, 1, 100, 8000)"))
    found = subprocess.run(
        [sys.executable, "-c", program % config()], capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    )
    assert found.returncode == 1 and 'pip install -e ".[s3]"' in found.stderr


def test_no_fault_lets_all_through():
    assert no_fault("GET", "/") is None


def test_a_batch_is_fetched_at_once(way, tmp_path):
    filled(way, shard_folder(tmp_path / "s"))
    made = loader(config(drop_last=False, cache_gigabytes=0), 12)
    way.requests.clear()
    waiting, most = [0], [0]

    def slow(method, path):
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        time.sleep(0.2)
        waiting[0] -= 1

    way.fault = slow
    (batch,) = batches(made)
    assert sorted(batch[1]) == list(range(12))
    assert most[0] > 4 and len(way.reads()) == 12


def test_latents_in_a_bucket(way, tmp_path):
    filled(way, latent_shard(tmp_path / "l"))
    options = {"pre_encoded": True, "latent_crop_length": 8, "random_crop": False, "drop_last": False}
    local = {"dataset_type": "wds", "datasets": [{"id": "a", "path": str(tmp_path / "l")}], "resampled_shards": False, **options}
    assert equal(batches(loader(config(**options))), batches(loader(local)))
