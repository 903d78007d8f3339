"""What is wrong with a model's configuration: every fault with its file, line, key and mend."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing to mend."""

    where: str
    """The file, or ``model`` for keys that stand in the user's own YAML."""
    line: int | None
    key: str
    """Empty: the file as a whole."""
    what: str
    """The fault with its values, then ``; `` and the mend."""

    def __str__(self) -> str:
        place = self.where if self.line is None else f"{self.where}:{self.line}"
        return f"{place}: {self.key}: {self.what}" if self.key else f"{place}: {self.what}"


class ConfigError(ModelError):
    """A configuration with its faults, told one a line; ``faults`` keeps them apart."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


def fault(where: str, what: str, *, key: str = "", line: int | None = None) -> ConfigError:
    """Return the error of a single fault."""
    return ConfigError([Fault(where=where, line=line, key=key, what=what)])
