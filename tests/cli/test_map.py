"""`tgd map`: the channel map of one layer, folded for people and exact as JSON."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from tgdsurgery import Producer, channel_map
from tgdsurgery.cli.map import Run, fold


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if "[" in line or "network input" in line]


def test_concatenation_and_carriers(folder, tgd):
    result = tgd("map", "--model", "network:make", "--layer", "body")
    assert rows(result.output) == [["0-3", "stem[0-3]", "norm[0-3]"], ["4-5", "branch[0-1]", "norm[4-5]"]]


def test_flattened_features(folder, tgd):
    result = tgd("map", "--model", "network.py:make", "--layer", "fc", "--input-shape", "2x1x16x16")
    assert rows(result.output) == [["0-255", "(64", "each)", "up[0-3]", "-"]]


def test_the_networks_own_input(folder, tgd):
    result = tgd("map", "--model", "network:make", "--layer", "stem")
    assert rows(result.output) == [["0", "network", "input", "-"]]


def test_json_has_every_channel(folder, network, tgd):
    data = json.loads(tgd("map", "--model", "network:make", "--layer", "body", "--json").stdout)
    found = channel_map(network)
    assert data["layer"] == "body"
    assert [entry["channel"] for entry in data["inputs"]] == list(range(6))
    for role in ("producers", "channel_layers"):
        given = [frozenset(Producer(**writer) for writer in entry[role]) for entry in data["inputs"]]
        assert tuple(given) == getattr(found, role)("body")


def test_an_unknown_layer(folder, assert_refused):
    problem = "No layer that reads channels is called 'bodi'. Did you mean body?"
    assert_refused(["map", "--model", "network:make", "--layer", "bodi"], problem)


def one(layer: str, *channels: int) -> frozenset[Producer]:
    return frozenset(Producer(layer, channel) for channel in channels)


def test_runs_as_they_are_shown():
    dense = [one("a", 0, 1, 2, 5)] * 3
    assert [(run.channels, run.writers("a")) for run in fold(dense)] == [("0-2", "all of a[0-2,5]")]
    gated = [one("a", c) | one("gate", 7) for c in range(3)]
    assert [(run.channels, run.writers("a"), run.writers("gate")) for run in fold(gated)] == [
        ("0-2", "a[0-2]", "gate[7]")
    ]
    backwards = [one("a", 1), one("a", 0)]
    assert [(run.channels, run.writers("a")) for run in fold(backwards)] == [("0", "a[1]"), ("1", "a[0]")]


def unfolded(runs: list[Run]) -> list[frozenset[Producer]]:
    return [
        frozenset(
            Producer(layer, channel + block * run.steps.get(layer, 0))
            for layer, channels in run.first.items()
            for channel in channels
        )
        for run in runs
        for block in range(run.blocks)
        for _ in range(run.size)
    ]


writers = st.frozensets(st.builds(Producer, st.sampled_from("ab"), st.integers(0, 3)), max_size=3)
stretch = st.tuples(writers, st.integers(1, 3), st.integers(1, 4)).map(
    lambda drawn: [
        frozenset(Producer(layer, channel + block) for layer, channel in drawn[0])
        for block in range(drawn[2])
        for _ in range(drawn[1])
    ]
)


@given(st.lists(stretch, max_size=4).map(lambda stretches: [*itertools.chain(*stretches)]))
def test_folding_loses_nothing(inputs):
    runs = fold(inputs)
    assert unfolded(runs) == inputs
    starts = [run.start for run in runs]
    assert starts == [sum(run.size * run.blocks for run in runs[:index]) for index in range(len(runs))]
