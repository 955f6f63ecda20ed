"""What the code costs beside a named baseline: one module a benchmark, run by hand."""
