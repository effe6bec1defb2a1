"""The benchmark of checkpoints and averages runs, and its page marks what misses the goal."""

from torch import nn

from benchmarks import epoch_end


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))


def test_it_measures_all_work_of_both_networks() -> None:
    found = epoch_end.measure(small, rounds=3)
    assert list(found) == ["state_dict", "load", "save", "average"]
    for one in found.values():
        assert min(one["plain"], one["compact"]) > 0
        assert one["ratio"] == sorted(one["ratio"])


def test_what_misses_the_goal_is_bold() -> None:
    def one(middle: float) -> dict[str, object]:
        return {"plain": 0.001, "compact": 0.001 * middle, "ratio": [1.0, middle, 2.0]}

    (slow, fast) = epoch_end.rows({"net": {"load": one(1.51), "save": one(1.5)}})
    assert slow == ["net", "load", "1.00", "1.51", "**1.51**", "1.00-2.00"]
    assert fast[4] == "1.50"
