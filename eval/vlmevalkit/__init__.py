"""The rules of the protocol `vlmevalkit`: VLMEvalKit's of autumn 2024, with which the paper scored.

`cases` reads a benchmark's rows, `matching` has the rules, `questions` what a judge is asked,
`scoring` puts them together, `lmms` makes lmms-eval tasks of them (`eval/tasks/vlmevalkit.yaml`).
Nothing here but `lmms` needs lmms-eval or torch, so that `eval.score` is light.
"""
