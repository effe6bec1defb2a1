"""The command itself: help, version, lazy commands, adapters, and the form of errors."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint, version
from pathlib import Path

import click
import pytest
import torch
from click.shell_completion import ShellComplete

from tgdsurgery import cli

TGD = Path(sys.executable).with_name("tgd")


def executable(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TGD, *args], capture_output=True, text=True, cwd=cwd, check=False)


def test_the_executable(tmp_path):
    torch.save({"conv.weight": torch.rand(8, 4, 3, 3)}, tmp_path / "net.pt")
    good = executable("inspect", "net.pt", cwd=tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    assert "8x4x3x3" in good.stdout
    bad = executable("inspect", "none.pt", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "Error: none.pt does not exist. Check the path.\n"


def test_version(tgd):
    assert tgd("--version").output == f"tgd, version {version('tgdsurgery')}\n"


def test_help_lists_commands_and_adapters(tgd):
    text = tgd("--help").output
    listed = [line.split()[0] for line in text.partition("Commands:\n")[2].splitlines()]
    built_in = ["inspect", "plan", "map", "sweep", "advise", "delta", "verify", "export", "report", "plot"]
    assert listed == [*built_in, "ct", "pet"]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_summary_is_that_of_the_command(name, tgd):
    command = getattr(importlib.import_module(f"tgdsurgery.cli.{name}"), f"{name}_command")
    assert command.name == name
    result = tgd(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: tgd {name} ")


def test_help_imports_no_command_and_no_adapter():
    program = (
        "import sys; from tgdsurgery.cli import main; main(['--help'], standalone_mode=False); "
        "print([name for name in sys.modules if name.startswith(('tgdsurgery.cli.', 'tgd_pet'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['tgdsurgery.cli.options']"


def test_an_unknown_command(tgd):
    result = tgd("inspekt")
    assert result.exit_code == 2
    assert "No such command 'inspekt'" in result.output


@pytest.fixture
def adapter(monkeypatch, tmp_path):
    """Installs an adapter called `toy` from the source text of its command."""

    def install(source: str) -> None:
        (tmp_path / "toy_adapter.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "toy_adapter", raising=False)
        entry = EntryPoint("toy", "toy_adapter:toy", cli.ADAPTER_GROUP)
        monkeypatch.setattr(cli, "entry_points", lambda group: [entry] if group == entry.group else [])

    yield install
    sys.modules.pop("toy_adapter", None)


TOY = """
import click

@click.group()
def toy():
    "A toy."

@toy.command()
@click.argument("word")
def say(word):
    if word == "torch":
        import no_such_module
    if word == "fault":
        raise RuntimeError("on two\\nlines")
    click.echo(f"toy says {word}")
"""


def test_an_adapter_is_a_command_imported_when_it_runs(adapter, tgd):
    adapter(TOY)
    assert "toy  " in tgd("--help").output
    assert "toy_adapter" not in sys.modules
    assert tgd("toy", "say", "hello").output == "toy says hello\n"
    assert tgd("toy", "--help").output.startswith("Usage: tgd toy ")


@pytest.mark.parametrize(
    ("source", "args"), [("import no_such_module", []), (TOY, ["say", "torch"])], ids=["import", "run"]
)
def test_an_adapter_that_lacks_a_module(adapter, tgd, source, args):
    adapter(source)
    result = tgd("toy", *args)
    problem = "The adapter 'toy' cannot be loaded: No module named 'no_such_module'."
    assert (result.exit_code, result.output) == (2, f"Error: {problem} Try: pip install toy_adapter\n")
    assert tgd("--debug", "toy", *args).output.startswith("Traceback")


def test_a_missing_extra_is_named(monkeypatch, tgd):
    monkeypatch.setitem(sys.modules, "tgd_pet.cli", None)  # importing it raises ImportError
    result = tgd("pet")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output.endswith('Try: pip install "tgdsurgery[pet]"\n')


def test_an_unexpected_error_is_one_line_too(adapter, tgd):
    adapter(TOY)
    result = tgd("toy", "say", "fault")
    assert result.exit_code == 1
    assert result.output == "Error: RuntimeError: on two lines (unexpected; --debug shows where)\n"
    assert 'raise RuntimeError("on two' in tgd("--debug", "toy", "say", "fault").output


def test_an_adapter_never_hides_a_command(adapter, monkeypatch, tgd):
    adapter(TOY)
    entry = EntryPoint("inspect", "toy_adapter:toy", cli.ADAPTER_GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry])
    assert tgd("inspect", "--help").output.startswith("Usage: tgd inspect [OPTIONS] CHECKPOINT")
    assert tgd("--help").output.count("\n  inspect ") == 1


def commands(group, *names):
    """Every command, of adapters too, with the words that lead to it."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            loaded = command.entry.load() if isinstance(command, cli.LazyCommand) else command
            if isinstance(loaded, click.Group):
                yield from commands(loaded, *names, name)
            else:
                yield (*names, name), command


@pytest.mark.parametrize(("words", "command"), [*commands(cli.main)])
def test_every_command_shows_an_example_that_it_takes(tgd, words, command):
    text = tgd(*words, "--help").output
    _, found, examples = text.partition("Example:\n")
    assert found, words
    examples = examples.partition("\n\n")[0].replace("\\\n", " ")
    for line in examples.splitlines():
        program, *given = shlex.split(line)
        assert (program, *given[: len(words)]) == ("tgd", *words)
        with click.Context(cli.main) as context:
            command.make_context(words[-1], given[len(words) :], context)


def test_a_shell_completes_names_and_options():
    for typed, expected in (("tgd ins", "inspect"), ("tgd plan --bud", "--budget"), ("tgd ct tr", "train")):
        found = ShellComplete(cli.main, {}, "tgd", "_TGD_COMPLETE")
        *args, incomplete = typed.split()[1:]
        assert expected in [item.value for item in found.get_completions(args, incomplete)]
