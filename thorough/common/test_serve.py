"""`serve` as a process of its own, called over real sockets."""

import errno
import http.client
import os
import re
import signal
import socket
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import typer
import uvicorn
import uvicorn.supervisors

from app.auth.cli import serve
from app.auth.key import new_secret
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.thorough.servers import LOCAL, PATIENCE, Service, get

ANY = "0.0.0.0"  # noqa: S104


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bad_setting_ends_serve_in_one_line(service: Service, workers: str) -> None:
    assert service.ends("--workers", workers, LOG_LEVEL="swordfish") == 3
    assert service.said.startswith("LOG_LEVEL: Input should be 'DEBUG'")
    assert service.said.count("\n") == 1
    assert "swordfish" not in service.said
    service.write_keys("swordfish")
    assert service.ends("--workers", workers) == 3
    assert service.said.startswith("API_KEYS: entry 1 of 1 ")
    assert service.said.count("\n") == 1


def test_workers_that_cannot_start_end_serve_with_another_code_than_0(service: Service) -> None:
    assert service.ends("--port", "0", "--workers", "2", program="serve_it.py", BROKEN="yes") == 3
    assert "Traceback" not in service.said


def test_a_port_that_is_taken_ends_serve_in_one_line(service: Service) -> None:
    with socket.create_server((LOCAL, 0)) as taken:
        assert service.ends("--port", f"{taken.getsockname()[1]}") == 3
    assert "cannot listen: Address already in use" in service.said.splitlines()[-1]
    assert service.ends("--host", "nowhere.invalid") == 3
    assert "cannot listen: " in service.said.splitlines()[-1]
    assert "Traceback" not in service.said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_under_way_is_answered_before_serve_ends(service: Service, workers: int) -> None:
    with service.serving(workers=workers, program="serve_it.py") as server:
        with closing(service.connect()) as connection:
            connection.request("GET", "/slow")
            service.wait_for("has begun", server)
            server.terminate()
            assert connection.getresponse().read() == b"ok"
        # A server that was alone ends by the signal, as uvicorn does.
        assert server.wait(PATIENCE) in ((0,) if workers > 1 else (0, -signal.SIGTERM))
    assert "Traceback" not in service.said


def test_a_connection_may_pause_for_as_long_as_it_says(service: Service) -> None:
    for seconds, breaks in (("2", False), ("1", True)):
        with (
            service.serving("--keep-alive", seconds, program="serve_it.py"),
            closing(service.connect()) as connection,
        ):
            assert get(connection, "/") == 200
            used = connection.sock
            time.sleep(1.5)
            with suppress(ConnectionError, http.client.HTTPException):
                get(connection, "/")
            assert (connection.sock is not used) is breaks


def test_both_families_are_served_and_addresses_are_those_of_the_callers(service: Service) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with service.serving("--host", ANY, "--host", "::") as server:
        ports = re.findall(r"Listening on (\S+), port (\d+)", service.said)
        assert [host for host, _ in ports] == [ANY, "::"]
        for host, (_, port) in ((LOCAL, ports[0]), ("::1", ports[1])):
            with closing(http.client.HTTPConnection(host, int(port), timeout=PATIENCE)) as line:
                assert get(line, "/health/ready") == 200
        with (
            pytest.raises(OSError, match="refused"),
            closing(http.client.HTTPConnection(LOCAL, int(ports[1][1]), timeout=PATIENCE)) as line,
        ):
            get(line, "/")  # no IPv4 address in the form of an IPv6 one
        assert server.poll() is None


def test_a_unix_socket_is_served_and_says_once_that_callers_have_no_address(
    service: Service,
) -> None:
    path = service.folder / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{path}")  # by a server that was killed
    for trusted, warnings in (("127.0.0.1", 1), ("*", 0)):
        with (
            service.serving("--uds", f"{path}", FORWARDED_ALLOW_IPS=trusted),
            socket.socket(socket.AF_UNIX) as line,
        ):
            line.connect(f"{path}")
            line.sendall(
                f"GET /secure-endpoint HTTP/1.1\r\nHost: x\r\n{API_KEY_HEADER}: {service.key}\r\n"
                f"X-Forwarded-For: 192.0.2.7\r\nConnection: close\r\n\r\n".encode()
            )
            assert line.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        assert service.said.count("have no address") == warnings
        assert ("192.0.2.7 GET" in service.said) is not warnings


