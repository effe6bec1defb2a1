"""The stages of a study: jobs that each leave one file, so that the same call continues where the last one ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tgd_kit.progress import progress as shown
from tgd_kit.runs.files import write_json
from tgd_kit.runs.jobs import run_jobs
from tgd_kit.runs.record import timed


class Job(Protocol):
    """A piece of work that needs no other of its stage."""

    @property
    def path(self) -> Path:
        """The file that is there when the job is done."""

    def do(self) -> Mapping[str, Any] | None:
        """Do the work; what is returned becomes the file, as JSON."""


def do(job: Job) -> None:
    """Do a job; its file appears whole or not at all."""
    found = job.do()
    if found is not None:
        write_json(job.path, found)


def run_stage(out: Path, title: str, jobs: Sequence[Job], workers: int, *, progress: bool) -> None:
    """Do the jobs of a stage that are not done yet, and note the time they take in the record of `out`.

    Args:
        out: folder of the study.
        title: of the stage.
        jobs: all of its jobs.
        workers: number of processes.
        progress: show it.

    Raises:
        RunError: a process died, or a job failed.
    """
    missing = [job for job in jobs if not job.path.exists()]
    done = len(jobs) - len(missing)
    with timed(out, title), shown(title, len(jobs), done=done, show=progress) as task:
        for _ in run_jobs(do, ((job,) for job in missing), workers):
            task.advance()
