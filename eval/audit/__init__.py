"""Audit: do the thinking states matter?

Each measure takes a trained model, changes what its conclusion can know of the thinking tokens, and
notes per question what becomes of the answer. docs/audit.md defines them; which answer counts as
what was fixed before anything was measured (`eval.audit.verdict`).
"""
