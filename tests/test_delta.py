"""The retrained rows as a file: on its base they give the trained network bit for bit, elsewhere an error."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tests.laws.subjects import (
    Method,
    assert_equal_tensors,
    in_both_forms,
    methods,
    on_every_topology,
    operated,
)
from tests.laws.test_law8_leaks import snapshot
from tests.strategies import Case, call, cases, leaves, scalar_loss
from tests.topologies import case_of
from tgdsurgery import (
    CheckpointError,
    RewriteError,
    TGDPlan,
    apply_tgd,
    load_delta,
    remove_tgd,
    save_delta,
    verify,
)
from tgdsurgery.storage import delta_file

IMAGES = torch.linspace(-1, 1, 512).view(2, 1, 16, 16)


def trained(case: Case, method: Method) -> nn.Module:
    """The network with TGD after a training step that would move everything, statistics and counters too."""
    tgd = operated(case, method).train()
    optimizer = torch.optim.SGD(tgd.parameters(), lr=0.01) if list(tgd.parameters()) else None
    loss = scalar_loss(call(tgd, case.inputs))
    if optimizer and loss.requires_grad:
        loss.backward()
        optimizer.step()
    return tgd.eval()


def assert_goes_there_and_back(case: Case, method: Method, folder: Path) -> None:
    """Raise unless base and file together are the trained network without TGD, and the base stays as it is."""
    tgd = trained(Case(copy.deepcopy(case.model), case.inputs), method)
    path = folder / "delta.safetensors"
    save_delta(tgd, path)
    before = snapshot(case)
    adapted, plain = load_delta(case.model, path), remove_tgd(tgd)
    assert snapshot(case) == before
    assert_equal_tensors(adapted.state_dict(), plain.state_dict())
    assert type(adapted) is type(case.model)
    flags = {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    assert flags == {name: parameter.requires_grad for name, parameter in case.model.named_parameters()}
    assert_equal_tensors(*(leaves(call(net.eval(), case.inputs)) for net in (adapted, plain)))


@given(case=cases(), method=methods)
def test_random_networks(case, method, tmp_path_factory):
    assert_goes_there_and_back(case, method, tmp_path_factory.mktemp("random"))


@on_every_topology
@in_both_forms
def test_catalogue(name, form, tmp_path):
    assert_goes_there_and_back(case_of(name), Method(form=form), tmp_path)


def base() -> nn.Sequential:
    """A small denoiser with statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )  # fmt: skip
        net[1].running_mean.normal_()
        net[4].running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A trained TGD network made from `base`, and its delta."""
    tgd = trained(Case(base(), IMAGES), Method(phi=0.3))
    path = tmp_path / "delta.safetensors"
    save_delta(tgd, path)
    return tgd, path


def stored(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same_files(one: Path, other: Path) -> None:
    """Raise unless both hold the same; safetensors writes metadata in any order."""
    (values, metadata), (expected, expected_metadata) = stored(one), stored(other)
    assert_equal_tensors(values, expected)
    assert metadata == expected_metadata


def test_the_file_holds_what_may_move_and_nothing_else(saved):
    tgd, path = saved
    values, metadata = stored(path)
    plan = tgd.tgd_plan
    wanted = {name: int(mask.sum()) for name, mask in plan.parameter_masks().items()}
    for entry in plan.entries:
        wanted |= dict.fromkeys(entry.layer.statistics, entry.trainable)
    wanted |= {"1.num_batches_tracked": 1, "4.num_batches_tracked": 1}
    assert {name: tensor.numel() for name, tensor in values.items()} == {n: c for n, c in wanted.items() if c}
    assert TGDPlan.from_json(metadata["plan"]) == plan
    assert "6.weight" not in values  # the output layer is frozen
    assert (
        len(torch.cat([tensor.flatten() for tensor in values.values()]))
        < sum(tensor.numel() for tensor in base().state_dict().values()) / 4
    )


def test_drifting_statistics_are_stored_whole(tmp_path):
    tgd = trained(Case(base(), IMAGES), Method(phi=0.3, norm_stats="batch"))
    path = tmp_path / "delta.safetensors"
    save_delta(tgd, path)
    values, _ = stored(path)
    assert torch.equal(values["1.running_mean"], tgd.state_dict()["1.running_mean"])
    assert not torch.equal(values["1.running_mean"], base()[1].running_mean)
    other = base()
    other[1].running_mean.add_(1)
    assert_equal_tensors(load_delta(other, path).state_dict(), load_delta(base(), path).state_dict())


def test_deltas_stack(tmp_path):
    nets = [base()]
    for step, phi in enumerate((0.3, 0.6, 0.3)):
        tgd = trained(Case(nets[-1], IMAGES * (step + 1)), Method(phi=phi))
        save_delta(tgd, tmp_path / f"{step}.safetensors")
        nets.append(remove_tgd(tgd))
    net: nn.Module = base()
    for step, expected in enumerate(nets[1:]):
        net = load_delta(net, tmp_path / f"{step}.safetensors")
        assert_equal_tensors(net.state_dict(), expected.state_dict())
    with pytest.raises(CheckpointError, match="made from another network"):
        load_delta(base(), tmp_path / "2.safetensors")  # freezes rows that the one before had moved


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["DataParallel", "compile"]
)
def test_wrappers_are_looked_through(saved, tmp_path, wrap):
    tgd, path = saved
    save_delta(wrap(tgd), tmp_path / "wrapped.safetensors")
    assert_same_files(tmp_path / "wrapped.safetensors", path)
    adapted = load_delta(wrap(base()), path)
    assert type(adapted) is nn.Sequential
    assert_equal_tensors(adapted.state_dict(), remove_tgd(tgd).state_dict())


def test_both_forms_write_the_same(tmp_path):
    for form in ("compact", "layers"):
        tgd = operated(Case(base(), IMAGES), Method(phi=0.3, form=form))
        save_delta(tgd, tmp_path / f"{form}.safetensors")
    assert_same_files(tmp_path / "compact.safetensors", tmp_path / "layers.safetensors")


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    case = case_of("tied weights")
    save_delta(trained(case, Method()), tmp_path / "delta.safetensors")
    values, _ = stored(tmp_path / "delta.safetensors")
    assert "first.weight" in values
    assert "second.weight" not in values
    adapted = load_delta(case.model, tmp_path / "delta.safetensors")
    assert adapted.second.weight is adapted.first.weight


def test_what_was_trainable_may_differ_in_the_base(saved):
    """Another patient's rows, by the same plan, are replaced whole."""
    tgd, path = saved
    other = trained(Case(base(), IMAGES.flip(2)), Method(phi=0.3))
    assert other.tgd_plan == tgd.tgd_plan
    assert_equal_tensors(load_delta(remove_tgd(other), path).state_dict(), remove_tgd(tgd).state_dict())


