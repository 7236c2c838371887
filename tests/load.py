#!/usr/bin/env python3
"""Load for `kiln serve`: N clients for M minutes, some of whom vanish; then idle connections.

    python3 tests/load.py target/release/kiln [--clients 64] [--minutes 10] [--idle 10000]

Each client sends jobs with seeds of its own, waits for their ends and reads the pictures. Fails where a job is lost or
drawn otherwise than the first time, where the process's memory grows, and where estimates are off.
"""
import argparse
import hashlib
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--idle", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args()


class Server:
    def __init__(self, kiln, state):
        command = [kiln, "serve", "--listen", "127.0.0.1:0", "--state", state, "--queue", "256", "--log-format", "json"]
        self.log = open(os.path.join(state, "log"), "w+")
        self.process = subprocess.Popen(command, stderr=self.log, stdout=subprocess.DEVNULL)
        for _ in range(600):
            found = re.search(r"serving on http://127.0.0.1:(\d+)", open(self.log.name).read())
            if found:
                self.port = int(found.group(1))
                return
            time.sleep(0.1)
        sys.exit("the server does not start")

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def resident(self):
        status = open(f"/proc/{self.process.pid}/status").read()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


class Clients:
    def __init__(self, server, steps):
        self.server, self.steps = server, steps
        self.lock = threading.Lock()
        self.pictures = {}
        self.done, self.refused, self.vanished, self.wrong, self.lost = 0, 0, 0, 0, 0
        self.estimates, self.latencies = [], []

    def draw(self, chance):
        seed = chance.randrange(50)
        body = {"prompt": "a red circle", "seed": seed, "steps": self.steps}
        begun = time.monotonic()
        status, headers, answer = self.server.ask("POST", "/v1/jobs", body)
        if status == 429:
            with self.lock:
                self.refused += 1
            return time.sleep(min(float(headers.get("retry-after", 1)), 2) * chance.random())
        assert status == 202, (status, answer)
        job = json.loads(answer)
        if chance.random() < 0.02:
            with self.lock:
                self.vanished += 1
            self.server.ask("POST", f"/v1/jobs/{job['id']}/cancel")
            return None
        estimate = job.get("remaining_seconds")
        while job.get("ended") is None:
            time.sleep(0.02)
            status, _, answer = self.server.ask("GET", f"/v1/jobs/{job['id']}")
            if status != 200:
                with self.lock:
                    self.lost += 1
                return None
            job = json.loads(answer)
        took = time.monotonic() - begun
        status, _, picture = self.server.ask("GET", f"/v1/jobs/{job['id']}/pictures/0")
        digest = hashlib.sha256(picture).hexdigest() if status == 200 else None
        with self.lock:
            self.done += 1
            self.latencies.append(took)
            if estimate:
                self.estimates.append(estimate / took)
            if job["status"] != "done" or digest is None or self.pictures.setdefault(seed, digest) != digest:
                self.wrong += 1

    def run(self, number, end):
        chance = random.Random(number)
        while time.monotonic() < end:
            self.draw(chance)


def idle(server, n):
    """So many connections that send nothing; the server still answers."""
    import resource
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    n = min(n, hard - 100)
    sockets = []
    for _ in range(n):
        sockets.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
    begun = time.monotonic()
    status, _, _ = server.ask("GET", "/healthz")
    took = time.monotonic() - begun
    [s.close() for s in sockets]
    return n, status, took


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as state:
        server = Server(options.kiln, state)
        clients = Clients(server, options.steps)
        end = time.monotonic() + 60 * options.minutes
        threads = [threading.Thread(target=clients.run, args=(i, end)) for i in range(options.clients)]
        [thread.start() for thread in threads]
        memory = []
        begun = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            time.sleep(2)
            memory.append(server.resident())
        seconds = time.monotonic() - begun
        quarter = max(len(memory) // 4, 1)
        early, late = statistics.median(memory[quarter:2 * quarter] or memory), statistics.median(memory[-quarter:])
        ratios = sorted(clients.estimates)
        print(f"{clients.done} pictures in {seconds:.0f} s ({clients.done / seconds:.2f}/s), "
              f"{clients.refused} refused, {clients.vanished} cancelled, {clients.lost} lost, {clients.wrong} wrong")
        latencies = sorted(clients.latencies)
        print(f"latency: median {latencies[len(latencies) // 2]:.2f} s, "
              f"p99 {latencies[int(len(latencies) * 0.99)]:.2f} s")
        print(f"memory: {early:.0f} MiB in the second quarter, {late:.0f} MiB in the last ({late / early:.3f})")
        if ratios:
            within = sum(0.7 <= ratio <= 1.3 for ratio in ratios) / len(ratios)
            print(f"estimates over times: median {ratios[len(ratios) // 2]:.2f}, "
                  f"p10 {ratios[len(ratios) // 10]:.2f}, p90 {ratios[len(ratios) * 9 // 10]:.2f}, "
                  f"{within:.0%} within 30%")
        n, status, took = idle(server, options.idle)
        print(f"{n} idle connections: /healthz {status} after {took * 1000:.0f} ms")
        server.process.terminate()
        code = server.process.wait(60)
        print(f"SIGTERM: exit code {code}")
        failed = clients.lost or clients.wrong or status != 200 or code != 0 or late > 1.03 * early
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
