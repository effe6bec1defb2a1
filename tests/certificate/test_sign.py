"""Signatures: made with a key of this test, verified without a network, and wrong after any change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tgdsurgery import CheckpointError
from tgdsurgery.certificate.sign import Signer, SigningError


def write_keys(folder: Path, key=None, password: bytes | None = None) -> tuple[Path, Path]:
    key = key or ec.generate_private_key(ec.SECP256R1())
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (folder / "private.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, hidden)
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder / "private.pem", folder / "public.pem"


def verified(file: Path, signature: Path, public: Path) -> bool:
    """The command of the docs."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(file)]
    done = subprocess.run(
        [*command, "--signature", str(signature), "--public_key", str(public)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("Verification succeeded" in done.stdout + done.stderr) == (done.returncode == 0), done.stderr
    assert done.returncode == 0 or "Verification failed" in done.stdout + done.stderr
    return done.returncode == 0


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A signed file, its signature and the public key."""
    private, public = write_keys(tmp_path)
    (tmp_path / "certificate.json").write_text('{"ok": true}')
    signature = Signer(private).sign(tmp_path / "certificate.json", tmp_path)
    return tmp_path / "certificate.json", signature, public


def test_a_signature_holds(signed):
    assert signed[1].name == "certificate.json.sig"
    assert verified(*signed)


def test_any_change_shows(signed, tmp_path):
    file, signature, public = signed
    file.write_text('{"ok": tru }')
    assert not verified(*signed)
    file.write_text('{"ok": true}')
    assert verified(*signed)
    text = signature.read_text()
    place = text.index('"payload"') + 40
    signature.write_text(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :])
    assert not verified(*signed)
    signature.write_text(text)
    (tmp_path / "other").mkdir()
    _, other = write_keys(tmp_path / "other")
    assert not verified(file, signature, other)
    assert verified(file, signature, public)


def test_keys_that_cannot_sign(tmp_path):
    (tmp_path / "text.pem").write_text("no key")
    for key in (tmp_path / "none.pem", tmp_path / "text.pem"):
        with pytest.raises(
            SigningError, match=r"is not a private key that can sign.*[^.?]\. Make one: openssl"
        ):
            Signer(key)
    for made in (
        write_keys(tmp_path, password=b"secret"),
        write_keys(tmp_path, rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ):
        with pytest.raises(SigningError, match="is not a private key that can sign"):
            Signer(made[0])


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(SigningError, match=r'Install it: pip install "tgdsurgery\[sign\]"\.'):
        Signer(tmp_path / "key")


def test_links_are_not_followed(tmp_path):
    private, _ = write_keys(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "public.pem")
    with pytest.raises(CheckpointError, match=r"link cannot be signed.*Give the file itself"):
        Signer(private).sign(tmp_path / "link", tmp_path)
    assert not list(tmp_path.glob("*.sig*"))
