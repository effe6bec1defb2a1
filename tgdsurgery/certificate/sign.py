"""Signatures of files with a private key, by the `model-signing` package (extra `sign`)."""

from __future__ import annotations

from pathlib import Path

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import CheckpointError, TGDError


class SigningError(TGDError):
    """A key that cannot be used, or a package that is not there."""


class Signer:
    """Signs files; anybody with the public key can tell whether they are still the same.

    `model_signing verify key FILE --signature FILE.sig --public_key public.pem` does that. Nothing is sent anywhere.

    Args:
        key: private key on an elliptic curve (NIST P-256, P-384 or P-521), as PEM without a password.

    Raises:
        SigningError: model-signing is not installed, or the key cannot be used.
    """

    def __init__(self, key: Path) -> None:
        try:
            from model_signing import signing  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise SigningError(
                f"Signatures need model-signing ({error}).", 'Install it: pip install "tgdsurgery[sign]".'
            ) from error
        try:
            config = signing.Config()  # type: ignore[no-untyped-call]
            self._config = config.use_elliptic_key_signer(private_key=key)
        except (OSError, ValueError, TypeError, AttributeError) as error:  # no PEM, a password, another kind
            raise SigningError(
                f"{key} is not a private key that can sign: {_reason(error)}.",
                "Make one: openssl ecparam -name prime256v1 -genkey -noout -out private.pem.",
            ) from error

    def sign(self, file: Path, folder: Path) -> Path:
        """Write a file's signature.

        Args:
            file: what to sign.
            folder: where the signature goes, named as its file with `.sig` after it.

        Returns:
            The signature.

        Raises:
            CheckpointError: it cannot be written, or the file is a link.
        """
        target = folder / f"{file.name}.sig"
        with replacing(target) as temporary:
            try:
                self._config.sign(file, temporary)
            except ValueError as error:  # model-signing follows no links
                raise CheckpointError(
                    f"{file} cannot be signed: {error}.", "Give the file itself."
                ) from error
        return target


def _reason(error: Exception) -> str:
    """Why, as the start of a sentence: messages of libraries end in marks of their own."""
    return (getattr(error, "strerror", None) or str(error)).rstrip(".?!")
