"""Formats of files that hold weights, one file each."""
