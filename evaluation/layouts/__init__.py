"""Readers of data sets with masks as their owners publish them: one file a layout on disk."""
