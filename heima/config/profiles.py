"""Profiles: a parameter file, or what is other than in its `base`.

A profile with `base: NAME` stands for the file `NAME.yaml` beside it, changed: mappings are merged,
any other value is replaced, and null takes a key away, so that its default holds. A base may have
a base itself.
"""

from __future__ import annotations

import io
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from heima.config.base import ConfigError


def written_out(path: Path) -> str:
    """The text of the parameter file that a profile stands for, with the comments of its base.

    The comment at the beginning is the profile's own. Raises `ConfigError` for what is no YAML, and
    for a base that is not there or has come up already.
    """
    return _written_out(path, ())


def _written_out(path: Path, above: tuple[str, ...]) -> str:
    """`above` are the names of the profiles that this one is a base of."""
    text = path.read_text(encoding="utf-8")
    yaml = YAML()
    yaml.width = 2**16
    try:
        own = yaml.load(text)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(own, MutableMapping) or "base" not in own:
        return text
    names = (*above, path.stem)
    base_path = path.parent / f"{own.pop('base')}.yaml"
    if not base_path.exists():
        raise ConfigError(f"{path}: base: there is no {base_path}")
    if base_path.stem in names:
        raise ConfigError(f"{path}: base: {' -> '.join((*names, base_path.stem))} is a circle")
    base = yaml.load(_written_out(base_path, names))
    _merge(base, own)
    stream = io.StringIO()
    yaml.dump(base, stream)
    return _beginning(text) + stream.getvalue().removeprefix(_beginning(stream.getvalue()))


def _merge(into: MutableMapping[str, Any], changes: MutableMapping[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, MutableMapping) and isinstance(into.get(key), MutableMapping):
            _merge(into[key], value)
        else:
            into[key] = value


def _beginning(text: str) -> str:
    """The comment lines before the first key."""
    lines = text.splitlines(keepends=True)
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:count])
