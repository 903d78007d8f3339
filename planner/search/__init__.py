"""Layouts of a model on a cluster: which are legal, which fit, which is fastest."""
