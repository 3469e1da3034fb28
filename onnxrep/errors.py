"""What can go wrong, each with the exit code that the command line gives it.

Every class also derives from the builtin that a caller of the Python interface would catch anyway.
"""

from __future__ import annotations


class OnnxrepError(Exception):
    """The base of all errors that onnxrep raises on purpose; its text is one line for a person."""

    exit_code = 1
    status = "error"


class UsageError(OnnxrepError, ValueError):
    """The call itself is wrong: a bad option, a missing input."""

    exit_code = 2


class MissingInput(UsageError, FileNotFoundError):
    """The input file does not exist or is no regular file."""

    def __str__(self) -> str:
        return str(self.args[0])


class ProviderUnavailable(UsageError, RuntimeError):
    """An execution provider was asked for and is not there."""


class InvalidModel(OnnxrepError, ValueError):
    """The file is not a usable ONNX model."""

    status = "invalid"


class UnsupportedModel(OnnxrepError, ValueError):
    """The model is well formed, but its IR version or opset has no known meaning here."""

    status = "unsupported"


class OutputError(OnnxrepError, OSError):
    """The output could not be written; what was at its path is untouched."""

    def __str__(self) -> str:
        return str(self.args[0])
