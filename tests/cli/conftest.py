"""A small network in a file of its own, its checkpoint, and a way to run `tgd` in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from torch import nn

from tgdsurgery.cli import main
from tgdsurgery.storage.checkpoints import write_state_dict

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.branch = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.fc = nn.Linear(4 * 64, 3)

    def forward(self, x):
        x = self.norm(torch.cat([self.stem(x), self.branch(x)], 1))
        x = self.up(self.body(x).relu())
        return self.fc(nn.functional.adaptive_max_pool2d(x, 8).flatten(1))

def make():
    torch.manual_seed(0)
    return Net()

ready = make()
number = 3

def fails():
    raise ValueError("on two" + chr(10) + "lines")

def needs_arguments(width):
    return make()

def returns_number():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, holding `network.py`; nothing imported from it stays."""
    (tmp_path / "network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("network", None)


@pytest.fixture
def network(folder: Path) -> nn.Module:
    """What `network.py:make` makes; its weights are in `net.pt`."""
    namespace: dict[str, object] = {"__name__": "namespace"}
    exec((folder / "network.py").read_text(), namespace)
    made = namespace["make"]()
    write_state_dict(made.state_dict(), folder / "net.pt")
    return made


@pytest.fixture
def tgd() -> Callable[..., Result]:
    """Runs `tgd` with these arguments; anything it lets through but an exit fails the test."""

    def run(*args: str) -> Result:
        result = CliRunner().invoke(main, args, prog_name="tgd", env={"COLUMNS": "100"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def assert_refused(tgd: Callable[..., Result]) -> Callable[..., None]:
    """Asserts one line with the problem and exit code 2, and a traceback with `--debug` at either place."""

    def check(args: Sequence[str], problem: str) -> None:
        result = tgd(*args)
        assert result.exit_code == 2, result.output
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
        assert problem in result.output
        for debugged in (["--debug", *args], [*args, "--debug"]):
            result = tgd(*debugged)
            assert result.exit_code == 2
            assert result.output.startswith("Traceback (most recent call last):")
            assert problem in result.output.splitlines()[-1]

    return check
