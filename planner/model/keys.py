"""The keys of a configuration, read one by one; what is wrong is collected and told at once.

A family asks for each key with the default that transformers' class has for it, because published
files drop keys that equal a default. Sizes that no default should decide are asked without one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

from planner.model.document import line_of
from planner.model.faults import ConfigError, Fault

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 10_000
MAX_SHOWN = 60
MAX_SHOWN_INTEGER = 10**18
_SHORT = Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = MAX_SHOWN
_PLACEHOLDER = 1
"""Stands for a faulty size until all faults are told."""


@dataclass(slots=True, kw_only=True)
class Keys:
    """A configuration's mapping while a family reads it."""

    data: Mapping[str, Any]
    where: str
    name: str
    """What the model is called."""
    text: str = ""
    """The file's text, to find lines in."""
    prefix: str = ""
    """Of keys within keys, e.g. ``text_config.``."""
    faults: list[Fault] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)

    def size(
        self, *names: str, default: int | None = None, smallest: int = 1, largest: int = MAX_SIZE
    ) -> int:
        """Return an integer of the allowed range under the first of ``names`` that is there."""
        found = self._find(names)
        if found is None:
            return self._missing(names) if default is None else default
        key, value = found
        if isinstance(value, bool) or not isinstance(value, int):
            self.tell(
                key, f"{show(value)} is not a whole number; write one from {smallest} to {largest}"
            )
        elif not smallest <= value <= largest:
            self.tell(key, f"{show(value)} is out of range; write {smallest} to {largest}")
        else:
            return value
        return _PLACEHOLDER

    def optional_size(self, *names: str, default: int | None = None) -> int | None:
        """Return a positive integer, or None where the file says null."""
        if any(name in self.data and self.data[name] is None for name in names):
            return None
        return self.size(*names) if self._find(names) is not None else default

    def count(self, *names: str, default: int) -> int:
        """Return an integer that may be zero."""
        return self.size(*names, default=default, smallest=0)

    def flag(self, name: str, *, default: bool) -> bool:
        """Return true or false; null is the default."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.tell(name, f"{show(value)} is neither true nor false; write one of them")
        return value is True

    def number(self, name: str, *, default: float, low: float, high: float) -> float:
        """Return a finite number between ``low`` and ``high``."""
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.tell(name, f"{show(value)} is not a number; write one from {low:g} to {high:g}")
        elif not (math.isfinite(value) and low <= value <= high):
            self.tell(name, f"{show(value)} is out of range; write {low:g} to {high:g}")
        else:
            return float(value)
        return default

    def dropout(self, name: str, *, default: float = 0.0) -> float:
        """Return a probability."""
        return self.number(name, default=default, low=0.0, high=1.0)

    def word(self, name: str, *, default: str) -> str:
        """Return a text."""
        value = self.data.get(name, default)
        if value is None:
            return default
        if not isinstance(value, str):
            self.tell(name, f"{show(value)} is not a text; write e.g. {default}")
            return default
        return value

    def words(self, name: str, *, choices: Sequence[str], length: int) -> tuple[str, ...] | None:
        """Return a list of ``length`` words, each one of ``choices``; None if it is not there."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(word not in choices for word in value):
            self.tell(name, f"{show(value)} is not a list of {' and '.join(choices)}; write one")
        elif len(value) != length:
            self.tell(name, f"lists {len(value)} layers; the model has {length}")
        else:
            return tuple(value)
        return (choices[0],) * length

    def indices(self, name: str, *, below: int) -> frozenset[int]:
        """Return a list of layer numbers as a set."""
        value = self.data.get(name)
        if value is None:
            return frozenset()
        valid = isinstance(value, list) and all(
            type(item) is int and 0 <= item < below for item in value
        )
        if not valid:
            self.tell(name, f"{show(value)} is not a list of layer numbers from 0 to {below - 1}")
            return frozenset()
        return frozenset(value)

    def group(self, name: str) -> "Keys | None":
        """Return the keys within a key, told into the same list of faults."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.tell(name, f"{show(value)} is not a mapping; write {{...}}")
            return None
        return Keys(
            data=value,
            where=self.where,
            name=self.name,
            text=self.text,
            prefix=f"{self.prefix}{name}.",
            faults=self.faults,
        )

    def only(self, name: str, allowed: Any, *, why: str) -> None:
        """Refuse any value but ``allowed`` (or none) of a key that changes the model."""
        value = self.data.get(name)
        if value is not None and value != allowed:
            self.tell(name, f"{show(value)} is not described here ({why}); {IMPORT_MEND}")

    def divides(self, divisor: int, dividend: int, *, names: tuple[str, str]) -> None:
        """Tell that one size must be a multiple of another."""
        if not self.faulty.intersection(names) and dividend % divisor:
            self.tell(
                names[0],
                f"{divisor} does not divide {names[1]}={dividend}; choose a divisor, "
                f"e.g. {_near_divisor(divisor, dividend)}",
            )

    def at_most(self, value: int, limit: int, *, names: tuple[str, str]) -> None:
        """Tell that one size must not be above another."""
        if not self.faulty.intersection(names) and value > limit:
            self.tell(names[0], f"{value} is above {names[1]}={limit}; write at most {limit}")

    def tell(self, key: str, what: str) -> None:
        """Keep a fault."""
        self.faulty.add(key)
        line = line_of(self.text, key) if self.text else None
        self.faults.append(Fault(where=self.where, line=line, key=self.prefix + key, what=what))

    def finish(self) -> None:
        """Raise all faults, if there are any."""
        if self.faults:
            raise ConfigError(self.faults)

    def _find(self, names: Sequence[str]) -> tuple[str, Any] | None:
        found = ((name, self.data[name]) for name in names if self.data.get(name) is not None)
        return next(found, None)

    def _missing(self, names: Sequence[str]) -> int:
        near = get_close_matches(names[0], [str(key) for key in self.data], 1, 0.8)
        hint = f" (there is {near[0]})" if near else ""
        self.tell(names[0], f"is missing{hint}; write the model's own number")
        self.faulty.update(names)
        return _PLACEHOLDER


IMPORT_MEND = "`planner model import DIR` builds any model of transformers and stores its inventory"


def show(value: Any) -> str:
    """Return a value as an error quotes it: as JSON spells it, cut to a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) > MAX_SHOWN_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    text = _SHORT.repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _near_divisor(wanted: int, dividend: int) -> int:
    divisors = {d for d in range(1, math.isqrt(dividend) + 1) if dividend % d == 0}
    divisors |= {dividend // d for d in divisors}
    return min(divisors, key=lambda divisor: (abs(divisor - wanted), divisor))
