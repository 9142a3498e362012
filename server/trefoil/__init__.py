"""One server for every transformer family."""

__version__ = "0.1.0"
