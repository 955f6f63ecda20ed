"""Benchmarks: lmms-eval with our model as its plug-in, the judge's gateway, text metrics."""
