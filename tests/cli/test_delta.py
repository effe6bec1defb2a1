"""`tgd delta`: on checkpoints alone, the same to the bit as the Python API on networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.deltas import bits, saved
from tests.laws.subjects import Method
from tests.strategies import Case
from tests.topologies import case_of
from tgdsurgery import TGDPlan, load_delta, remove_tgd
from tgdsurgery.cli.delta.write import parse_condition
from tgdsurgery.storage.checkpoints import read_state_dict, write_state_dict
from tgdsurgery.storage.delta_file import read_delta

IMAGES = torch.linspace(-1, 1, 512).view(2, 1, 16, 16)
FORMATS = ["pt", "safetensors"]


@pytest.fixture
def work(folder: Path, network: nn.Module) -> Path:
    """`net.pt`; in `plan.json`, `tuned.pt` and `python.safetensors` what was made of it with two seeds."""
    case = Case(network.eval(), IMAGES)
    tgd = saved(case, folder / "python.safetensors", 1, method=Method(phi=0.6))
    (folder / "plan.json").write_text(tgd.tgd_plan.to_json())
    write_state_dict(remove_tgd(tgd).state_dict(), folder / "tuned.pt")
    other = saved(case, folder / "other.safetensors", 2, method=Method(phi=0.9))
    write_state_dict(remove_tgd(other).state_dict(), folder / "other.pt")
    return folder


def done(result: object) -> str:
    assert result.exit_code == 0, result.output
    return result.output


SAVE = ["delta", "save", "net.pt", "tuned.pt", "--plan", "plan.json", "-o", "delta.safetensors"]


def test_save_is_that_of_the_api(work, tgd, network):
    output = done(tgd(*SAVE))
    assert "Written to delta.safetensors." in output
    ours, theirs = (read_delta(work / f"{name}.safetensors") for name in ("delta", "python"))
    assert ours.plan == theirs.plan
    assert ours.base == theirs.base
    assert bits(dict(ours.values)) == bits(dict(theirs.values))
    full = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert f"{(work / 'delta.safetensors').stat().st_size:,} bytes" in output
    assert f"of the network's {full:,}" in output
    assert bits(load_delta(network, work / "delta.safetensors").state_dict()) == bits(
        read_state_dict("tuned.pt")
    )


def test_a_delta_that_changes_nothing_is_written_with_a_warning(work, tgd):
    result = tgd(*SAVE[:3], "net.pt", *SAVE[4:])
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == (
        "Warning: net.pt is net.pt to the bit: the delta changes nothing."
    )
    assert "Warning" not in tgd(*SAVE).stderr


def test_the_plan_can_be_that_of_another_delta(work, tgd):
    """To give a file conditions, say."""
    done(tgd(*SAVE))
    again = [*SAVE[:5], "delta.safetensors", "-o", "again.safetensors", "--when", "PatientID=7"]
    done(tgd(*again))
    one, other = (read_delta(work / f"{name}.safetensors") for name in ("delta", "again"))
    assert other.when == {"PatientID": "7"}
    assert (one.plan, one.base) == (other.plan, other.base)


@pytest.mark.parametrize("suffix", FORMATS)
def test_there_and_back_bit_for_bit(work, tgd, suffix):
    done(tgd(*SAVE, "--reversible"))
    done(tgd("delta", "apply", "net.pt", "delta.safetensors", "-o", f"out.{suffix}"))
    assert bits(read_state_dict(f"out.{suffix}")) == bits(read_state_dict("tuned.pt"))
    done(tgd("delta", "remove", f"out.{suffix}", "delta.safetensors", "-o", f"base.{suffix}"))
    assert bits(read_state_dict(f"base.{suffix}")) == bits(read_state_dict("net.pt"))
    if suffix == "pt":
        assert list(read_state_dict("base.pt")) == list(read_state_dict("net.pt"))


def test_scale_is_that_of_the_api(work, tgd, network):
    done(tgd("delta", "apply", "net.pt", "python.safetensors", "-o", "half.pt", "--scale", "0.5"))
    half = load_delta(network, work / "python.safetensors", 0.5)
    assert bits(read_state_dict("half.pt")) == bits(half.state_dict())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_prefixes_of_wrappers_and_lightning_are_looked_through(work, tgd, prefix):
    base, tuned = read_state_dict("net.pt"), read_state_dict("tuned.pt")
    torch.save({"epoch": 3, "state_dict": prefixed(base, prefix)}, "net.ckpt")
    torch.save(prefixed(tuned, prefix), "tuned.ckpt")
    done(tgd("delta", "save", "net.ckpt", "tuned.ckpt", "--plan", "plan.json", "-o", "delta.safetensors"))
    assert read_delta(Path("delta.safetensors")).base == read_delta(Path("python.safetensors")).base
    done(tgd("delta", "apply", "net.ckpt", "delta.safetensors", "-o", "out.pt"))
    assert bits(read_state_dict("out.pt")) == bits(tuned)


@pytest.mark.parametrize("suffix", FORMATS)
def test_tied_weights_are_one(folder, tgd, suffix):
    """A safetensors file stores them under both names."""
    case = case_of("tied weights")
    tuned = saved(case, folder / "python.safetensors")
    Path("plan.json").write_text(tuned.tgd_plan.to_json())
    for name, net in (("net", case.model), ("tuned", remove_tgd(tuned))):
        if suffix == "pt":
            torch.save(net.state_dict(), f"{name}.pt")
        else:
            write_state_dict(net.state_dict(), f"{name}.safetensors")
    files = [f"{name}.{suffix}" for name in ("net", "tuned")]
    done(tgd("delta", "save", *files, "--plan", "plan.json", "-o", "delta.safetensors", "--reversible"))
    ours, theirs = (read_delta(Path(f"{name}.safetensors")) for name in ("delta", "python"))
    assert ours.base == theirs.base
    done(tgd("delta", "apply", files[0], "delta.safetensors", "-o", f"out.{suffix}"))
    assert bits(read_state_dict(f"out.{suffix}")) == bits(read_state_dict(files[1]))
    done(tgd("delta", "remove", f"out.{suffix}", "delta.safetensors", "-o", f"base.{suffix}"))
    assert bits(read_state_dict(f"base.{suffix}")) == bits(read_state_dict(files[0]))


def test_show(work, tgd):
    done(
        tgd(*SAVE, "--reversible", "--when", "ManufacturerModelName=Discovery MI", "--when", "PatientID=a=b")
    )
    plan = TGDPlan.from_json((work / "plan.json").read_text())
    text = " ".join(done(tgd("delta", "show", "delta.safetensors")).split())
    for entry in plan.entries:
        line = f"{entry.layer.type} {entry.trainable} of {entry.layer.channels} "
        assert (line in text) == (entry.trainable > 0)
    assert "chosen when ManufacturerModelName=Discovery MI and PatientID=a=b" in text
    assert "can be taken off" in text
    data = json.loads(done(tgd("delta", "show", "delta.safetensors", "--json")))
    assert data["when"] == {"ManufacturerModelName": "Discovery MI", "PatientID": "a=b"}
    assert TGDPlan.from_json(json.dumps(data["plan"])) == plan
    assert data["layers"] == {
        e.layer.name: [i for i, m in enumerate(e.mask) if m] for e in plan.entries if e.trainable
    }
    assert data["reversible"] is True
    assert "the base's rows are not in it" in done(tgd("delta", "show", "python.safetensors"))


def test_diff(work, tgd):
    data = json.loads(done(tgd("delta", "diff", "python.safetensors", "other.safetensors", "--json")))
    one, other = (read_delta(work / f"{name}.safetensors").plan for name in ("python", "other"))
    states = [read_state_dict(f"{name}.pt") for name in ("tuned", "other")]
    assert [row["layer"] for row in data] == [e.layer.name for e in other.entries if e.trainable]
    for row in data:
        layer = one[row["layer"]].layer
        masks = [plan.trainable(layer.name) for plan in (one, other)]
        assert [row["first"], row["second"]] == [mask.nonzero().flatten().tolist() for mask in masks]
        both, differ, largest = masks[0] & masks[1], set(), 0.0
        for rows in layer.parameters:
            where = both[rows.owner()]
            apart = ((states[0][rows.name] - states[1][rows.name]).double().abs() * where).flatten()
            differ |= set(rows.owner().flatten()[apart > 0].tolist())
            largest = max(largest, float(apart.max()))
        assert row["differ"] == sorted(differ)
        assert row["largest"] == pytest.approx(largest, rel=1e-5)
    text = done(tgd("delta", "diff", "python.safetensors", "other.safetensors"))
    assert f"{sum(len(row['differ']) for row in data)} of them differ" in " ".join(text.split())
    same = json.loads(done(tgd("delta", "diff", "python.safetensors", "python.safetensors", "--json")))
    assert not any(row["differ"] for row in same)


def test_merge(work, tgd, assert_refused):
    merge = ["delta", "merge", "net.pt", "python.safetensors", "other.safetensors", "-o", "both.safetensors"]
    assert_refused(merge, "Say which one counts there: overlap='first' or 'last' (--overlap).")
    assert not Path("both.safetensors").exists()
    done(tgd(*merge, "--overlap", "last"))
    done(tgd("delta", "apply", "net.pt", "both.safetensors", "-o", "both.pt"))
    assert bits(read_state_dict("both.pt")) == bits(
        read_state_dict("other.pt")
    )  # its plan covers the first's


def test_what_is_not_of_one_network_is_refused(work, tgd, assert_refused):
    tuned = read_state_dict("tuned.pt")
    tuned["fc.bias"] += 1  # the last layer is frozen
    write_state_dict(tuned, "moved.pt")
    save = ["delta", "save", "net.pt", "moved.pt", "--plan", "plan.json", "-o", "delta.safetensors"]
    assert_refused(save, "In 1 tensor, base and adapted network differ in what the plan freezes")
    del tuned["fc.bias"]
    write_state_dict(tuned, "less.pt")
    assert_refused(
        [*save[:3], "less.pt", *save[4:]],
        "less.pt is not of the network that the plan was made for: 1 tensor missing",
    )
    write_state_dict({**tuned, "fc.bias": torch.zeros(3), "more.weight": torch.zeros(3)}, "more.pt")
    assert_refused([*save[:3], "more.pt", *save[4:]], "In 2 tensors, base and adapted network differ")
    assert_refused(
        ["delta", "apply", "moved.pt", "python.safetensors", "-o", "out.pt"], "made from another network"
    )
    assert_refused(
        ["delta", "merge", "moved.pt", "python.safetensors", "-o", "out.safetensors"], "another network"
    )
    done(tgd(*SAVE, "--reversible"))
    assert_refused(
        ["delta", "remove", "other.pt", "delta.safetensors", "-o", "out.pt"], "made from another network"
    )
    assert_refused(
        ["delta", "remove", "net.pt", "delta.safetensors", "-o", "out.pt"], "are not those of the network"
    )
    assert_refused(
        ["delta", "remove", "tuned.pt", "python.safetensors", "-o", "out.pt"], "does not hold the base's rows"
    )
    saved(case_of("tied weights"), work / "tied.safetensors")
    assert_refused(["delta", "diff", "python.safetensors", "tied.safetensors"], "are of different networks")
    assert not list(work.glob("out.*"))


def test_bad_options(work, assert_refused):
    apply = ["delta", "apply", "net.pt", "python.safetensors"]
    (work / "bad.json").write_bytes(b"\xff\xfe")
    (work / "cut.pt").write_bytes((work / "net.pt").read_bytes()[:1000])
    (work / "text.pt").write_text("hello")
    for args, problem in (
        ([*SAVE, "--when", "PatientID"], "'PatientID' is not a condition. Write TAG=VALUE"),
        ([*SAVE, "--when", "Patient ID=7"], "'Patient ID' with the value '7' is not a condition"),
        ([*SAVE[:-1], "delta.pt"], "has no suffix of a delta"),
        ([*SAVE[:-1], "plan.json"], "would be replaced"),
        ([*SAVE[:5], "bad.json", *SAVE[6:]], "bad.json cannot be read: it is not text."),
        ([*SAVE[:5], "none.json", *SAVE[6:]], "none.json cannot be read: No such file"),
        ([*SAVE[:5], "net.pt", *SAVE[6:]], "net.pt cannot be read: it is not text."),
        ([*SAVE[:5], "text.pt", *SAVE[6:]], "text.pt: This is not a TGD plan of format"),
        ([*apply, "-o", "net.pt"], "would be replaced"),
        ([*apply, "-o", "python.safetensors"], "would be replaced"),
        ([*apply, "-o", "out.onnx"], "of a checkpoint. Those that can be written are .safetensors, .pt, "),
        ([*apply, "-o", "none/out.pt"], "The folder of none/out.pt does not exist"),
        ([*apply, "-o", "out.pt", "--scale", "2"], "--scale is 2.0. Give a number from 0 to 1."),
        (["delta", "apply", "net.pt", "tuned.pt", "-o", "out.pt"], "tuned.pt is a checkpoint, and no delta."),
        (["delta", "show", "none.safetensors"], "does not exist"),
        (["delta", "show", "net.pt"], "net.pt is a checkpoint, and no delta. Give what `tgd delta save` or"),
        (["delta", "show", "cut.pt"], "cut.pt is damaged, cut off or not a safetensors file"),
        (["delta", "diff", "python.safetensors", "net.pt"], "net.pt is a checkpoint, and no delta."),
    ):
        assert_refused(args, problem)
    assert not list(work.glob("out*"))
    assert not (work / "delta.safetensors").exists()


def test_conditions_may_hold_equals_signs():
    assert parse_condition("SeriesDescription= a=b ") == ("SeriesDescription", "a=b")


def test_each_command_has_an_example(tgd):
    listed = done(tgd("delta", "--help")).partition("Commands:\n")[2].split("\n")
    names = [line.split()[0] for line in listed if line.strip()]
    assert sorted(names) == ["apply", "diff", "merge", "remove", "save", "show"]
    for name in names:
        assert f"Example: tgd delta {name} " in " ".join(done(tgd("delta", name, "--help")).split())
