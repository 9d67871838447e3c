"""`ui`: a page in the browser that makes sound with trained models, open to this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import threading
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.device import device_name, find_device
from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.cli.values import whole
from stable_audio_tools.configs.errors import ConfigError, Problem

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LOGIN = "STABLE_AUDIO_TOOLS_UI_AUTH"
UPLOADS = "uploads"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="FILE|RUN_DIR", help="offer this model first; repeat it for more")
    add("--runs", default="runs", metavar="DIR", help="offer the exports and checkpoints of the runs in this folder (default: runs)")
    add("--host", default=LOOPBACK, metavar="ADDRESS", help=f"where to listen; 0.0.0.0 is every network (default: {LOOPBACK})")
    add("--port", type=whole(1), metavar="N", help="default: the first free one from 7860")
    add("--auth", metavar="USER:PASSWORD", help=f"ask for this login (default: {LOGIN} of the environment, which other users cannot see)")
    add("--out", default="generated/ui", metavar="DIR", help="where clips and uploads go (default: generated/ui)")
    add(
        "--device",
        type=device_name,
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:N or mps (default: the GPU if there is one)",
    )
    add("--keep-models", type=whole(1), default=1, metavar="N", help="models that stay in memory (default: 1)")
    add_plugins_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command until it is stopped; returns the exit status."""
    login = _login(args.auth or os.environ.get(LOGIN))
    out = _folder(args.out)
    import_plugins(args.plugins)
    # Gradio reads these when it is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(out / UPLOADS), "HF_HUB_DISABLE_TELEMETRY": "1"}
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of each request
    page, options = _page(args, out)
    try:
        _, url, _ = page.queue().launch(server_name=args.host, server_port=args.port, auth=login, **options)
    except OSError as error:
        fix = "choose another --port, or leave it out" if args.port else "check --host"
        raise ConfigError([Problem((), f"cannot listen there: {error}", fix)], source=f"--host {args.host}") from None
    print(f"open {url}", flush=True)
    if not loopback(args.host) and login is None:
        log.warning("this page is open to everyone who can reach this machine, without a login; --auth USER:PASSWORD asks for one")
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
    return 0


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _page(args: argparse.Namespace, out: Path) -> tuple[Any, dict[str, Any]]:
    try:
        from stable_audio_tools.interface import page
    except ImportError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ConfigError([Problem((), "the page needs the package gradio", 'pip install -e ".[ui]"')], source="ui") from None
    from stable_audio_tools.interface.shelf import Shelf
    from stable_audio_tools.interface.studio import Studio
    from stable_audio_tools.models.pretrained import find_model

    for path in args.model:
        find_model(path)  # said before the page opens
    shelf = Shelf(str(find_device(args.device)), keep=args.keep_models)
    studio = Studio(shelf, Path(args.runs), out, named=args.model, any_path=loopback(args.host))
    return page.build_page(studio), page.launch_options(studio)


def _login(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ConfigError("expected USER:PASSWORD", source="--auth")
    return user, password


def _folder(text: str) -> Path:
    """The output folder, made where it is not there yet."""
    out = Path(text).absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder: {error.strerror}", source=f"--out {text}") from None
    if not os.access(out, os.W_OK):
        raise ConfigError("the folder cannot be written to", source=f"--out {text}")
    return out
