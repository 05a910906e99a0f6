"""The command `serve`: the one way to start in production."""

import errno
import logging
import os
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

logger = logging.getLogger("uvicorn.error")  # which uvicorn sets up

APPLICATION: Final = "app.main:app"
KEEP_ALIVE: Final = 130  # seconds; proxies keep a silent connection for up to two minutes
GRACE: Final = 20  # seconds for the requests under way at the end; deploy/ allows some more
HEALTHCHECK: Final = 15  # seconds; a worker that is silent for longer is replaced
FAILED: Final = 3  # the exit code of a start that fails
SHARED_FOLDERS: Final[list[str]] = []  # variables; parts add theirs in `app/cli.py`

Hosts = Annotated[list[str] | None, typer.Option(help="Repeatable; 127.0.0.1 without it.")]
Uds = Annotated[Path | None, typer.Option(help="A Unix socket, in place of hosts and a port.")]
Workers = Annotated[int, typer.Option(min=1, envvar="WEB_CONCURRENCY")]
RootPath = Annotated[str, typer.Option(help="The prefix that a proxy takes off the paths.")]
KeepAlive = Annotated[int, typer.Option(help="Seconds; more than those of the proxy.")]


def serve(
    host: Hosts = None,
    port: int = 8000,
    uds: Uds = None,
    workers: Workers = 1,
    root_path: RootPath = "",
    keep_alive: KeepAlive = KEEP_ALIVE,
) -> None:
    """Start the service in production, behind a proxy."""
    import uvicorn  # with the web framework: the other commands start faster without it
    from uvicorn.supervisors import Multiprocess

    for variable in SHARED_FOLDERS:
        if not os.environ.get(variable):  # an empty value is none
            os.environ.pop(variable, None)
    config = uvicorn.Config(
        APPLICATION,
        uds=f"{uds}" if uds else None,
        workers=workers,
        root_path=root_path,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=GRACE,
        timeout_worker_healthcheck=HEALTHCHECK,
    )
    config.load_app()  # ends here if a setting is bad: workers would tell it once each
    if uds and config.forwarded_allow_ips != "*":
        advice = "If your proxy alone can open it and sets X-Forwarded-For, FORWARDED_ALLOW_IPS=*"
        logger.warning("Callers at a Unix socket have no address. %s helps", advice)
    try:
        if uds and uds.is_socket():
            _remove(uds)
        sockets = [config.bind_socket()] if uds else _listen(host or ["127.0.0.1"], port)
    except OSError as error:
        sys.stderr.write(f"The service cannot listen: {error.strerror}\n")
        raise typer.Exit(FAILED) from None
    with suppress(KeyboardInterrupt), ExitStack() as folders:
        if workers == 1:
            return uvicorn.Server(config).run(sockets)
        for variable in SHARED_FOLDERS:
            _make_folder(variable, folders)
        supervisor = Multiprocess(config, sockets)
        supervisor.run()
        # It ends alike when it is told to and when its workers cannot start.
        if any(worker.exitcode == FAILED for worker in supervisor.processes):
            raise typer.Exit(FAILED)


def _remove(uds: Path) -> None:
    """Remove what a server that was killed has left. Raises OSError if one answers there."""
    with socket.socket(socket.AF_UNIX) as line:
        if line.connect_ex(f"{uds}") == 0:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    uds.unlink()


def _listen(hosts: list[str], port: int) -> list[socket.socket]:
    """A socket for each address, so that no IPv4 address comes as an IPv6 one. Raises OSError."""
    sockets = []
    for host in hosts:
        for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                sockets.append(socket.create_server(address, family=family, backlog=2048))
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # as of IPv6, where a kernel has none
                    raise
    if not sockets:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    for each in sockets:
        logger.info("Listening on %s, port %d", *each.getsockname()[:2])
    return sockets


def _make_folder(variable: str, folders: ExitStack) -> None:
    if not os.environ.get(variable):
        try:
            folder = TemporaryDirectory(ignore_cleanup_errors=True)
            os.environ[variable] = folders.enter_context(folder)
        except OSError as error:
            logger.warning("%s is not set, and no folder could be made: %s", variable, error)
