"""`stable-audio-tools COMMAND ...`: finds the command, runs it, and turns errors into exit statuses.

Status 0: done. 1: failed while running. 2: bad input, said in one message without a traceback. 130, 143: stopped by a signal.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.training.stop_signals import StoppedBySignal, ending_on_signals

PROGRAM = "stable-audio-tools"
COMMANDS = {
    "train": "train a model from a JSON config",
    "fit": "train with Lightning's own options, from flags or a YAML file",
    "validate": "validate a model or a training checkpoint on the validation data",
    "test": "validate it on the test data",
    "check": "validate model and dataset configs without building anything",
    "plan": "say what a run will need: parameters, operations, memory, disk, the largest batch",
    "pre-encode": "encode audio once, to latents that the pre_encoded dataset reads",
    "schema": "print the JSON Schema of model or dataset configs, for editors",
    "generate": "make audio with a trained model",
    "export": "write a trained model for use: averaged, half precision, merged, for other programs",
    "ui": "open a page in the browser that makes audio with trained models",
    "evaluate": "measure what a trained model makes, or a folder of audio",
    "report": "build the page of a run, or one page that compares several",
}
LIGHTNING = ("fit", "validate", "test")

CHATTER = (
    ".*does not have many workers.*",
    ".*treespec, LeafSpec.*",
    ".*have no `val_dataloader`.*",
    ".*in eval mode at the start.*",
    ".*passed in a `LightningDataModule`.*",
)
"""Lightning's warnings about what is meant to be so."""


class Parser(argparse.ArgumentParser):
    """An argument parser that says its mistakes in one message, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        kind, _, unknown = message.partition("unrecognized arguments: ")
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = did_you_mean(unknown.split("=")[0].split()[0], flags).partition(" known: ")[0] if not kind and unknown else ""
        fix = f"{near} " if near.startswith("did") else ""
        raise ConfigError([Problem((), message, f"{fix}{self.prog} --help lists the options")])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with ending_on_signals():
            return _run(arguments)
    except StoppedBySignal as stop:
        print(f"error: stopped by {stop.name}", file=sys.stderr)
        return stop.status
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        raise ConfigError([Problem((), f"unknown command {command!r}", did_you_mean(command, COMMANDS))], source=PROGRAM)
    if command in LIGHTNING:
        _quiet_libraries()
        return import_module("stable_audio_tools.cli.lightning_cli").run(arguments, PROGRAM)
    module = import_module(f"stable_audio_tools.cli.{command.replace('-', '_')}")
    summary = COMMANDS[command]
    parser = Parser(prog=f"{PROGRAM} {command}", description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
    module.configure(parser)
    args = parser.parse_args(arguments[1:])
    _quiet_libraries()
    return module.run(args)


def _overview() -> str:
    rows = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    usage = f"usage: {PROGRAM} COMMAND ...\n\nTrain generative audio models from JSON configs."
    return f"{usage}\n\n{rows}\n\n{PROGRAM} COMMAND --help shows a command's options."


def _quiet_libraries() -> None:
    """Our messages on standard error; the libraries' chatter only where it asks for action."""
    logging.raiseExceptions = False  # a full disk must not fill the screen with tracebacks of the log file
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("wandb", "torch", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in CHATTER:
        warnings.filterwarnings("ignore", message=message)
