"""A small backbone for rebuilding papers on search."""

__version__ = "0.1.0"