def frozen_entry(net: nn.Module, tgd: nn.Module, name: str) -> Tensor:
    """A view of the first frozen entry of a tensor of the network."""
    layer = name.rpartition(".")[0]
    row = int((~tgd.tgd_plan.trainable(layer)).nonzero()[0])
    return net.state_dict()[name][row].flatten()[:1]


@pytest.mark.parametrize("name", ["0.weight", "3.bias", "1.weight", "4.running_var", "6.weight"])
def test_a_base_that_differs_in_one_frozen_bit_is_refused(saved, name):
    tgd, path = saved
    other = base()
    entry = frozen_entry(other, tgd, name)
    entry.copy_(torch.nextafter(entry, entry + 1))
    with pytest.raises(CheckpointError, match=rf"1 of \d+ tensors differ in what is frozen \({name}\)"):
        load_delta(other, path)


def test_zero_is_not_minus_zero_and_nan_is_itself(tmp_path):
    one, other = base(), base()
    for net, sign in ((one, 1.0), (other, -1.0)):
        net[6].weight.data[0, 0, 0, :2] = torch.tensor([0.0 * sign, torch.nan])
    tgd = apply_tgd(base(), IMAGES)
    tgd.load_state_dict(one.state_dict())
    save_delta(tgd, tmp_path / "delta.safetensors")
    assert load_delta(one, tmp_path / "delta.safetensors")[6].weight[0, 0, 0, 1].isnan()
    with pytest.raises(CheckpointError, match=r"\(6\.weight\)"):
        load_delta(other, tmp_path / "delta.safetensors")


