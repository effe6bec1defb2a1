"""`tgd verify`: a certificate of what training changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
from torch import nn

from tgdsurgery import Certificate, certify
from tgdsurgery.certificate.limits import Limit
from tgdsurgery.certificate.sign import Signer
from tgdsurgery.cli.models import call_evaluation, load_function, load_model
from tgdsurgery.cli.options import MODEL, ArgumentError, debug_option
from tgdsurgery.cli.output import refuse_input, refuse_one_file, say
from tgdsurgery.core.atomic import check_suffix, replacing

FILE = click.Path(path_type=Path)
Task = tuple[Callable[[nn.Module], object], str]


def task_options(name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The two options of a task: its evaluation and its limit."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        limit = click.option(
            f"--{name}-limit",
            metavar="LIMIT",
            help=f"What the {name} task's number has to keep to after training, such as '{example}'.",
        )
        evaluation = click.option(
            f"--{name}-task",
            metavar="MODULE:FUNCTION",
            help=f"Takes the network, returns one number for the {name} task. Needs --model.",
        )
        return evaluation(limit(command))

    return decorate


@click.command("verify")
@click.argument("base", type=FILE)
@click.argument("tuned", type=FILE)
@click.option(
    "--plan", type=FILE, help="What was allowed to change: a file of `tgd plan`. A delta has its own."
)
@click.option("--delta", type=FILE, help="A delta that is to make TUNED of BASE, bit for bit.")
@click.option("--model", metavar="MODULE:FACTORY", help=f"{MODEL} Only needed to measure tasks.")
@task_options("old", "<=0.125")
@task_options("new", ">=0.9")
@click.option("-o", "--output", type=FILE, help="Write the certificate to this file, as JSON.")
@click.option("--html", type=FILE, help="Write the certificate to this file, as a page for people.")
@click.option(
    "--sign", "key", type=FILE, metavar="KEY", help="Private key (PEM) that signs the certificate and TUNED."
)
@debug_option
@click.pass_context
def verify_command(
    ctx: click.Context,
    base: Path,
    tuned: Path,
    *,
    plan: Path | None,
    delta: Path | None,
    model: str | None,
    old_task: str | None,
    old_limit: str | None,
    new_task: str | None,
    new_limit: str | None,
    output: Path | None,
    html: Path | None,
    key: Path | None,
) -> None:
    """Prove that training changed in BASE what the plan allows, and nothing else.

    BASE and TUNED are checkpoints, of any formats; TUNED may be a delta. They are compared bit for bit, without
    the model's code. The exit code is 0 if TUNED is accepted, 1 if something frozen moved or a limit is missed,
    and 2 if the check could not be made.

    \b
    Example:
      tgd verify base.pt tuned.pt --plan plan.json -o certificate.json
    """
    for written in (output, html):
        refuse_input(written, base, tuned, plan, delta, key, model, old_task, new_task)
    if key is not None and output is None:
        raise ArgumentError("There is no certificate file to sign.", "Name one: -o certificate.json.")
    refuse_one_file({"-o": output, "--html": html})
    if html is not None:
        check_suffix(html, ".html")
    old, new = _task("old", old_task, old_limit), _task("new", new_task, new_limit)
    if (old or new) and model is None:
        raise ArgumentError("The tasks need a network to measure.", "Give --model MODULE:FACTORY.")
    signer = None if key is None else Signer(key)
    with ExitStack() as files:
        # Opened first, so that a path that cannot be written to fails before the work.
        places = [(path, files.enter_context(replacing(path))) for path in (output, html) if path is not None]
        found = certify(
            base,
            tuned,
            plan,
            delta=delta,
            model=None if model is None else load_model(model),
            old_task=old,
            new_task=new,
        )
        for path, temporary in places:
            temporary.write_text(_text(found, path, html), encoding="utf-8", newline="\n")
    say(str(found))
    written_files = [path for path, _ in places]
    if signer is not None and output is not None:
        written_files += [signer.sign(file, output.parent) for file in (output, tuned)]
    for path in written_files:
        click.echo(f"Written to {path}.", err=True)
    if not found.ok:
        ctx.exit(1)


def _text(found: Certificate, path: Path, html: Path | None) -> str:
    return found.to_html() if path == html else found.to_json()


def _task(name: str, reference: str | None, limit: str | None) -> Task | None:
    """The user's function with its limit, which is read before anything is measured."""
    if reference is None and limit is None:
        return None
    if reference is None or limit is None:
        missing = "task" if reference is None else "limit"
        raise ArgumentError(
            f"The {name} task has no {missing}.", f"Give --{name}-task and --{name}-limit, or neither."
        )
    Limit(name, reference, limit)
    evaluate = load_function(reference)

    def measure(network: nn.Module) -> object:
        return call_evaluation(reference, evaluate, network)

    measure.__qualname__ = reference
    return measure, limit
