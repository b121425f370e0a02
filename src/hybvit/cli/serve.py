"""`hybvit serve MODEL`: a page in the browser and a JSON API."""

from __future__ import annotations

import errno
import socket

from ..errors import ConfigError
from ..loading import load
from .arguments import ArgumentParser, nonnegative_int

PORT, LAST_PORT = 7860, 65535


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit serve",
        description="Open a page on which a model classifies, draws, edits and is attacked, with a JSON API beside it "
        "(/docs). It needs no network connection, and answers to this machine only unless --host says otherwise.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, hub id, or bundled model")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to answer at (127.0.0.1; 0.0.0.0: anybody who reaches this machine)"
    )
    parser.add_argument("--port", type=nonnegative_int, default=PORT, help=f"port ({PORT}; 0: any that is free)")
    return parser


def main(arguments: list[str]) -> None:
    args = build_parser().parse_args(arguments)
    with bound(args.host, args.port) as place:
        try:
            from ..serving.app import build_app, serve
            from ..serving.service import Service
        except ImportError as error:
            raise ConfigError(f"the page needs gradio ({error}): pip install 'hybvit[serve]'") from None
        service = Service(load(args.model), args.model)
        shown = "localhost" if args.host == "0.0.0.0" else f"[{args.host}]" if ":" in args.host else args.host
        port = place.getsockname()[1]
        try:
            serve(build_app(service, args.host), place, f"http://{shown}:{port} shows {args.model}; Ctrl-C ends it")
        except KeyboardInterrupt:
            print("ended")
        finally:
            service.desk.close()


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, before anything long starts.

    Raises:
        ConfigError: the host is not of this machine, or the port is in use, or too large.
    """
    if port > LAST_PORT:
        raise ConfigError(f"--port {port}: a port is at most {LAST_PORT}; the system would take another one")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        if not isinstance(error, OSError) or isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host}: {error}; give an address of this machine, such as 127.0.0.1") from None
        raise ConfigError(f"--host {host} --port {port}: {error}; give another --port, or 0 for any that is free") from None
