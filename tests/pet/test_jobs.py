"""Jobs in processes: all done, one thread each, failures reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tgd_kit.errors import RunError
from tgd_kit.runs.jobs import run_jobs


def note(folder: Path, name: str) -> None:
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")


def fail(number: int) -> None:
    if number:
        raise ValueError(number)


def sleep(folder: Path, name: str) -> None:
    note(folder, name)
    time.sleep(60)


def die(number: int) -> None:
    os._exit(number)


def test_every_job_is_done_in_another_process_of_one_thread(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    assert len(list(run_jobs(note, [(tmp_path, name) for name in names], workers=2))) == 3
    for name in names:
        process, threads = (tmp_path / name).read_text().split()
        assert int(process) != os.getpid()
        assert threads == "1"


def test_one_worker_stays_in_this_process(tmp_path: Path) -> None:
    assert list(run_jobs(note, [(tmp_path, "a"), (tmp_path, "b")], workers=1)) == [None, None]
    assert int((tmp_path / "b").read_text().split()[0]) == os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_raised(workers: int) -> None:
    with pytest.raises(ValueError, match="1"):
        list(run_jobs(fail, [(0,), (1,)], workers))


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(RunError, match="fewer workers"):
        list(run_jobs(die, [(1,), (1,)], workers=2))


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tgd_kit.runs.jobs import run_jobs\n"
        "from tests.pet.test_jobs import sleep\n"
        "if __name__ == '__main__':\n"
        f"    list(run_jobs(sleep, [(Path({str(tmp_path)!r}), name) for name in 'ab'], 2))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    parent = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": path})
    wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    workers = [int((tmp_path / name).read_text().split()[0]) for name in "ab"]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def wait_until(true: Callable[[], bool]) -> None:
    """A minute at most: starting processes is slow on a machine that is busy."""
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen within a minute")
