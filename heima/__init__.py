"""Heima: chains of thought as thinking tokens, and their reconstruction (arXiv 2501.19201)."""
