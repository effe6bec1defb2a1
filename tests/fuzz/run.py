"""Reads mutants in processes with limits, and counts what became of them: `python -m tests.fuzz.run 10000`."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS, BYTES = 20, 2 * 2**30
START_SECONDS = 300  # a process imports torch and Lightning, and makes the valid file
VERDICTS = ("accepted", "refused", "untyped", "hangs", "over the limit")


@dataclass
class Found:
    """What became of the mutants of one format."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # seed, verdict and traceback of what must not be

    def note(self, seed: int, verdict: str, detail: str) -> None:
        self.counts[verdict] += 1
        if verdict not in ("accepted", "refused"):
            self.faults.append(f"seed {seed}: {verdict}\n{detail}")


def fuzz(name: str, seeds: Sequence[int]) -> Found:
    """Read the mutants of these seeds; a process that hangs or dies is replaced, and the rest goes on."""
    found, left = Found(), list(seeds)
    while left:
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(name, left, theirs), daemon=True)
        process.start()
        theirs.close()
        wait, before = START_SECONDS, len(left)
        try:
            while left:
                if not ours.poll(wait):
                    found.note(left.pop(0), "hangs", "killed")
                    break
                found.note(*ours.recv())
                left.pop(0)
                wait = 2 * SECONDS
        except EOFError:
            if len(left) == before == len(seeds):
                raise RuntimeError(f"the valid file of {name} cannot be made or read") from None
            found.note(left.pop(0), "over the limit", "the process died")
        process.kill()
        process.join()
    return found


def _serve(name: str, seeds: Sequence[int], results: Connection) -> None:
    from tests.fuzz.formats import FORMATS  # imports everything: in this process only
    from tests.fuzz.mutants import mutant

    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as temporary, _silent():
        folder = Path(temporary) / "valid"
        folder.mkdir()
        form.make(folder)
        form.read(folder)
        path, whole = folder / form.file, (folder / form.file).read_bytes()
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, now + BYTES))
        for seed in seeds:
            path.write_bytes(mutant(whole, seed))
            results.send((seed, *_verdict(lambda: form.read(folder))))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _verdict(read: object) -> tuple[str, str]:
    from tgd_kit.errors import AdapterError
    from tgdsurgery import TGDError

    begun, verdict, detail = time.monotonic(), "accepted", ""
    try:
        read()  # type: ignore[operator]
    except TGDError as error:
        clean = not isinstance(error, AdapterError) or (str(error).isprintable() and len(str(error)) <= 2000)
        verdict, detail = "refused" if clean else "untyped", repr(str(error))[:500]
        if _is_memory(error):
            verdict, detail = "over the limit", traceback.format_exc()
    except BaseException as error:
        verdict, detail = "over the limit" if _is_memory(error) else "untyped", traceback.format_exc()
    if time.monotonic() - begun > SECONDS:
        verdict = "hangs"
    return verdict, detail


def _is_memory(error: BaseException | None) -> bool:
    """Whether what was refused, or failed, is room that a machine may not have."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def main(count: int) -> int:
    """Print a table; the exit code is 0 if every mutant was accepted or refused."""
    from tests.fuzz.formats import FORMATS

    unit = count / sum(form.share for form in FORMATS.values())
    numbers = {name: ceil(unit * form.share) for name, form in FORMATS.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(
            zip(numbers, pool.map(lambda name: fuzz(name, range(numbers[name])), numbers), strict=True)
        )
    print("format".ljust(26), "mutants".rjust(8), *(verdict.rjust(15) for verdict in VERDICTS))
    for name, found in results.items():
        cells = (str(found.counts[verdict]).rjust(15) for verdict in VERDICTS)
        print(name.ljust(26), str(found.counts.total()).rjust(8), *cells)
    faults = {name: found.faults for name, found in results.items() if found.faults}
    for name, several in faults.items():
        print(f"\n{name}", *several[:5], sep="\n\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
