"""The toy world: a procedurally drawn source, benchmarks and models for two CPU cores."""