def test_workers_follow_the_settings_after_a_hangup(service: Service) -> None:
    with service.serving(workers=2) as server:
        headers = {API_KEY_HEADER: new_secret()}
        assert service.status("/secure-endpoint", **headers) == MISSING_KEY_STATUS
        service.write_keys(headers[API_KEY_HEADER])
        server.send_signal(signal.SIGHUP)
        service.wait_for("Finished server process", server, 2)
        for _ in range(5):
            assert service.status("/secure-endpoint", **headers) == 200


def test_a_kernel_without_ipv6_serves_the_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def without_ipv6(address: Any, *, family: int, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(address, family=family, **options)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    [served] = serve._listen([LOCAL, "::1"], 0)
    with served:
        assert served.getsockname()[0] == LOCAL
    with pytest.raises(OSError, match="not supported"):
        serve._listen(["::1"], 0)


def test_a_folder_that_cannot_be_made_is_told_and_one_that_is_named_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("A_FOLDER", raising=False)
    full = OSError(errno.ENOSPC, "No space left on device")
    with ExitStack() as folders, patch.object(serve, "TemporaryDirectory", side_effect=full):
        serve._make_folder("A_FOLDER", folders)
        assert "A_FOLDER is not set, and no folder could be made" in caplog.text
        monkeypatch.setenv("A_FOLDER", "/of/ours")
        serve._make_folder("A_FOLDER", folders)
    assert os.environ["A_FOLDER"] == "/of/ours"


# In this process.


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[socket.socket]]]:
    """The configuration and the sockets of each start, which returns at once."""
    starts: list[tuple[Any, list[socket.socket]]] = []

    def start(server: Any, sockets: list[socket.socket]) -> None:
        starts.append((server.config, sockets))
        for each in sockets:
            each.close()

    monkeypatch.setattr(uvicorn.Config, "load_app", Mock())
    monkeypatch.setattr(uvicorn.Server, "run", start)
    monkeypatch.setattr(
        uvicorn.supervisors.Multiprocess, "run", lambda self: start(self, self.sockets)
    )
    monkeypatch.setattr(serve, "SHARED_FOLDERS", ["A_FOLDER"])
    monkeypatch.setenv("A_FOLDER", "")
    return starts


def test_it_starts_uvicorn_with_patience(started: list[Any], tmp_path: Path) -> None:
    serve.serve(port=0)
    serve.serve(port=0, workers=2, keep_alive=7)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path / 's'}")  # by a server that was killed
    serve.serve(uds=tmp_path / "s")
    assert [config.timeout_keep_alive for config, _ in started] == [serve.KEEP_ALIVE, 7, 130]
    assert {config.timeout_graceful_shutdown for config, _ in started} == {serve.GRACE}
    assert started[1][0].workers == 2
    assert os.environ["A_FOLDER"]  # one for both workers, which is gone now
    assert not Path(os.environ["A_FOLDER"]).exists()


def test_a_socket_in_use_is_left_alone(started: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"{path}")
        taken.listen()
        with pytest.raises(typer.Exit):
            serve.serve(uds=path)
        assert path.is_socket()
    assert started == []


def test_what_it_cannot_do_ends_it(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((LOCAL, 0)) as taken, pytest.raises(typer.Exit) as ended:
        serve.serve(port=taken.getsockname()[1])
    assert ended.value.exit_code == serve.FAILED
    assert "The service cannot listen: Address already in use" in capsys.readouterr().err
    failed = Mock(exitcode=serve.FAILED)
    monkeypatch.setattr(
        uvicorn.supervisors.Multiprocess, "run", lambda self: self.processes.append(failed)
    )
    with pytest.raises(typer.Exit) as ended:
        serve.serve(port=0, workers=2)
    assert ended.value.exit_code == serve.FAILED
