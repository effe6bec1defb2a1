"""Law 4 where a compiler has written the training step."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from tests.laws.subjects import Method, assert_equal_tensors, in_both_forms, operated
from tests.laws.test_law4_frozen import OPTIMIZERS, frozen_part, trained
from tests.topologies import case_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_a_compiler = pytest.mark.skipif(COMPILER is None, reason="torch's inductor needs a C++ compiler")


def assert_frozen_stay_compiled(name: str, method: Method, backend: str) -> None:
    """Raise unless frozen entries stay, and the others go where they go without a compiler."""
    torch._dynamo.reset()
    case = case_of(name).double().train()
    tgd = operated(case, method)
    eager, before, state = copy.deepcopy(tgd), frozen_part(tgd), copy.deepcopy(tgd.state_dict())
    for net, run in ((eager, eager), (tgd, torch.compile(tgd, backend=backend))):
        optimizer = OPTIMIZERS["momentum"](net.parameters())
        trained(run, case, optimizer)
    assert_equal_tensors(frozen_part(tgd), before)
    after, expected = tgd.state_dict(), eager.state_dict()
    assert any(not torch.equal(after[key], state[key]) for key in tgd.tgd_plan.parameter_masks())
    for key, value in expected.items():
        # A compiler may sum in another order; in float64 that leaves many digits.
        torch.testing.assert_close(after[key], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("flow", ["masked", "full"])
@in_both_forms
def test_aot_autograd(form, flow):
    assert_frozen_stay_compiled("residual stages", Method(phi=0.5, form=form, flow=flow), "aot_eager")


@needs_a_compiler
def test_inductor():
    assert_frozen_stay_compiled("chain", Method(phi=0.5), "inductor")
