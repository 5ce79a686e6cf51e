"""What is said to the user in one sentence, with the remedy."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one sentence with the remedy."""


class UsageError(Exception):
    """The command asks for something that does not exist; the message is one sentence with the remedy."""
