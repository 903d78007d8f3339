"""Everything that can be wrong with what a user gave.

PlannerError
├── SpecError      a file: its syntax, its keys, its values
├── ModelError     a model description that cannot be read or is not known
├── LayoutError    degrees that do not divide, groups that do not exist
├── RefusedError   what the training framework itself refuses to run
├── SettingsError  what PyTorch's allocator does not take
├── LaunchError    a validation that could not be started or recorded
├── EndedError     a validation that was ended by a signal before it was over
└── RehearsalError an operation that no rehearsal can answer

Every message says where, what, and the mend, with the values in it.
"""

from typing import ClassVar


class PlannerError(Exception):
    """Something the user can mend; the commands print it and exit with its code."""

    exit_code: ClassVar[int] = 2


class SpecError(PlannerError):
    """A file that cannot be read as what it should be; holds all its faults, one a line."""


class ModelError(PlannerError):
    """A model that is not known, or whose configuration contradicts itself."""


class LayoutError(PlannerError):
    """Parallel degrees that do not fit the model or the cluster."""


class RefusedError(PlannerError):
    """A combination that the training framework refuses; quotes its file and line."""


class SettingsError(PlannerError):
    """A setting of PyTorch's caching allocator that it would refuse, or that is not known here."""


class LaunchError(PlannerError):
    """A validation that could not be started, or whose record cannot be read or written."""


class EndedError(PlannerError):
    """A validation that a signal ended; the shell's code is 128 and the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # type: ignore[misc]  # one instance's


class RehearsalError(PlannerError):
    """The real engine asked for something that tensors without bytes cannot answer."""
