"""PET images from files, in SUV."""

from __future__ import annotations

from tgd_pet.images.suv import SUV

read_image = SUV.read

__all__ = ["read_image"]
