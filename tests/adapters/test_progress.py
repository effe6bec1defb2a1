"""Progress where there is no terminal: lines that come by themselves, also while nothing advances."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest

from tests.pet.scans import RandomScans
from tgd_kit import progress as module
from tgd_kit.progress import progress
from tgd_kit.training.schedule import Schedule
from tgd_pet.network import new_network
from tgd_pet.training.fit import fit


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.02)


def test_nobody_waits_longer_than_ten_seconds() -> None:
    assert module.SECONDS_BETWEEN_LINES <= 10


@pytest.mark.usefixtures("often")
def test_a_long_step_still_writes_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("patients", 3, done=1) as task:
        time.sleep(0.3)
        task.advance()
        task.note = "RMSE 0.1"
    out, err = capfd.readouterr()
    *waiting, last = err.splitlines()
    assert out == ""
    assert len(waiting) >= 3  # 15 on an idle machine
    assert all(re.fullmatch(r"patients: [12] of 3, \d+ s(, RMSE 0.1)?", line) for line in waiting)
    assert re.fullmatch(r"patients: 2 of 3, \d+ s, RMSE 0.1", last)


@pytest.mark.usefixtures("often")
def test_lines_end_with_the_block_also_when_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConnectionAbortedError), progress("patients", 3):
        raise ConnectionAbortedError
    capfd.readouterr()
    time.sleep(0.1)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_nothing_is_written_where_nothing_is_to_be_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("patients", 3, show=False) as task:
        time.sleep(0.1)
        task.advance()
    assert task.done == 1
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("patients", 3) as task:
        task.note = "RMSE 0.1"
        task.advance(3)
    for words in ("patients", "3/3", "RMSE 0.1"):
        assert words in terminal.getvalue()


@pytest.mark.usefixtures("often")
def test_training_counts_its_steps_and_names_its_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    schedule = Schedule(epochs=2, steps=3, batch=2, patch=16)
    fit(new_network(0, (8, 8, 3)), [RandomScans(1)], "v1", tmp_path, schedule)
    lines = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"training steps: 6 of 6, \d+ s, RMSE \d\.\d+", lines[-1])
