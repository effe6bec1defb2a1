"""`tgd verify`: exit codes, files, and what is refused before any work."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from tests.certificate.test_sign import verified, write_keys
from tgdsurgery import apply_tgd, remove_tgd, save_delta
from tgdsurgery.storage.checkpoints import write_state_dict

EVALUATIONS = """
import torch

def size(net):
    return sum(parameter.abs().sum() for parameter in net.parameters()).item()

def half(net):
    return 0.5

def fails(net):
    raise ValueError("on two" + chr(10) + "lines")
"""
VERIFY = ["verify", "net.pt", "tuned.pt", "--plan", "plan.json"]


@pytest.fixture
def tuned(network, folder):
    """Base, plan, delta and the state after training, in files; the state can be changed and written again."""
    tgd = apply_tgd(network, phi=0.8)
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(0.25)
    (folder / "plan.json").write_text(tgd.tgd_plan.to_json())
    (folder / "evaluate.py").write_text(EVALUATIONS)
    save_delta(tgd, folder / "delta.safetensors")
    state = remove_tgd(tgd).state_dict()
    write_state_dict(state, folder / "tuned.pt")
    return state


def test_accepted(folder, tuned, tgd):
    result = tgd(
        *VERIFY, "-o", "certificate.json", "--html", "certificate.html", "--delta", "delta.safetensors"
    )
    assert result.exit_code == 0, result.output
    assert "ACCEPTED: nothing changed but what the plan allows" in result.stdout
    assert result.stderr == "Written to certificate.json.\nWritten to certificate.html.\n"
    data = json.loads((folder / "certificate.json").read_text())
    assert data["ok"] is True
    page = (folder / "certificate.html").read_text(encoding="utf-8")
    assert hashlib.sha256((folder / "certificate.json").read_bytes()).hexdigest() in page


def test_something_frozen_moved(folder, tuned, tgd):
    tuned["fc.bias"][1] *= -1
    write_state_dict(tuned, folder / "tuned.pt")
    result = tgd(*VERIFY, "-o", "certificate.json")
    assert result.exit_code == 1
    assert "NOT ACCEPTED" in result.stdout
    assert "fc.bias: 1 of 3 frozen entries changed, in channels 1." in result.stdout
    assert json.loads((folder / "certificate.json").read_text())["ok"] is False


@pytest.mark.filterwarnings("always::tgdsurgery.TGDWarning")
def test_bits_are_accepted_that_are_not_finite_with_a_warning(folder, tuned, tgd):
    for name in ("net", "tuned"):
        state = {**tuned, "fc.bias": torch.full((3,), torch.nan)}
        write_state_dict(state, folder / f"{name}.pt")
    result = tgd(*VERIFY)
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        "Warning: tuned.pt holds NaN or infinity in fc.bias. Bits are certified, not what they are good for.\n"
    )


def test_a_delta_needs_no_plan(folder, tuned, tgd):
    result = tgd("verify", "net.pt", "delta.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


@pytest.mark.parametrize(("limit", "code"), [("<=0.5", 0), ("<0.5", 1)])
def test_limits(folder, tuned, tgd, limit, code):
    tasks = [
        "--old-task",
        "evaluate.py:size",
        "--old-limit",
        ">0",
        "--new-task",
        "evaluate:half",
        "--new-limit",
        limit,
    ]
    result = tgd(*VERIFY, "--model", "network:make", *tasks, "-o", "certificate.json")
    assert result.exit_code == code, result.output
    assert f"new task: 0.5 before, 0.5 after, limit {limit}" in result.stdout
    data = json.loads((folder / "certificate.json").read_text())
    assert [kept["evaluation"] for kept in data["modification_protocol"]["limits"]] == [
        "evaluate.py:size",
        "evaluate:half",
    ]
    assert [found["met"] for found in data["impact_assessment"]["measurements"]] == [True, code == 0]


def test_signed(folder, tuned, tgd):
    private, public = write_keys(folder)
    (folder / "out").mkdir()
    result = tgd(*VERIFY, "-o", "out/certificate.json", "--sign", str(private))
    assert result.exit_code == 0, result.output
    for file in ("out/certificate.json", "tuned.pt"):
        signature = folder / "out" / f"{(folder / file).name}.sig"
        assert verified(folder / file, signature, public)
    text = (folder / "out" / "certificate.json").read_text()
    (folder / "out" / "certificate.json").write_text(text.replace('"ok": true', '"ok": false'))
    assert not verified(folder / "out/certificate.json", folder / "out/certificate.json.sig", public)


def test_bad_input(folder, tuned, assert_refused):
    task = ["--old-task", "evaluate:half", "--old-limit", "<1"]
    model = ["--model", "network:make"]
    (folder / "other.json").write_text(
        (folder / "plan.json").read_text().replace('"fc.weight"', '"head.weight"')
    )
    for args, problem in (
        (["verify", "net.pt", "none.pt", "--plan", "plan.json"], "none.pt does not exist."),
        (["verify", "net.pt", "tuned.pt"], "Nothing says what was allowed to change."),
        (["verify", "net.pt", "tuned.pt", "--plan", "other.json"], "The plan was not made for this base"),
        (["verify", "net.pt", "tuned.pt", "--plan", "net.pt"], "net.pt cannot be read: it is not text."),
        (
            ["verify", "net.pt", "tuned.pt", "--plan", "evaluate.py"],
            "evaluate.py: This is not a TGD plan of format",
        ),
        ([*VERIFY, *task], "The tasks need a network to measure."),
        ([*VERIFY, *model, *task[:2]], "The old task has no limit. Give --old-task and --old-limit"),
        ([*VERIFY, *model, *task[2:]], "The old task has no task."),
        ([*VERIFY, *model, *task[:3], "about 1"], "'about 1' is not a limit. Write it like '<=0.125'"),
        (
            [*VERIFY, *model, "--new-task", "evaluate:fails", "--new-limit", "<1"],
            "evaluate:fails failed: ValueError",
        ),
        ([*VERIFY, "--sign", "private.pem"], "There is no certificate file to sign."),
        ([*VERIFY, "-o", "a.json", "--html", "a.json"], "-o and --html name one file."),
        ([*VERIFY, "-o", "a.json", "--html", "a.pdf"], "a.pdf does not end in .html. Name it a.html."),
        ([*VERIFY, "-o", "plan.json"], "plan.json is read by this command, and would be replaced."),
        ([*VERIFY, "--html", "tuned.pt"], "would be replaced"),
        ([*VERIFY, "-o", "none/a.json"], "The folder of none/a.json does not exist."),
    ):
        assert_refused(args, problem)
    assert not list(folder.glob("*a.json*"))


def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(folder, tuned, assert_refused):
    assert_refused(
        [*VERIFY, "-o", "a.json", "--sign", "plan.json"], "plan.json is not a private key that can sign"
    )
    assert not list(folder.glob("*a.json*"))
