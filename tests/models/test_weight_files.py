"""Every file a user can name by mistake, and every way a good one breaks, gets one message: what it is and what to do."""

import json
import os
import pickle
import random
import zipfile

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.checkpoint_error import CheckpointError
from stable_audio_tools.models.checkpoints import load_weights, save_model
from stable_audio_tools.models.weight_files import read_weight_file

WEIGHTS = {"encoder.weight": torch.arange(600.0).reshape(20, 30), "encoder.count": torch.tensor(7), "decoder.bias": torch.ones(40).half()}


@pytest.fixture
def good(tmp_path):
    """The same weights in each format."""
    save_model(tmp_path / "good.safetensors", WEIGHTS, {"model_type": "autoencoder"})
    torch.save(WEIGHTS, tmp_path / "good.ckpt")
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    return {name: tmp_path / name for name in ("good.safetensors", "good.ckpt", "old.pt")}


def refusal(path) -> tuple[str, str]:
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    (problem,) = caught.value.problems
    assert caught.value.source == str(path)
    assert str(caught.value).startswith(f"{path}: {problem.message}")
    assert problem.fix
    return problem.message, problem.fix


@pytest.mark.parametrize("name", ["good.safetensors", "good.ckpt", "old.pt"])
def test_a_file_is_known_by_its_content_not_its_name(good, name, tmp_path):
    misnamed = good[name].rename(tmp_path / "weights.bin")
    state = load_weights(misnamed).state_dict
    assert state.keys() == WEIGHTS.keys()
    for key, value in WEIGHTS.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)
        assert state[key].dtype == value.dtype


def test_a_checkpoint_error_is_a_config_error():
    assert issubclass(CheckpointError, ConfigError)


def test_a_missing_file_is_named_with_its_nearest_neighbour(good, tmp_path):
    message, fix = refusal(tmp_path / "godo.ckpt")
    assert message == "no such file"
    assert fix == f"did you mean {good['good.ckpt']}?"
    assert refusal(tmp_path / "elsewhere" / "x.ckpt") == ("no such file", "check the path")


def test_a_folder_is_answered_with_the_files_in_it(good, tmp_path):
    message, fix = refusal(tmp_path)
    assert message == "a folder, not a weight file"
    assert fix == "name a file in it: good.ckpt, good.safetensors, old.pt"


@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        (b"", "the file is empty", "copy or download it again"),
        (
            random.Random(1).randbytes(500),
            "neither safetensors nor a torch file, or its beginning is damaged",
            "copy or download it again, or",
        ),
        (b"\n<!DOCTYPE html><html>", "a web page, not weights", "download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer, not weights", "git lfs pull"),
        (b'{"model_type": "lm"}', "a JSON text, not weights", "name a safetensors file"),
        (b"RIFF\x00\x01\x00\x00WAVEfmt ", "an audio file, not weights", "name a safetensors file"),
        (b"\x1f\x8b\x08", "a gzip archive, not weights", "unpack it first"),
        (pickle.dumps({"weight": 1}), "a Python pickle that torch did not save, not weights", "name a safetensors file"),
    ],
    ids=["empty", "random", "html", "lfs", "json", "wav", "gzip", "pickle"],
)
def test_what_is_no_weight_file_is_called_what_it_is(tmp_path, content, message, fix):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    got = refusal(path)
    assert got[0] == message
    assert fix in got[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_says_why(good):
    good["good.ckpt"].chmod(0)
    assert refusal(good["good.ckpt"]) == ("cannot be read: Permission denied", "check its permissions")


@pytest.mark.parametrize("share", [0.005, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["good.safetensors", "good.ckpt", "old.pt"])
def test_a_cut_file_is_refused(good, name, share):
    content = good[name].read_bytes()
    good[name].write_bytes(content[: int(len(content) * share)])
    message, fix = refusal(good[name])
    assert "again" in fix
    if name == "good.ckpt" or (name == "good.safetensors" and share > 0.1):
        assert message.startswith("cut off: ")


@pytest.mark.parametrize("name", ["good.safetensors", "good.ckpt"])
def test_one_flipped_bit_never_gives_other_weights(good, name):
    content, draw = good[name].read_bytes(), random.Random(0)
    caught = 0
    for place in draw.sample(range(len(content)), 150):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        good[name].write_bytes(flipped)
        try:
            state = load_weights(good[name]).state_dict
        except CheckpointError:
            caught += 1
        else:  # alignment bytes between the parts of an archive mean nothing
            assert state.keys() == WEIGHTS.keys()
            assert all(torch.equal(state[key], value) for key, value in WEIGHTS.items())
    assert caught >= 100


@pytest.mark.parametrize("name", ["good.safetensors", "good.ckpt"])
def test_a_flipped_bit_in_a_tensor_is_found_and_named(good, name):
    content = good[name].read_bytes()
    place = content.index(WEIGHTS["encoder.weight"].numpy().tobytes()) + 1201
    good[name].write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    message, fix = refusal(good[name])
    assert message.endswith("does not match its checksum")
    assert ("encoder.weight" if name == "good.safetensors" else "data/") in message
    assert fix.startswith("copy or download it again")


def test_a_flipped_bit_in_the_header_config_is_found(good):
    content = good["good.safetensors"].read_bytes()
    good["good.safetensors"].write_bytes(content.replace(b"autoencoder", b"autoencodes", 1))
    message, _ = refusal(good["good.safetensors"])
    assert message == "damaged: the header does not match its checksum"


def test_a_broken_safetensors_header_is_refused(tmp_path):
    header = b'{"weight": 3}   '
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert refusal(tmp_path / "a.safetensors")[0].startswith("its safetensors header is damaged")


def test_files_of_the_safetensors_library_load_though_they_have_no_checksum(tmp_path):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "theirs.safetensors")
    assert load_weights(tmp_path / "theirs.safetensors").state_dict.keys() == WEIGHTS.keys()


def test_the_safetensors_library_reads_ours(good):
    from safetensors import safe_open

    with safe_open(good["good.safetensors"], "pt") as file:
        assert json.loads(file.metadata()["model_config"]) == {"model_type": "autoencoder"}
        assert all(torch.equal(file.get_tensor(key), value) for key, value in WEIGHTS.items())


class Payload:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("new_format", [True, False], ids=["archive", "old"])
def test_a_pickle_payload_is_refused_and_does_not_run(tmp_path, new_format):
    canary, path = tmp_path / "canary", tmp_path / "evil.ckpt"
    state = {"state_dict": WEIGHTS, "hyper_parameters": Payload(f"touch {canary}")}
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    message, fix = refusal(path)
    assert "holds a Python object (posix.system) beside tensors" in message
    assert "ask its maker for safetensors" in fix
    assert not canary.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pt")[0]


def test_archives_that_are_no_weights_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme", "hello")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:  # TorchScript
        for part in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"program/{part}", "")
    for name in ("a.zip", "program.pt"):
        assert refusal(tmp_path / name)[0] == "a zip archive, but not of tensors saved by torch.save"


def test_torch_files_without_weights_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "numbers.pt")
    assert refusal(tmp_path / "list.pt")[0] == "holds a list, not weights by name"
    assert refusal(tmp_path / "numbers.pt")[0] == "holds no weights; its entries are epoch, loss"


def test_the_header_alone_can_be_read_of_a_file_whose_tensors_are_damaged(good):
    content = good["good.safetensors"].read_bytes()
    good["good.safetensors"].write_bytes(content[:-1] + b"x")
    assert read_weight_file(good["good.safetensors"], header_only=True).metadata["format"] == "pt"
