"""What the scripts beside this have in common: ports, processes that begin to listen, memory, and the small model."""

import pathlib
import socket
import time

SHAPES = str(pathlib.Path(__file__).resolve().parents[2] / "models/shapes")


def free_port():
    with socket.socket() as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        return any_socket.getsockname()[1]


def wait_for(port):
    """Waits a minute for something to listen."""
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")


def memory(process, field="VmRSS"):
    """MiB of a process, as Linux counts them."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(field))
