"""Workers that die, hang, cannot start or run out of shared memory end the run with their name; all start methods serve the same items."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch.utils.data import Dataset

from stable_audio_tools.data.draws import hashed
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.types import Sample
from stable_audio_tools.data.workers import WorkerLostError

HERE = os.path.dirname(__file__)


class Draw(Dataset):
    """Items whose audio is drawn by their key; one of them ends or stops the process that makes it."""

    def __init__(self, length=24, bad="", bad_item=13):
        self.length, self.bad, self.bad_item = length, bad, bad_item

    def __len__(self):
        return self.length

    def name(self, index):
        return f"/data/{index}.wav"

    def visit(self, key):
        if key.item == self.bad_item and self.bad.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.bad))
        if key.item == self.bad_item and self.bad == "exit":
            os._exit(3)
        if key.item == self.bad_item and self.bad == "hang":
            time.sleep(600)
        audio = torch.randn(1, 16, generator=torch.Generator().manual_seed(hashed(*key)))
        return Sample(audio, {"key": tuple(key), "process": os.getpid()})


def drawn(loader):
    return [(audio.tolist(), [item["key"] for item in metadata]) for audio, metadata in loader]


def processes(loader):
    return {item["process"] for _, metadata in loader for item in metadata}


def is_there(process):
    """Also of a process that ended and was not waited for."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def run_script(text, tmp_path, **environment):
    """Run a file, as a user does; its last lines of standard error on failure are in the result."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {HERE!r})\n{textwrap.dedent(text)}")
    return subprocess.run([sys.executable, script], timeout=120, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_items_are_functions_of_their_keys_whatever_starts_the_workers(start_method):
    reference = AudioLoader(Draw(), 4, seed=5)
    loader = AudioLoader(Draw(), 4, seed=5, num_workers=2, start_method=start_method)
    assert [drawn(loader), drawn(loader)] == [drawn(reference), drawn(reference)]
    loader.close()


def test_workers_live_through_all_passes_and_leave_nothing_behind():
    loader = AudioLoader(Draw(), 4, num_workers=2)
    first = processes(loader)
    next(iter(loader))  # a pass left early
    assert len(first) == 2 and os.getpid() not in first
    assert processes(loader) | processes(loader) == first
    loader.close()
    assert not any(is_there(process) for process in first)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "bad, said",
    [
        ("SIGKILL", r"was killed \(SIGKILL\): the machine most often ran out of memory \(fewer --num-workers help\)"),
        ("SIGBUS", r"died \(SIGBUS\): shared memory \(/dev/shm\) is full"),
        ("SIGSEGV", r"died \(SIGSEGV\): the file, or the code that reads it, crashes"),
        ("exit", r"ended with status 3$"),
    ],
)
def test_a_worker_that_dies_is_named_with_the_file_it_was_at(bad, said, workers):
    loader = AudioLoader(Draw(bad=bad), 4, shuffle=False, num_workers=workers)
    with pytest.raises(WorkerLostError, match=rf"^data worker {3 % workers} \(process \d+\) at item 13, /data/13.wav, {said}") as error:
        drawn(loader)
    assert error.value.__cause__ is error.value.__context__ is None
    subprocess.run(["true"], check=True)  # another process that ends is no dead worker


def test_a_worker_that_dies_during_a_step_does_not_disturb_the_step():
    loader = AudioLoader(Draw(), 4, shuffle=False, num_workers=1)
    batches = iter(loader)
    process = next(batches)[1][0]["process"]
    os.kill(process, signal.SIGKILL)
    time.sleep(0.2)  # the step: torch would raise here
    with pytest.raises(WorkerLostError, match=r"data worker 0 .* was killed"):
        list(batches)
    assert not is_there(process)
    assert len(drawn(loader)) == 6  # with a new worker
    loader.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_worker_that_hangs_is_named_with_the_file_it_is_at(workers):
    loader = AudioLoader(Draw(bad="hang"), 4, shuffle=False, num_workers=workers, max_wait_s=0.4)
    batches = iter(loader)
    served = [next(batches) for _ in range(3)]
    with pytest.raises(WorkerLostError, match=rf"^data worker {3 % workers} .* at item 13, /data/13.wav, has not moved for 0.4 s"):
        next(batches)
    assert not any(is_there(item["process"]) for _, metadata in served for item in metadata)


def test_a_hang_left_behind_by_an_earlier_pass_is_found():
    loader = AudioLoader(Draw(bad="hang", bad_item=5), 4, shuffle=False, num_workers=1, max_wait_s=0.4)
    next(iter(loader))
    with pytest.raises(WorkerLostError, match="at item 5, "):
        next(iter(loader))


class Slow(Draw):
    """A batch takes longer than an item may."""

    def visit(self, key):
        time.sleep(0.3)
        return super().visit(key)


@pytest.mark.slow
def test_what_is_slow_or_waits_for_the_training_process_does_not_hang():
    loader = AudioLoader(Slow(8), 4, num_workers=1, max_wait_s=0.9)
    batches = iter(loader)
    next(batches)
    time.sleep(2.0)  # a demo, meanwhile the worker has nothing to do
    assert len(list(batches)) == 1
    assert len(drawn(loader)) == 2
    loader.close()


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_script_without_a_guard_is_told_what_to_do(start_method, tmp_path):
    text = f"""
    from test_loader_workers import AudioLoader, Draw
    for batch in AudioLoader(Draw(), 4, num_workers=1, start_method={start_method!r}):
        pass
    """
    done = run_script(text, tmp_path)
    assert done.returncode == 1
    assert 'below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_a_data_set_that_cannot_be_sent_is_refused_in_words():
    data = Draw()
    data.made_by = lambda: None
    with (
        pytest.warns(UserWarning, match="pickle"),
        pytest.raises(ValueError, match=r"cannot be sent to a worker process \(spawn\): .*lambda"),
    ):
        drawn(AudioLoader(data, 4, num_workers=1, start_method="spawn"))


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_worker_outlives_the_program(start_method, sent, tmp_path):
    """Not even one that hangs, where nothing can be asked of it and nobody is left to kill it."""
    text = f"""
    import os, signal, time
    from test_loader_workers import AudioLoader, Draw
    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
        loader = AudioLoader(Draw(bad="hang"), 4, shuffle=False, num_workers=2, start_method={start_method!r})
        batches = iter(loader)
        print(*{{item["process"] for _ in range(2) for item in next(batches)[1]}}, flush=True)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.{sent})
        time.sleep(60)
    """
    done = run_script(text, tmp_path)
    assert done.returncode
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    end = time.monotonic() + 20
    while any(is_there(worker) for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(is_there(worker) for worker in workers)


@pytest.mark.slow
def test_full_shared_memory_is_named(tmp_path):
    text = """
    import torch
    from test_loader_workers import AudioLoader, Draw, Sample
    class Large(Draw):
        def visit(self, key):
            return Sample(torch.ones(1, 1 << 20), {})
    list(AudioLoader(Large(), 4, num_workers=1))
    """
    (tmp_path / "script.py").write_text(f"import sys\nsys.path.insert(0, {HERE!r})\n{textwrap.dedent(text)}")
    small = "mount -t tmpfs -o size=4m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("this system lets nobody have a small /dev/shm of their own")
    command = f"{small} && exec {sys.executable} {tmp_path}/script.py"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert "shared memory (/dev/shm) is full: give the container more" in done.stderr.splitlines()[-1]


class Left:
    """Garbage in a ring, which ends where it is collected."""

    def __init__(self, folder):
        self.itself, self.folder = self, folder

    def __del__(self):
        (self.folder / str(os.getpid())).touch()


class Collecting(Draw):
    def visit(self, key):
        gc.collect()
        return super().visit(key)


@pytest.mark.slow
def test_what_the_training_process_left_is_not_collected_in_a_worker(tmp_path):
    """The end of a process group waits for threads, which a forked process does not have: it would wait for ever."""
    gc.disable()
    try:
        Left(tmp_path)
        made_in = processes(AudioLoader(Collecting(8), 4, num_workers=1, start_method="fork"))
    finally:
        gc.enable()
    gc.collect()
    assert os.getpid() not in made_in
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]
