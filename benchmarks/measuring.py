"""What the benchmarks share: the setting they ran in, memory, work in a child process, and results on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def setting(*packages: str, **more: object) -> dict[str, str]:
    """Versions, machine and options, for the caption and the file of a benchmark."""
    found = {name: version(name) for name in ("tgdsurgery", "torch", *packages)}
    found |= {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    return found | {"cores": str(os.cpu_count())} | {name: str(value) for name, value in more.items()}


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of one run, in all threads of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def forget_peak() -> None:
    """From now on `peak_mib` tells the peak since this call. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    # Not getrusage: its maximum still holds the peak of the process this one was started from.
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def in_a_child(work: Callable[..., dict[str, Any]], *args: object, limit: float) -> dict[str, Any]:
    """What `work` returns when run in a fork of this process; its error, or that it ran out of time, if it fails.

    Args:
        work: returns plain data.
        args: its arguments.
        limit: seconds that it may take.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        try:
            there.send(work(*args))
        except Exception as error:
            there.send({"error": f"{type(error).__name__}: {error}"[:300]})

    child = context.Process(target=run)
    child.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else {"error": f"no end after {limit:.0f} s"}
    except EOFError:
        return {"error": "the process died"}
    finally:
        child.kill()
        child.join()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> None:
    """A table on the terminal; all columns but the first are numbers."""
    shown = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*map(str, row))
    Console(width=110).print(shown)


def write_json(path: Path, data: object) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
