"""Metrics of unsupervised part segmentation: a NumPy core and thin `evaluate` modules, loadable by path."""
