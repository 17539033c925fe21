"""Architectures, one file each: their tensors' names and shapes, and what no shape tells."""
