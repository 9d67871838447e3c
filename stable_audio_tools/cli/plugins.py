"""`--plugins`: the user's modules, imported before a config is read, since they may register parts that it names."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from stable_audio_tools.configs.errors import ConfigError


def add_plugins_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plugins", default="", metavar="MODULES", help="Python modules to import first, separated by commas")


def import_plugins(names: str) -> None:
    """Import modules of the user's, also from the folder where the program starts.

    Args:
        names: separated by commas.

    Raises:
        ConfigError: one cannot be imported.
    """
    modules = [part.strip() for part in names.split(",") if part.strip()]
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file beside the configs must not hide a package
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ConfigError(f"cannot import {name!r}: {type(error).__name__}: {error}", source="--plugins") from error
