"""What keeps the page from being written."""

from __future__ import annotations


class PageError(ValueError):
    """A file that the page needs is not there or does not fit the others; the message names it."""
