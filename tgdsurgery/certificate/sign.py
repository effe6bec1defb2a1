"""Signatures of files with a private key, by the `model-signing` package (extra `sign`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import CheckpointError, TGDError


class SigningError(TGDError):
    """A key that cannot be used, or a package that is not there."""


def sign(files: Sequence[Path], key: Path, folder: Path) -> list[Path]:
    """Sign each file; anybody with the public key can tell whether it is still the same.

    `model_signing verify key FILE --signature FILE.sig --public_key public.pem` does that. Nothing is sent anywhere.

    Args:
        files: what to sign.
        key: private key on an elliptic curve (NIST P-256, P-384 or P-521), as PEM without a password.
        folder: where the signatures go, each named as its file with `.sig` after it.

    Returns:
        The signatures.

    Raises:
        SigningError: model-signing is not installed, or the key cannot be used.
        CheckpointError: a signature cannot be written.
    """
    try:
        from model_signing import signing  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise SigningError(
            f"Signatures need model-signing ({error}).", 'Install it: pip install "tgdsurgery[sign]".'
        ) from error
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=key)  # type: ignore[no-untyped-call]
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # no PEM, a password, another kind of key
        raise SigningError(
            f"{key} is not a private key that can sign: {getattr(error, 'strerror', None) or error}.",
            "Make one: openssl ecparam -name prime256v1 -genkey -noout -out private.pem.",
        ) from error
    written = []
    for file in files:
        target = folder / f"{file.name}.sig"
        with replacing(target) as temporary:
            try:
                signer.sign(file, temporary)
            except ValueError as error:  # model-signing follows no links
                raise CheckpointError(
                    f"{file} cannot be signed: {error}.", "Give the file itself."
                ) from error
        written.append(target)
    return written
