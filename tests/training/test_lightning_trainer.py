"""From Python: Lightning's own Trainer, data module route and default callbacks, as notebooks use them."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.data_module import AudioDataModule

KINDS = ["text_to_audio", "autoencoder", "language_model", "inpainting", "diffusion_autoencoder"]


def module_of(kind):
    torch.manual_seed(0)
    config = getattr(configs, kind)()
    return create_training_wrapper_from_config(config, create_model_from_config(config))


def data(**settings):
    return AudioDataModule({"dataset_type": "synthetic", "num_items": 24}, batch_size=4, num_workers=0, **settings)


def trainer_in(folder, *callbacks, **settings):
    shared = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return pl.Trainer(**shared, default_root_dir=folder, logger=CSVLogger(folder), callbacks=list(callbacks), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_lightnings_callbacks_work_and_resume(kind, tmp_path):
    monitored = "val/cross_entropy" if kind == "language_model" else "val/loss"
    best = ModelCheckpoint(tmp_path, monitor=monitored, save_last=True)
    watched = (best, EarlyStopping(monitored, patience=3), LearningRateMonitor())
    module = module_of(kind)
    trainer = trainer_in(tmp_path, *watched, max_epochs=1)
    trainer.fit(module, datamodule=data())
    assert trainer.current_epoch == 1 and module.train_step == 6
    assert float(best.best_model_score) == float(trainer.callback_metrics[monitored]) and Path(best.best_model_path).exists()
    assert "lr-" in next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]

    resumed, again = module_of(kind), trainer_in(tmp_path, max_epochs=2)
    again.fit(resumed, datamodule=data(), ckpt_path=best.last_model_path)
    straight, whole = module_of(kind), trainer_in(tmp_path, max_epochs=2)
    whole.fit(straight, datamodule=data())
    assert resumed.train_step == straight.train_step == 12
    weights = dict(resumed.named_parameters()) | dict(resumed.named_buffers())
    assert all(value.equal(weights[name]) for name, value in (*straight.named_parameters(), *straight.named_buffers()))


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_gets_no_better(tmp_path):
    module = module_of("text_to_audio")
    trainer = trainer_in(tmp_path, EarlyStopping("val/loss", patience=0, min_delta=1e6), max_epochs=9)
    trainer.fit(module, datamodule=data())
    assert trainer.current_epoch == 2


@pytest.mark.slow
def test_validate_and_test_need_no_training(tmp_path):
    trainer = trainer_in(tmp_path)
    trainer.validate(module_of("text_to_audio"), datamodule=data())
    validated = float(trainer.callback_metrics["val/loss"])
    trainer.test(module_of("text_to_audio"), datamodule=data())
    assert float(trainer.callback_metrics["test/loss"]) == pytest.approx(validated)


def test_the_data_take_their_shape_from_the_module_and_each_stage_reads_its_own(tmp_path):
    given = data(test_config={"dataset_type": "synthetic", "num_items": 4})
    config = configs.text_to_audio()
    trainer = trainer_in(tmp_path, limit_test_batches=1)
    trainer.test(module_of("text_to_audio"), datamodule=given)
    audio, metadata = next(iter(given.test_dataloader()))
    assert audio.shape == (4, config["audio_channels"], config["sample_size"]) and len(metadata) == 4
    assert given.train_dataloader() is None and given.val_dataloader() == []


def test_data_without_a_held_out_part_validate_on_nothing():
    given = AudioDataModule({"dataset_type": "synthetic", "hold_out": 0})
    assert not given.validates and not given.tests and data().validates and data().tests


def test_code_in_a_dataset_config_needs_permission(tmp_path):
    from stable_audio_tools.configs.errors import ConfigError

    (tmp_path / "data.json").write_text(
        '{"dataset_type": "audio_dir",\n "datasets": [{"id": "a", "path": ".", "custom_metadata_module": "code.py"}]}'
    )
    with pytest.raises(ConfigError, match=r"data\.json:2:.*custom_metadata_module"):
        AudioDataModule(tmp_path / "data.json")
    with pytest.raises(ConfigError, match=r"data\.json:2:.*custom_metadata_module"):
        AudioDataModule(val_config=tmp_path / "data.json")
