"""Models by name: folders, runs, files, and the hub by a stand-in for its package."""

import json
import shutil
import sys
import types

import pytest
import torch
from configs import text_to_audio
from safetensors.torch import save_file

from stable_audio_tools import get_pretrained_model
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretrained import find_model


@pytest.fixture(scope="module")
def trained():
    return create_model_from_config(text_to_audio())


@pytest.fixture
def folder(tmp_path, trained):
    """As models are published: the config beside plain weights."""
    (tmp_path / "model_config.json").write_text(json.dumps(text_to_audio()))
    save_model(tmp_path / "model.safetensors", trained, text_to_audio())
    return tmp_path


def assert_loaded(found, trained):
    model, config = found
    assert config == text_to_audio() and not model.training
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_folder(folder, trained, as_type):
    assert_loaded(get_pretrained_model(as_type(folder)), trained)


def test_a_folder_with_a_torch_checkpoint(folder, trained):
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": trained.state_dict()}, folder / "model.ckpt")
    assert_loaded(get_pretrained_model(folder), trained)


def test_a_run_its_exports_and_a_single_file_carry_their_config(tmp_path, trained):
    exports = tmp_path / "run" / "exports"
    exports.mkdir(parents=True)
    save_model(exports / "model.safetensors", trained, text_to_audio())
    for name in (tmp_path / "run", exports, exports / "model.safetensors"):
        assert_loaded(get_pretrained_model(name), trained)


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"has no model\.safetensors or model\.ckpt, here or in exports/; it has notes\.txt"):
        get_pretrained_model(tmp_path)


def test_weights_of_another_model_are_refused(folder):
    config = text_to_audio()
    config["model"]["diffusion"]["config"]["depth"] = 1
    (folder / "model_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="does not fit this model"):
        get_pretrained_model(folder)


def test_a_bad_config_beside_weights_names_its_file(folder):
    config = text_to_audio()
    config["model"]["io_channels"] = 3
    (folder / "model_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"model_config\.json"):
        get_pretrained_model(folder)


@pytest.mark.parametrize("name", ["no-such-folder", "./a/b", "/nowhere/at/all"])
def test_a_name_of_nothing(name):
    with pytest.raises(ConfigError, match="no such file or folder, and no name of a hub repository"):
        get_pretrained_model(name)


def test_the_hub_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[hub\]", or name a local folder'):
        get_pretrained_model("someone/a-model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose repositories are folders under `tmp_path / "hub"`."""
    package, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    errors.HfHubHTTPError = type("HfHubHTTPError", (OSError,), {})
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})
    errors.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (errors.EntryNotFoundError,), {})

    def hf_hub_download(name, filename):
        path = tmp_path / "hub" / name / filename
        if not path.parent.is_dir():
            raise errors.HfHubHTTPError("401 Client Error\nRepository Not Found")
        if not path.is_file():
            raise errors.EntryNotFoundError(f"404: {filename}")
        return str(path)

    package.hf_hub_download, package.errors = hf_hub_download, errors
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return tmp_path / "hub"


@pytest.mark.parametrize("weights", ["model.safetensors", "model.ckpt"])
def test_a_repository_of_the_hub(hub, folder, trained, weights):
    (hub / "someone" / "a-model").mkdir(parents=True)
    for name in ("model_config.json", "model.safetensors"):
        shutil.move(folder / name, hub / "someone" / "a-model" / (weights if name == "model.safetensors" else name))
    assert_loaded(get_pretrained_model("someone/a-model"), trained)


def test_what_the_hub_says_is_passed_on(hub):
    with pytest.raises(ConfigError, match="the hub does not give it: 401 Client Error"):
        get_pretrained_model("someone/private")
    (hub / "someone" / "empty").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"404: model_config\.json"):
        get_pretrained_model("someone/empty")


def test_public_names_are_listed_and_unknown_ones_refused():
    import stable_audio_tools

    assert {"create_model_from_config", "load_model_config", "get_pretrained_model", "__version__"} <= set(dir(stable_audio_tools))
    assert stable_audio_tools.__version__.count(".") >= 2
    with pytest.raises(AttributeError, match="nonsense"):
        stable_audio_tools.nonsense


def test_a_model_is_known_before_its_weights_are_read(folder, trained):
    found = find_model(folder)
    outline = found.outline()
    assert all(tensor.is_meta for tensor in outline.state_dict().values()) and not outline.training
    assert outline.state_dict().keys() == trained.state_dict().keys()
    assert_loaded((found.load(), found.config), trained)


def test_weights_that_carry_no_config_are_given_one(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="carries no model config"):
        find_model(tmp_path / "bare.safetensors")
    (tmp_path / "other.json").write_text(json.dumps(text_to_audio()))
    found = find_model(tmp_path / "bare.safetensors", model_config=tmp_path / "other.json")
    assert_loaded((found.load(), found.config), trained)


@pytest.mark.parametrize("kind", ["in its header", "beside it"])
def test_an_adapter_alone_is_told(tmp_path, kind):
    header = {"lora_config": "{}"} if kind == "in its header" else None
    save_file({"layer.lora_A.weight": torch.ones(1, 1)}, tmp_path / "style.safetensors", header)
    if header is None:
        (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"style\.safetensors: an adapter: it changes a model's weights and is none itself\n.*--adapter"):
        get_pretrained_model(tmp_path / "style.safetensors")


def test_a_slip_in_a_path_is_pointed_out_before_the_hub_is_asked(tmp_path, monkeypatch):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "model.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    for name, meant in (("runs/quikstart", "runs/quickstart"), ("runs/modle.safetensors", "runs/model.safetensors"), ("run", "runs")):
        with pytest.raises(ConfigError, match=rf"{name}: no such file or folder\n  = did you mean {meant}\?"):
            find_model(name)
    with pytest.raises(ConfigError, match=r"no name of a hub repository\n  = check the path"):
        find_model("elsewhere/other.safetensors")
