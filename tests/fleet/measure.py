"""What a fleet costs: time that the queue adds to a job, throughput of more workers, and a long queue.

    python3 tests/fleet/measure.py KILN NATS_SERVER [overhead] [throughput] [queue]

Linux, nothing but the standard library. The small model, ONNX Runtime, NATS as it comes (`--sync` has it write everything
to disk before it answers).

overhead    the same job, alternately, at a server that draws itself and at one whose jobs a worker draws: pictures that the
            client waits for, and jobs that are queued, followed and fetched
throughput  the same jobs with one worker on one core, and with as many workers as there are cores (three at most)
queue       10,000 jobs that wait: memory of the server, and how soon the newest one's position is known
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import http.client

from processes import SHAPES, free_port, memory, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("kiln")
parser.add_argument("nats_server")
parser.add_argument("works", nargs="*", default=["overhead", "throughput", "queue"])
parser.add_argument("--rounds", type=int, default=200)
parser.add_argument("--jobs", type=int, default=120)
parser.add_argument("--waiting", type=int, default=10_000)
parser.add_argument("--sync", action="store_true")
args = parser.parse_args()
kiln = os.path.abspath(args.kiln)
work = pathlib.Path(tempfile.mkdtemp(prefix="kiln-measure-"))
environment = dict(os.environ, KILN_ENGINE_CACHE=str(work / "engines"))
processes = []


def start(command, cores=None, log="log"):
    pin = None if cores is None else (lambda: os.sched_setaffinity(0, cores))
    output = open(work / log, "ab")
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, preexec_fn=pin)
    processes.append(process)
    return process


def end(*ended):
    for process in ended:
        process.terminate()
    for process in ended:
        process.wait()
        processes.remove(process)


class Client:
    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(self, method, path, body=None):
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, text, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status in (200, 202), (answer.status, content[:300])
        return json.loads(content)

    def read(self, path):
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == 200, (answer.status, content[:300])
        return content


def nats():
    port = free_port()
    config = work / f"nats-{port}.conf"
    sync = "sync_interval: always" if args.sync else ""
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{work}/nats-{port}"\n{sync} }}\n')
    process = start([args.nats_server, "-c", str(config)])
    wait_for(port)
    return process, f"nats://127.0.0.1:{port}"


def server(url=None, *flags):
    port = free_port()
    command = [kiln, "serve", SHAPES, "--listen", f"127.0.0.1:{port}", "--state", str(work / f"state-{port}"), "--queue", "100000"]
    process = start(command + (["--nats", url] if url else []) + list(flags))
    wait_for(port)
    return process, port


def worker(url, name, cores=None):
    port = free_port()
    process = start(
        [kiln, "worker", SHAPES, "--nats", url, "--name", name, "--threads", "1", "--listen", f"127.0.0.1:{port}"], cores
    )
    wait_for(port)
    client = Client(port)
    for _ in range(600):
        try:
            client.ask("GET", "/readyz/shapes")
            return process
        except AssertionError:
            time.sleep(0.1)
    raise SystemExit(f"{name} is not ready")


def overhead():
    queue, url = nats()
    here, here_port = server(None, "--threads", "1")
    there, there_port = server(url)
    drawing = worker(url, "one")
    body = {"prompt": "a blue star", "seed": 1, "steps": 2}
    clients = {"here": Client(here_port), "fleet": Client(there_port)}

    def wait(client):
        client.ask("POST", "/v1/images/generations", body)

    def follow(client):
        job = client.ask("POST", "/v1/jobs", body)["id"]
        assert b"event: done" in client.read(f"/v1/jobs/{job}/events")
        assert client.read(f"/v1/jobs/{job}/pictures/0").startswith(b"\x89PNG")

    for what, draw in (("a picture that is waited for", wait), ("a job that is followed", follow)):
        times = {name: [] for name in clients}
        for i in range(args.rounds + 10):
            for name, client in clients.items():
                began = time.perf_counter()
                draw(client)
                if i >= 10:
                    times[name].append(1e3 * (time.perf_counter() - began))
        here_ms, fleet_ms = (statistics.median(times[name]) for name in ("here", "fleet"))
        differences = sorted(b - a for a, b in zip(times["here"], times["fleet"]))
        print(f"overhead: {what}: here {here_ms:.2f} ms, fleet {fleet_ms:.2f} ms; median of {args.rounds} differences "
              f"{statistics.median(differences):.2f} ms, 95th percentile {differences[int(0.95 * len(differences))]:.2f} ms")
    end(drawing, there, here, queue)


def throughput():
    cores = sorted(os.sched_getaffinity(0))[:3]
    rates = {}
    for n_workers in (1, len(cores)):
        queue, url = nats()
        front, port = server(url)
        client = Client(port)
        names = [client.ask("POST", "/v1/jobs", {"prompt": "a blue star", "seed": i, "steps": 50})["id"] for i in range(args.jobs)]
        subprocess.run([kiln, "fleet", "init", "--nats", url], env=environment, check=True, capture_output=True)
        workers = [worker(url, f"worker-{i}", {cores[i]}) for i in range(n_workers)]

        def left():
            status = subprocess.run([kiln, "fleet", "status", "--json", "--nats", url], env=environment, check=True, capture_output=True)
            return sum(depth["jobs"] for depth in json.loads(status.stdout)["queues"])

        began, first = time.perf_counter(), left()
        while (now := left()) > args.jobs // 10:
            time.sleep(0.2)
        rates[n_workers] = (first - now) / (time.perf_counter() - began)
        while left():
            time.sleep(0.2)
        client = Client(port)
        assert all(client.ask("GET", f"/v1/jobs/{name}")["status"] == "done" for name in names)
        end(*workers, front, queue)
    one, all_cores = rates[1], rates[len(cores)]
    print(f"throughput: {one:.2f} jobs/s with 1 worker on 1 core, {all_cores:.2f} with {len(cores)} on {len(cores)} cores "
          f"of {os.cpu_count()}: {all_cores / one:.2f} x; the server, NATS and this script share these cores")


def queue():
    stream, url = nats()
    front, port = server(url)
    began, taken = time.perf_counter(), []

    def submit(n):
        client = Client(port)
        for i in range(n):
            taken.append(client.ask("POST", "/v1/jobs", {"prompt": f"a blue star {i}", "seed": i, "steps": 20})["id"])

    threads = [threading.Thread(target=submit, args=(args.waiting // 8,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(taken) / (time.perf_counter() - began)
    now, most = memory(front), memory(front, "VmHWM")
    client, times = Client(port), []
    newest = client.ask("POST", "/v1/jobs", {"prompt": "a blue star", "seed": 1, "steps": 20})["id"]
    for _ in range(100):
        began = time.perf_counter()
        position = client.ask("GET", f"/v1/jobs/{newest}")["position"]
        times.append(1e3 * (time.perf_counter() - began))
    assert position == len(taken), position
    print(f"queue: {len(taken)} jobs wait, taken at {rate:.0f} jobs/s; the server has {now:.0f} MiB "
          f"(at most {most:.0f}); the newest job's position is known in {statistics.median(times):.1f} ms "
          f"(at most {max(times):.1f})")
    end(front)
    began = time.perf_counter()
    front, port = server(url)
    client = Client(port)
    assert client.ask("GET", f"/v1/jobs/{newest}")["position"] == len(taken)
    print(f"queue: a new server knows all of them {time.perf_counter() - began:.2f} s after its start")
    end(front, stream)


try:
    for name in args.works:
        {"overhead": overhead, "throughput": throughput, "queue": queue}[name]()
finally:
    for process in processes:
        process.kill()
    shutil.rmtree(work, ignore_errors=True)
