"""Law 1: before any step, the rewritten model computes exactly what the original computes."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from tests.laws.subjects import (
    Method,
    assert_equal_tensors,
    in_both_forms,
    methods,
    on_every_topology,
    operated,
    with_flags_of,
)
from tests.strategies import Case, call, cases, leaves
from tests.topologies import case_of

# In the layers form equal only to the original with the same parameters frozen: see `with_flags_of`.
FOLDED = {"unfold and fold"}


def assert_same_forward(case: Case, method: Method, *, same_flags: bool) -> None:
    """Raise unless outputs, and whatever the forward writes to buffers, are the same bits.

    Args:
        case: the network.
        method: what is done to it.
        same_flags: compare with the original after freezing the same parameters.
    """
    plain, tgd = copy.deepcopy(case.model), operated(case, method)
    if same_flags:
        with_flags_of(plain, tgd)
    expected, found = call(plain, case.inputs), call(tgd, case.inputs)
    assert type(found) is type(expected)
    assert_equal_tensors(leaves(found), leaves(expected))
    assert_equal_tensors(tgd.state_dict(), plain.state_dict())


@given(case=cases(), method=methods)
def test_random_networks_in_evaluation(case, method):
    assert_same_forward(case, method, same_flags=True)


@given(case=cases(), method=methods)
def test_random_networks_in_training_with_batch_statistics(case, method):
    assert_same_forward(case.train(), method._replace(norm_stats="batch"), same_flags=True)


@on_every_topology
@in_both_forms
def test_catalogue_in_evaluation(name, form):
    assert_same_forward(case_of(name), Method(form=form), same_flags=name in FOLDED and not form)


@on_every_topology
@in_both_forms
def test_catalogue_in_training_with_batch_statistics(name, form):
    assert_same_forward(
        case_of(name).train(), Method(norm_stats="batch", form=form), same_flags=name in FOLDED
    )


@on_every_topology
def test_catalogue_has_something_to_train_and_something_to_freeze(name):
    """Otherwise the laws would say little about it."""
    assert 0 < operated(case_of(name)).tgd_plan.share < 1


@given(case=cases(), method=methods, training=st.booleans())
def test_the_mode_of_every_module_is_kept(case, method, training):
    case = case.train(training)
    for index, module in enumerate(case.model.modules()):
        module.training = index % 3 == 0
    tgd = dict(operated(case, method).named_modules())
    for name, module in case.model.named_modules():
        assert tgd[name].training == module.training
