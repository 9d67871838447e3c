"""Runs of tiny configs in this process, or in two that talk over gloo: what tests of resuming and of many processes share."""

import multiprocessing
import os
import socket
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait

import lightning.pytorch as pl
import torch
from test_host import Recorder, wrapper

from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.training.checkpoints import RunCheckpoint, SignalGuard, StopAtStep

TIMEOUT_S = 1200  # far above what anything takes; a rank that waits for another waits for half an hour


class Ranks:
    """Two processes that stay, so that importing is paid for once; called with a function, both run it."""

    def __init__(self):
        port = free_port()
        self.pools = [ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _become, (rank, port)) for rank in (0, 1)]

    def __call__(self, function, *arguments):
        """What the function, which tests can import, gave on each rank."""
        futures = [pool.submit(function, *arguments) for pool in self.pools]
        done, _ = wait(futures, TIMEOUT_S, FIRST_EXCEPTION)
        for future in done:
            future.result()  # the other rank may wait forever for one that failed
        return [future.result(timeout=0) for future in futures]

    def close(self):
        for pool in self.pools:
            for process in pool._processes.values():
                process.kill()
            pool.shutdown()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def _become(rank, port):
    """Lightning's environment of a process that was started for it."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not spawned: its data workers start at once


class Keys(pl.Callback):
    """The items of every micro-batch."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append([item["path"] for item in batch[1]])


def batches(config, batch_size, items, *, workers=0, shuffle=True, **ranks):
    data = {"dataset_type": "synthetic", "num_items": items}
    shape = {key: config[key] for key in ("sample_size", "sample_rate", "audio_channels")}
    return create_dataloader_from_config(data, batch_size, num_workers=workers, shuffle=shuffle, **shape, **ranks)


def train(config, loader, folder, *callbacks, steps, processes=1, accumulate=1, seed=0, ckpt_path=None, validation=None, **trainer):
    """Train until `steps`, from the start or a checkpoint; the end is saved in `folder`.

    Returns:
        the module, the logged training metrics as hex, and the items of every micro-batch.
    """
    module, recorder, keys = wrapper(config, seed), Recorder(), Keys()
    module.accumulate_batches = accumulate
    saver = RunCheckpoint(folder, every=0, keep=1)
    many = {"devices": 2, "strategy": "ddp_find_unused_parameters_true"} if processes == 2 else {"devices": 1}
    runner = pl.Trainer(
        accelerator="cpu",
        **{"max_epochs": -1, "limit_val_batches": 0, **many, **trainer},
        logger=[recorder],
        callbacks=[SignalGuard(saver), StopAtStep(steps), keys, *callbacks, saver],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    try:
        runner.fit(module, loader, validation, ckpt_path=ckpt_path, weights_only=True)
    finally:
        loader.close()
    return module, recorder.losses, keys.batches