def renamed() -> nn.Module:
    return nn.Sequential(base())


def narrower() -> nn.Module:
    return nn.Sequential(*base()[:3], nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3))


def without_norms() -> nn.Module:
    return nn.Sequential(*(nn.Identity() if isinstance(m, nn.BatchNorm2d) else m for m in base()))


@pytest.mark.parametrize(
    "other",
    [renamed, narrower, without_norms, lambda: base().double(), lambda: base().bfloat16(), lambda: nn.ReLU()],
    ids=["renamed", "narrower", "without norms", "double", "bfloat16", "empty"],
)
def test_another_network_is_refused(saved, other: Callable[[], nn.Module]):
    with pytest.raises(
        CheckpointError, match=r"made from another network: \d+ of \d+ tensors differ"
    ) as raised:
        load_delta(other(), saved[1])
    wrong, names = map(int, re.findall(r"(\d+) of (\d+) tensors", str(raised.value))[0])
    assert 0 < wrong <= names


@in_both_forms
def test_frozen_entries_that_were_loaded_show(form, tmp_path):
    """Of a state that was trained in another way, say: what is loaded is kept."""
    tgd = apply_tgd(base(), IMAGES, phi=0.3, form=form)
    state = copy.deepcopy(tgd.state_dict())
    state["3.weight"].mul_(0.9)
    tgd.load_state_dict(state)
    assert not verify(base(), tgd).ok
    save_delta(tgd, tmp_path / "delta.safetensors")
    with pytest.raises(CheckpointError, match="see verify and guard"):
        load_delta(base(), tmp_path / "delta.safetensors")


def test_frozen_entries_that_were_written_by_hand_are_in_no_delta(tmp_path):
    tgd = apply_tgd(base(), IMAGES, phi=0.3, form="layers")
    with torch.no_grad():
        tgd.get_parameter("3.weight").mul_(0.9)  # weight decay without a guard
    save_delta(tgd, tmp_path / "delta.safetensors")
    adapted = load_delta(base(), tmp_path / "delta.safetensors")
    trainable = tgd.tgd_plan.trainable("3").view(-1, 1, 1, 1)
    weight = base().get_parameter("3.weight")
    assert torch.equal(adapted.get_parameter("3.weight"), torch.where(trainable, weight * 0.9, weight))
    assert trainable.any()
    assert not trainable.all()


def test_only_the_forms_they_are_made_for_are_taken(saved):
    tgd, path = saved
    with pytest.raises(RewriteError, match="not a TGD network"):
        save_delta(base(), path)
    for net in (tgd, nn.Sequential(tgd)):
        with pytest.raises(RewriteError, match="The base is a TGD network"):
            load_delta(net, path)


