"""Work that leaves files: written whole, in folders of their own, by several processes, on record."""
