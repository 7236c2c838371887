#!/usr/bin/env python3
"""Connections to `kiln serve` that say nothing: whether others are answered, what they take, when they are closed.

    python3 tests/clients/idle.py target/debug/kiln [--connections 10000]

Run with Python 3.11; it needs no packages. The connections come from 127.0.0.2 and the addresses behind it, half of them
after a request that was answered. Needs a limit of open files (`ulimit -Hn`) above their number. Fails where /healthz
takes over a second, a connection takes over 32 KiB, or one is not closed within a minute.
"""
import argparse
import http.client
import json
import os
import re
import resource
import select
import socket
import statistics
import subprocess
import tempfile
import time

REQUEST = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
ADDRESSES = 10


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln")
    parser.add_argument("--connections", type=int, default=10000)
    return parser.parse_args()


def start(kiln, state):
    command = [kiln, "serve", "--listen", "127.0.0.1:0", "--state", state]
    log = os.path.join(state, "log")
    with open(log, "w") as said:
        process = subprocess.Popen(command, stderr=said, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with open(log) as said:
            found = re.search(r"serving on http://127.0.0.1:(\d+)\n", said.read())
        if found:
            return process, int(found[1])
        time.sleep(0.1)
    raise SystemExit("the server ended")


def resident(process):
    """Kibibytes."""
    with open(f"/proc/{process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def ask(port, method="GET", path="/healthz", body=None):
    begun = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body=body and json.dumps(body))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, time.monotonic() - begun


def connect(port, n):
    streams = []
    for i in range(n):
        source = (f"127.0.0.{2 + i % ADDRESSES}", 0)
        streams.append(socket.create_connection(("127.0.0.1", port), timeout=30, source_address=source))
        if i % 2:
            streams[-1].sendall(REQUEST)
            streams[-1].recv(4096)
    return streams


def close_times(streams, begun):
    """Seconds until each is closed by the server."""
    poll = select.epoll()
    for stream in streams:
        poll.register(stream.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
    times = []
    while len(times) < len(streams) and time.monotonic() < begun + 90:
        for file, _ in poll.poll(1):
            poll.unregister(file)
            times.append(time.monotonic() - begun)
    return times


def main():
    asked = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as state:
        process, port = start(asked.kiln, state)
        try:
            while ask(port, path="/readyz")[0] != 200:
                time.sleep(0.1)
            report = measure(process, port, asked.connections)
        finally:
            process.terminate()
            process.wait()
    print(json.dumps(report, indent=1))
    is_good = (
        report["closed"] == report["connections"]
        and report["last_closed_s"] < 60
        and report["healthz_ms"]["max"] < 1000
        and report["drawing_status"] == 200
        and report["kib_each"] < 32
    )
    raise SystemExit(0 if is_good else 1)


def measure(process, port, n):
    before, begun = resident(process), time.monotonic()
    streams = connect(port, n)
    opened = time.monotonic() - begun
    times = [ask(port)[1] for _ in range(200)]
    status, drawing = ask(port, "POST", "/v1/images/generations", {"prompt": "a star", "steps": 4})
    during = resident(process)
    closed = close_times(streams, begun)
    for stream in streams:
        stream.close()
    time.sleep(1)
    return {
        "connections": n,
        "opened_s": round(opened, 2),
        "resident_mib": [round(size / 1024, 1) for size in (before, during, resident(process))],
        "kib_each": round((during - before) / n, 2),
        "healthz_ms": {
            "median": round(1000 * statistics.median(times), 2),
            "p99": round(1000 * sorted(times)[int(0.99 * len(times))], 2),
            "max": round(1000 * max(times), 2),
        },
        "drawing_status": status,
        "drawing_s": round(drawing, 2),
        "closed": len(closed),
        "last_closed_s": round(max(closed, default=0), 1),
    }


if __name__ == "__main__":
    main()
