"""PET images from files, in SUV."""
