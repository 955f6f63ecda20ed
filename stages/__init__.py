"""One thin script per DVC stage: read params, call `heima` or `eval`, write outputs."""
