"""A job of SLURM that is about to lose its machine: SIGUSR1 asks for a checkpoint at the next step boundary, then for a requeue.

Lightning would save inside its signal handler, wherever the step is, and such a checkpoint cannot be resumed exactly.
"""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

log = logging.getLogger(__name__)


def in_job() -> bool:
    """Whether this process is one of a SLURM job's, and not an interactive one."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def restarted() -> bool:
    """Whether SLURM has requeued this job before, so that its command means to go on."""
    return in_job() and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def cluster_plugins() -> list[Any]:
    """Lightning's view of the job, without its handler of SIGUSR1; under torchrun, and outside of a job, Lightning looks for itself."""
    if not in_job() or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def requeue_job() -> bool:
    """Ask SLURM to run this job again; returns whether it will."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        log.error("the job cannot be requeued: scontrol: %s; training goes on until SLURM ends it", error.strerror or error)
        return False
    if done.returncode:
        log.error("scontrol does not requeue job %s: %s; training goes on until SLURM ends it", job, done.stderr.strip())
        return False
    log.warning("job %s is requeued", job)
    return True
