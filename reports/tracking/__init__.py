"""The mirror of the results in MLflow: which runs there are, and how they are written."""
