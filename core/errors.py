"""The errors users see. Each has an exit code and, where there is one, a remedy."""

from __future__ import annotations

from pathlib import Path


class QinferError(Exception):
    """Base of all expected errors: one message (what, where, why) and what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class UsageError(QinferError):
    """The command or call was wrong: unknown name, value out of range, options that contradict."""

    exit_code = 2


class InvalidParams(UsageError, ValueError):
    """A sampling parameter has a value outside its range."""


class PluginNotFound(UsageError):
    """No installed plugin has that name."""


class AmbiguousPlugin(UsageError):
    """Several distributions offer a plugin of that name."""


class BrokenPlugin(QinferError):
    """A selected plugin cannot be imported, breaks the contract or speaks another API version."""

    exit_code = 3


class Unsupported(QinferError):
    """The hardware, or the combination asked for, cannot do this."""

    exit_code = 4


class BadInput(QinferError):
    """A prompt, message list, batch file or template cannot be used."""

    exit_code = 5


class BadCheckpoint(BadInput):
    """A model's files are missing, damaged, contradictory, or of a family no plugin reads."""


def cannot_write(path: Path, error: OSError, *, remedy: str) -> QinferError:
    """The error for an output that the system does not let us write."""
    return QinferError(f"cannot write {path}: {error.strerror or error}", remedy=remedy)
