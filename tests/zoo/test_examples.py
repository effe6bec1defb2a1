"""The examples on networks of other libraries."""

import pytest

from tests.test_examples import NEEDS, assert_adapts


@pytest.mark.parametrize("example", NEEDS)
def test_examples_adapt(example: str) -> None:
    assert_adapts(example)
