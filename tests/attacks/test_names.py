"""Names that would drive a terminal or a page: escape codes, markup, line breaks, and length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.attacks.harness import assert_refused, run

NAMES = {
    "clears the screen": "\x1b[2J\x1b[1;1Hok.weight",
    "sets the title": "\x1b]0;owned\x07.weight",
    "markup of rich": "[red]a[/red][link=http://x]b[/link].weight",
    "broken markup": "[/red].weight",
    "lines": "a\r\nError: b\n.weight",
    "right to left": "\u202egnp.weight",
    "html": "<script>alert(1)</script>.weight",
    "long": "a" * 100_000 + ".weight",
    "surrogate": "a\udcff.weight",
}


def assert_printable(text: str) -> None:
    assert all(part.isprintable() for part in text.replace("\t", " ").split("\n")), ascii(text[:300])
    assert max(map(len, text.split("\n"))) < 5000


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_shown_as_text(folder: Path, kind: str) -> None:
    name = NAMES[kind]
    weights = {name: torch.rand(8, 4, 3, 3), "good.weight": torch.rand(8, 8, 3, 3)}
    torch.save(weights, folder / "odd.pt")
    for args in (
        ["inspect", "odd.pt"],
        ["inspect", "odd.pt", "--csv"],
        ["inspect", "odd.pt", "--layer", name],
    ):
        ended = run(folder, *args)
        assert ended.code in (0, 2)
        assert_printable(ended.out)
        assert_printable(ended.err)
        assert len(ended.err.splitlines()) <= 1
    assert "Error: b" not in run(folder, "inspect", "odd.pt").out.splitlines()


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_files_are_shown_as_text(folder: Path, kind: str) -> None:
    ended = run(folder, "inspect", NAMES[kind].replace("/", "_") + ".pt")
    assert ended.code == 2
    assert_printable(ended.err)
    assert len(ended.err.splitlines()) == 1


def test_an_op_whose_name_is_no_text_is_refused(folder: Path) -> None:
    content = (folder / "base.onnx").read_bytes()
    assert b"\x22\x04Conv" in content
    (folder / "odd.onnx").write_bytes(content.replace(b"\x22\x04Conv", b"\x22\x04C\xff\xfev"))
    for args in (["inspect", "odd.onnx"], ["plan", "--model", "odd.onnx"]):
        line = assert_refused(run(folder, *args))
        assert "no text" in line
