"""A model from what names it: the catalogue, a configuration file, keys in the user's file."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from planner.model import catalogue, families, inventory
from planner.model.description import Model
from planner.model.document import read_document
from planner.model.faults import fault
from planner.model.keys import IMPORT_MEND, Keys, show

SHOWN_NAMES = 3


def load_model(entry: str | Mapping[str, Any], *, folder: Path) -> Model:
    """Return the model that ``entry`` names.

    A text is a name of the catalogue, else the path of a Hugging Face ``config.json``, of its
    folder, or of a stored inventory, relative to ``folder``. A mapping is a configuration.
    `ConfigError` (a `ModelError`) tells every fault with its file, line, key and mend.
    """
    if isinstance(entry, Mapping):
        return _build(dict(entry), where="model", name=_own_name(entry), text="")
    if not entry:
        raise fault(
            "model",
            f"{show(entry)} is not a model; write a name of `planner models`, a path, or keys",
        )
    known = catalogue.path_of(entry)
    if known is not None:
        return _read(known, name=known.stem)
    return _read(_existing(entry, folder), name=None)


def read_configuration(entry: str | Mapping[str, Any], *, folder: Path) -> Mapping[str, Any]:
    """The configuration that ``entry`` names, as it is written; faults as `load_model`."""
    if isinstance(entry, Mapping):
        return entry
    return read_document(catalogue.path_of(entry) or _existing(entry, folder))[0]


def _existing(entry: str, folder: Path) -> Path:
    try:
        path = folder / Path(entry).expanduser()
        path = path / "config.json" if path.is_dir() else path
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError):
        raise fault("model", f"{show(entry)} is neither a known name nor a possible path") from None
    raise fault("model", _unknown(entry, path))


def _unknown(entry: str, path: Path) -> str:
    known = [name for item in catalogue.entries() for name in (item.name, *item.aliases)]
    near = get_close_matches(Path(entry).name.lower(), known, SHOWN_NAMES, 0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"{show(entry)} is not in the catalogue and {show(str(path))} does not exist; {hint}"
        "`planner models` lists all names; a path leads to a config.json or its folder"
    )


def _read(path: Path, *, name: str | None) -> Model:
    data, text = read_document(path)
    if inventory.is_inventory(data):
        return inventory.from_document(data, where=str(path))
    own = path.parent.name if path.name == "config.json" else path.stem
    return _build(data, where=str(path), name=name or own or "model", text=text)


def _build(data: Mapping[str, Any], *, where: str, name: str, text: str) -> Model:
    keys = Keys(data=data, where=where, name=name, text=text)
    family = data.get("model_type")
    if not isinstance(family, str):
        value = "is missing" if family is None else f"{show(family)} is not a text"
        keys.tell("model_type", f"{value}; write one of {', '.join(families.FAMILIES)}")
    elif family not in families.FAMILIES:
        keys.tell(
            "model_type",
            f"{show(family)} is not a known family ({', '.join(families.FAMILIES)}); {IMPORT_MEND}",
        )
    keys.finish()
    return families.build(keys, str(family))


def _own_name(entry: Mapping[str, Any]) -> str:
    own = entry.get("_name_or_path")
    return Path(own).name if isinstance(own, str) and own else str(entry.get("model_type"))[:80]
