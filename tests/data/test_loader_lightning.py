"""Lightning resumes the loader by itself: a run that was stopped anywhere and resumed sees the batches of one that was not."""

import lightning
import pytest
import torch
from torch.utils.data import Dataset

from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.types import Sample

MODES = {"steps": {"max_steps": 12}, "epochs": {"max_epochs": 3}}


class Numbers(Dataset):
    def __len__(self):
        return 18  # 4 batches of 4, and 2 left over

    def visit(self, key):
        return Sample(torch.full((1, 4), float(key.item)), {"key": tuple(key)})


class Module(lightning.LightningModule):
    """Optimises by hand, as the training host does, and notes which items it saw."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = torch.nn.Linear(4, 1), []
        self.automatic_optimization = False

    def training_step(self, batch, index):
        self.seen.append(tuple(item["key"] for item in batch[1]))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.net(batch[0]).mean())
        optimizer.step()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class SaveAndStop(lightning.Callback):
    """At the n-th call of a hook."""

    def __init__(self, hook, n, path):
        self.left, self.path = n, path
        setattr(self, hook, self._called)

    def _called(self, trainer, module, *_):
        self.left -= 1
        if not self.left:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def run(callbacks=(), resume_from=None, workers=0, **mode):
    module, loader = Module(), AudioLoader(Numbers(), 4, seed=5, num_workers=workers)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        callbacks=list(callbacks),
        **mode,
    )
    trainer.fit(module, loader, AudioLoader(Numbers(), 4, shuffle=False), ckpt_path=resume_from)
    loader.close()
    return module.seen


@pytest.fixture(scope="module")
def uninterrupted():
    return {name: run(**mode) for name, mode in MODES.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "hook, n",
    [("on_train_batch_end", 1), ("on_train_batch_end", 4), ("on_train_batch_end", 6), ("on_train_epoch_end", 1), ("on_validation_end", 2)],
)
def test_a_resumed_run_sees_the_batches_of_one_that_was_not_stopped(tmp_path, uninterrupted, mode, hook, n):
    path = tmp_path / "x.ckpt"
    seen = run([SaveAndStop(hook, n, path)], **MODES[mode])
    assert 0 < len(seen) < 12
    assert seen + run(resume_from=path, **MODES[mode]) == uninterrupted[mode]


def test_resumed_again_and_with_other_workers(tmp_path, uninterrupted):
    first, second = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    seen = run([SaveAndStop("on_train_batch_end", 3, first)], workers=1, max_steps=12)
    seen += run([SaveAndStop("on_train_batch_end", 4, second)], resume_from=first, max_steps=12)
    seen += run(resume_from=second, workers=2, max_steps=12)
    assert seen == uninterrupted["steps"]


def test_a_finished_run_goes_on_when_it_may(tmp_path, uninterrupted):
    path = tmp_path / "x.ckpt"
    seen = run([SaveAndStop("on_train_end", 1, path)], max_steps=6)
    assert seen + run(resume_from=path, max_steps=12) == uninterrupted["steps"]


def test_limited_epochs_lose_and_repeat_nothing():
    seen = run(max_steps=12, limit_train_batches=3)
    assert sorted(item for batch in seen[:4] for *_, item in batch) == sorted({item for batch in seen[:4] for *_, item in batch})
    assert len(seen) == 12