class Remembering(nn.Conv2d):
    """A layer with state that is not a tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_state_that_is_no_tensor_is_refused(tmp_path):
    tgd = apply_tgd(nn.Sequential(Remembering(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)), IMAGES)
    with pytest.raises(CheckpointError, match=r"keeps '0\._extra_state', which is not a tensor"):
        save_delta(tgd, tmp_path / "delta.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(saved, share):
    path = saved[1]
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_delta(base(), path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """The bytes of a delta, and a path to write damaged ones to."""
    path = tmp_path_factory.mktemp("intact") / "delta.safetensors"
    save_delta(trained(Case(base(), IMAGES), Method(phi=0.3)), path)
    return path.read_bytes(), path


@settings(max_examples=100)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(intact, place, bit):
    data = bytearray(intact[0])
    data[int(place * len(data))] ^= 1 << bit
    intact[1].write_bytes(data)
    with pytest.raises(CheckpointError):
        load_delta(base(), intact[1])


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_other_files_are_refused_and_never_run(tmp_path):
    path = tmp_path / "delta.safetensors"
    for target, problem in ((path, "does not exist"), (tmp_path, "does not exist, or is not a file")):
        with pytest.raises(CheckpointError, match=problem):
            load_delta(base(), target)
    path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_delta(base(), path)
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_delta(base(), path)
    assert not (tmp_path / "ran").exists()
    for metadata in (None, {"format": "pt"}, {"format": "tgdsurgery-delta-3"}):
        safetensors.torch.save_file(base().state_dict(), path, metadata=metadata)
        with pytest.raises(
            CheckpointError, match="not a delta of format tgdsurgery-delta-1 or tgdsurgery-delta-2"
        ):
            load_delta(base(), path)


def test_a_delta_with_parts_missing_is_refused(saved):
    path = saved[1]
    values, metadata = stored(path)
    for changed in (
        (values, {key: value for key, value in metadata.items() if key != "plan"}),
        (values, {key: value for key, value in metadata.items() if key != "contents"}),
        (values, metadata | {"base": json.dumps({})}),
        ({name: tensor for name, tensor in values.items() if name != "3.weight"}, metadata),
        ({name: tensor.double() for name, tensor in values.items()}, metadata),
    ):
        safetensors.torch.save_file(changed[0], path, metadata=changed[1])
        with pytest.raises(CheckpointError, match="damaged"):
            load_delta(base(), path)


def without_a_row(values: dict[str, Tensor]) -> None:
    values["3.weight"] = values["3.weight"][9:]


def with_a_row(values: dict[str, Tensor]) -> None:
    values["3.weight"] = torch.cat([values["3.weight"], values["3.weight"][:9]])


FORGED: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a row less": without_a_row,
    "a row more": with_a_row,
    "a tensor less": lambda values: values.pop("3.weight"),
    "a tensor of the network that is frozen": lambda values: values.update({"6.weight": torch.zeros(3)}),
    "a tensor of no network": lambda values: values.update({"other": torch.zeros(3)}),
    "another dtype": lambda values: values.update({"3.weight": values["3.weight"].double()}),
}


@pytest.mark.parametrize("forge", FORGED)
def test_a_delta_is_checked_against_its_own_plan_also_where_its_digest_was_made_anew(saved, forge):
    path = saved[1]
    values, metadata = stored(path)
    FORGED[forge](values)
    metadata.pop("contents")
    metadata["contents"] = delta_file.contents(metadata, values)
    safetensors.torch.save_file(values, path, metadata=metadata)
    with pytest.raises(
        CheckpointError, match=r"is damaged: it has \d+ entries of .* where its plan says \d+"
    ):
        load_delta(base(), path)


@pytest.mark.parametrize(
    "forged",
    [
        {"base": json.dumps(["0.weight"])},
        {"base": json.dumps({"0.weight": 3})},
        {"when": json.dumps({"PatientID": 7})},
        {"when": json.dumps({"Patient ID": "7"})},
        {"when": "[" * 100_000},
        {"reversible": "true"},
        {"reversible": "maybe"},
    ],
    ids=str,
)
def test_metadata_are_checked_also_where_the_digest_was_made_anew(saved, forged):
    path = saved[1]
    values, metadata = stored(path)
    metadata |= forged
    del metadata["contents"]
    metadata["contents"] = delta_file.contents(metadata, values)
    safetensors.torch.save_file(values, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_delta(base(), path)


@given(seed=st.integers(0, 2**16))
def test_any_number_of_entries_but_the_right_one_is_refused(intact, seed):
    """Of every tensor, in files whose digest is right."""
    content, path = intact
    path.write_bytes(content)
    values, metadata = stored(path)
    draw = torch.Generator().manual_seed(seed)
    name = sorted(values)[int(torch.randint(len(values), (), generator=draw))]
    count = int(torch.randint(values[name].numel() + 4, (), generator=draw))
    right = values[name].numel()
    values[name] = values[name].flatten().repeat(2)[:count].clone()
    metadata.pop("contents")
    metadata["contents"] = delta_file.contents(metadata, values)
    safetensors.torch.save_file(values, path, metadata=metadata)
    if values[name].numel() == right:
        load_delta(base(), path)
    else:
        with pytest.raises(CheckpointError, match="where its plan says"):
            load_delta(base(), path)


def test_a_write_that_fails_leaves_the_file_as_it_was(saved, monkeypatch):
    tgd, path = saved
    before = path.read_bytes()

    def full_disk(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        save_delta(tgd, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_names_of_files(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"Name it delta\.safetensors"):
        save_delta(saved[0], tmp_path / "delta.pt")
    with pytest.raises(CheckpointError, match=r"folder of .* does not exist"):
        save_delta(saved[0], str(tmp_path / "none" / "delta.safetensors"))
