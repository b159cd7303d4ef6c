"""The version, in a file without imports so that a build can read it without installing torch."""

__version__ = "0.1.0"
