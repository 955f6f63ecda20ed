"""Mirror the results into MLflow and serve its UI: `python -m stages.ui [--port 5000]`

Prints a link to the variants of the newest reproduction; *Chart view* there has a chart a metric
and a bar a variant. With `MLFLOW_TRACKING_URI=http(s)://…` the runs go to that server, whose link
is printed; with a database (`postgresql://…`) the UI is served from it. Works in a fresh clone,
too: the results that git holds are mirrored, and nothing is run (docs/mlflow.md).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from reports.finished import TrackingError
from reports.tracking import mirror
from reports.tracking.connection import is_server, link, shown, uri_of
from stages import arguments

HOST = "127.0.0.1"
LOG = Path(".cache/logs/mlflow.log")
_START = 180.0
"""Seconds that a server may take until it answers; importing MLflow alone takes many."""


def _is_taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return True
    return False


def start(uri: str, port: int) -> subprocess.Popen[bytes]:
    """A server of MLflow on 127.0.0.1 with its UI: two processes, .5 GB; it writes to `LOG`."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port),
             "--workers", "1"],
            # It would start ten processes for jobs that nobody has.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                 "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_BACKEND_STORE_URI": uri},
            stdout=log,
            stderr=log,
        )  # fmt: skip


def wait(server: subprocess.Popen[bytes], address: str) -> None:
    """Until the server answers. Raises `TrackingError` if it ends before, or never does."""
    # Never through a proxy: it is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + _START
    while time.monotonic() < until:
        if server.poll() is not None:
            raise TrackingError(f"MLflow's server has ended ({server.returncode}): {LOG}")
        try:
            with opener.open(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise TrackingError(f"MLflow's server has not answered on {address} for {_START:.0f} s: {LOG}")


def _tell(address: str, where: dict[str, str]) -> None:
    everything = link(address, where["experiment"])
    variants = link(address, where["experiment"], where["reproduction"])
    print(f"\nthe variants of the newest reproduction (then Chart view):\n  {variants}", flush=True)
    print(f"all runs:\n  {everything}\n", flush=True)


def main(port: int) -> None:
    root, uri = Path("."), uri_of(Path("."))
    if not is_server(uri) and _is_taken(port):
        sys.exit(f"error: port {port} of {HOST} is taken: give another one, `make ui PORT=5001`")
    try:
        summary = mirror.mirror(root, uri=uri)
    except TrackingError as error:
        sys.exit(f"error: {error}")
    print(f"{summary['runs']} runs of {summary['profile']} {summary['key']} are in {shown(uri)}")
    if summary["unfinished"]:
        print(f"not finished: {', '.join(summary['unfinished'])}")
    if is_server(uri):
        _tell(uri, summary["where"])
        return
    address = f"http://{HOST}:{port}"
    # Whatever ends this process ends the server with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    server = start(uri, port)
    try:
        wait(server, address)
        _tell(address, summary["where"])
        print("Ctrl-C ends it", flush=True)
        sys.exit(server.wait())
    except TrackingError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    parser = arguments.parser_of(__doc__)
    parser.add_argument("--port", type=int, default=5000, help="on 127.0.0.1 (default: 5000)")
    main(parser.parse_args().port)
