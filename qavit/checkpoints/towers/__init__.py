"""Architectures, one file each: names and sizes of checkpoints mapped onto the core's."""
