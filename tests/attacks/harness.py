"""Runs `tgd` in a process of its own with limits, and holds it to how an attack has to end."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from tgdsurgery.cli import main

SECONDS, BYTES = 60, 2**30
MARK = "code-was-run"  # what a payload leaves in the working directory


@dataclass(frozen=True)
class Ended:
    """How a run of `tgd` ended: exit code, stdout and stderr; what the folder held before and after."""

    code: int
    out: str
    err: str
    before: dict[str, bytes]
    after: dict[str, bytes]


def run(folder: Path, *args: object, seconds: int = SECONDS, extra: int = BYTES) -> Ended:
    """Run `tgd` in `folder`, with so many bytes of memory more than the process has now.

    The process is a fork, which has all imports done: its limit is that of the work alone.
    """
    before = contents(folder)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(folder, [str(one) for one in args], extra, theirs))
    child.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise AssertionError(f"tgd {args} took more than {seconds} s")
        code, out, err = ours.recv()
    except EOFError:
        raise AssertionError(f"tgd {args} died") from None
    finally:
        child.kill()
        child.join()
    return Ended(code, out, err, before, contents(folder))


def _serve(folder: Path, args: list[str], extra: int, results: object) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    result = CliRunner().invoke(main, args, prog_name="tgd", env={"COLUMNS": "100"})
    results.send((result.exit_code, result.stdout, result.stderr))  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, links as such."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path).encode()
        elif path.is_file() and "__pycache__" not in name:
            found[name] = path.read_bytes()
    return found


def assert_refused(ended: Ended) -> str:
    """One line on stderr that can be shown, exit code 2, and a folder as it was.

    Returns:
        the line.
    """
    assert ended.code == 2, (ended.code, ended.out[-500:], ended.err[-500:])
    lines = [line for line in ended.err.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("Error: ")
    assert lines[0].isprintable()
    assert len(lines[0]) < 2100
    assert "(unexpected;" not in lines[0]
    assert ended.after == ended.before
    assert MARK not in ended.after
    return lines[0]
