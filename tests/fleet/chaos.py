"""Breaks a fleet for twenty minutes and counts what became of its jobs.

    python3 tests/fleet/chaos.py KILN NATS_SERVER [--minutes 20] [--jobs 2000]

Needs Linux and nothing but the standard library; as root, the disk of one worker is a small one that is full at first.

One server takes jobs of the small model, three workers draw them. At random moments a worker is killed with SIGKILL and
started again, NATS is killed and started again (it writes everything to disk before it answers), or the network between a
worker and NATS is cut or stops carrying anything, and heals. A poison job has every worker killed that draws it. One worker
has to fetch the bundle first, onto a disk that is full.

At the end every job that was taken must have ended once, as a picture that is the same for the same seed, as an error with a
name, or among the jobs that were given up; nothing may be left in the stream. Work that was done twice must be explained by
what was broken. Prints a report; fails if anything of this is not so.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from processes import SHAPES, free_port, wait_for

SEEDS = 50
WORKERS = 3
STEPS = 6
POISON_STEPS = 150

parser = argparse.ArgumentParser()
parser.add_argument("kiln")
parser.add_argument("nats_server")
parser.add_argument("--minutes", type=float, default=20)
parser.add_argument("--jobs", type=int, default=2000)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()
kiln = os.path.abspath(args.kiln)
work = pathlib.Path(tempfile.mkdtemp(prefix="kiln-chaos-"))
chance = random.Random(args.seed)
counts = collections.Counter()
stopping = threading.Event()


def say(text):
    print(f"{time.time() - began:7.1f} s  {text}", flush=True)


class Proxy:
    """The network between a worker and NATS, which can be cut, or stop carrying anything."""

    def __init__(self, target):
        self.target, self.state, self.pairs = target, "open", []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            if self.state == "cut":
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=2)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self.pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=(source, sink), daemon=True).start()

    def carry(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                while self.state == "silent":
                    time.sleep(0.05)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        self.state = "cut"
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


class Nats:
    def __init__(self):
        self.port = free_port()
        self.config = work / "nats.conf"
        self.config.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{work}/nats", sync_interval: always }}\n'
        )
        self.start()

    def start(self):
        log = open(work / "nats.log", "ab")
        self.process = subprocess.Popen([args.nats_server, "-c", self.config], stdout=log, stderr=log)
        wait_for(self.port)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Worker:
    def __init__(self, index):
        self.name = f"worker-{index}"
        self.proxy = Proxy(nats.port)
        self.lock = threading.Lock()
        self.folder = work / self.name
        self.folder.mkdir()
        # The last one has no model and fetches it.
        self.fetches = index == WORKERS - 1
        self.environment = dict(os.environ, KILN_ENGINE_CACHE=str(work / "engines"))
        self.starts = 0

    def start(self):
        command = [kiln, "worker", *([] if self.fetches else [SHAPES]), "--nats", f"nats://127.0.0.1:{self.proxy.port}"]
        # A name of its own each time: the card of a killed one lives on for a while.
        self.starts += 1
        command += ["--name", f"{self.name}.{self.starts}", "--threads", "1"]
        if self.fetches:
            command += ["--bundles", str(self.folder / "bundles")]
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()


def ask(method, path, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers or {}, method=method)
    if data:
        request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (urllib.error.URLError, OSError):
        return 0, b""


def insist(method, path, body=None, headers=None, accepted=(200, 202)):
    """Asks until there is an answer: clients do while NATS is away."""
    for _ in range(600):
        status, answer = ask(method, path, body, headers)
        if status in accepted:
            return status, answer
        counts[f"answers {status}"] += 1
        time.sleep(0.2)
    sys.exit(f"{method} {path}: {status} {answer[:200]}")


def fleet(*words):
    environment = dict(os.environ, KILN_NATS=f"nats://127.0.0.1:{nats.port}")
    done = subprocess.run([kiln, "fleet", *words], env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout if done.returncode == 0 else None


def submit():
    """Sends the jobs over most of the time, each under a name of its own."""
    pause = 0.7 * args.minutes * 60 / args.jobs
    for i in range(args.jobs):
        due = began + i * pause
        time.sleep(max(0, due - time.time()))
        poison = i == args.jobs // 4
        body = {"prompt": "a blue star", "seed": i % SEEDS, "steps": POISON_STEPS if poison else STEPS}
        _, answer = insist("POST", "/v1/jobs", body, {"idempotency-key": f"job-{i}"}, accepted=(202,))
        identity = json.loads(answer)["id"]
        taken[identity] = i % SEEDS
        if poison:
            poisoned.append(identity)
            say(f"the poison job is {identity}")
    say(f"{len(taken)} jobs are taken")


def poison():
    """Kills whoever draws the poison job."""
    while not stopping.is_set():
        if poisoned and (jobs := fleet("jobs", "--json")):
            for job in json.loads(jobs)["jobs"]:
                if job["record"]["id"] == poisoned[0] and job["worker"]:
                    victim = next(worker for worker in workers if job["worker"].startswith(worker.name))
                    with victim.lock:
                        if f"{victim.name}.{victim.starts}" == job["worker"]:
                            counts["workers killed by the poison job"] += 1
                            say(f"the poison job kills {victim.name}")
                            victim.kill()
                            victim.start()
        time.sleep(0.1)


def harm():
    """Breaks something at random moments."""
    end = began + args.minutes * 60 * 0.85
    while time.time() < end:
        time.sleep(chance.uniform(3, 9))
        kind = chance.choice(["kill"] * 4 + ["cut", "cut", "silent", "silent", "nats"])
        worker = chance.choice(workers)
        if kind == "kill":
            say(f"{worker.name} is killed")
            counts["workers killed"] += 1
            with worker.lock:
                worker.kill()
                time.sleep(chance.uniform(0, 3))
                worker.start()
        elif kind == "nats":
            say("nats-server is killed")
            counts["nats-server killed"] += 1
            nats.kill()
            time.sleep(chance.uniform(0, 4))
            nats.start()
        else:
            say(f"the network of {worker.name} is {kind}")
            counts[f"networks {kind}"] += 1
            if kind == "cut":
                worker.proxy.cut()
            else:
                worker.proxy.state = "silent"
            time.sleep(chance.uniform(1, 15))
            worker.proxy.state = "open"
    say("nothing is broken any more")


def small_disk(folder):
    """A disk of 96 MiB that is full; none without the right to mount one."""
    (folder / "bundles").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder / "bundles")])
    if mounted.returncode:
        say("not root: no disk is full")
        return None
    ballast = folder / "bundles/ballast"
    with open(ballast, "wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
    return ballast


began = time.time()
taken, poisoned = {}, []
nats = Nats()
failed = []
workers = [Worker(i) for i in range(WORKERS)]
port = free_port()
try:
    if fleet("init", "--lease", "4", "--attempts", "5") is None:
        sys.exit("the fleet cannot be made")
    ballast = small_disk(workers[-1].folder)
    server = subprocess.Popen(
        [kiln, "serve", SHAPES, "--nats", f"nats://127.0.0.1:{nats.port}", "--listen", f"127.0.0.1:{port}"]
        + ["--state", str(work / "state")],
        env=dict(os.environ, KILN_ENGINE_CACHE=str(work / "engines")),
        stdout=open(work / "server.log", "ab"),
        stderr=subprocess.STDOUT,
    )
    insist("GET", "/healthz")
    compiled = subprocess.run(
        [kiln, "compile", SHAPES], env=dict(os.environ, KILN_ENGINE_CACHE=str(work / "engines")), capture_output=True, text=True, check=True
    )
    if fleet("push", compiled.stdout.strip(), "--name", "shapes") is None:
        sys.exit("the bundle cannot be pushed")
    for worker in workers:
        worker.start()
    threads = [threading.Thread(target=task) for task in (submit, harm)]
    threading.Thread(target=poison, daemon=True).start()
    for thread in threads:
        thread.start()
    time.sleep(0.15 * args.minutes * 60)
    if ballast:
        refused = (workers[-1].folder / "log").read_text().count("No space left")
        say(f"the full disk was named {refused} times; it has space now")
        if not refused:
            failed.append("the full disk was not named")
        ballast.unlink()
    for thread in threads:
        thread.join()

    ends, attempts, pictures = collections.Counter(), collections.Counter(), collections.defaultdict(set)
    deadline = time.time() + max(120, args.minutes * 15)
    left = dict(taken)
    while left and time.time() < deadline:
        for identity in list(left):
            status, answer = insist("GET", f"/v1/jobs/{identity}")
            job = json.loads(answer)
            if job["status"] not in ("done", "failed", "cancelled"):
                continue
            ends[job["status"]] += 1
            if job["status"] == "done":
                _, file = insist("GET", f"/v1/jobs/{identity}/pictures/0")
                pictures[left[identity] if identity not in poisoned else "poison"].add(hashlib.sha256(file).hexdigest())
            else:
                say(f"{identity}: {job['error']}")
            del left[identity]
        time.sleep(0.5)
    stopping.set()
    overview = json.loads(fleet("status", "--json"))
    dead = json.loads(fleet("dead", "--json"))["jobs"]
    waiting = sum(depth["jobs"] for depth in overview["queues"])
    again = len([1 for worker in workers for line in open(worker.folder / "log") if "has not finished it" in line])
    late = len([1 for worker in workers for line in open(worker.folder / "log") if "had ended otherwise" in line])

    if left:
        failed.append(f"{len(left)} jobs that were taken have not ended: {list(left)[:3]}")
    if len(taken) != args.jobs:
        failed.append(f"{len(taken)} names of jobs for {args.jobs} jobs")
    differing = [seed for seed, found in pictures.items() if len(found) != 1]
    if differing:
        failed.append(f"seeds {differing} have pictures that differ")
    if waiting:
        failed.append(f"{waiting} jobs are left in the stream")
    if [job["record"]["id"] for job in dead if job["record"]["id"] in poisoned] != poisoned:
        failed.append("the poison job was not given up")
    if ends["failed"] != len(dead):
        failed.append(f"{ends['failed']} jobs failed, {len(dead)} were given up")
    harms = sum(n for what, n in counts.items() if not what.startswith("answers"))
    if again > harms * 2:
        failed.append(f"{again} jobs were begun again after {harms} harms")

    print(f"\n{args.jobs} jobs, {time.time() - began:.0f} s, {os.cpu_count()} cores, seed {args.seed}")
    for what, n in sorted(counts.items()):
        print(f"  {what}: {n}")
    print(f"  ended: {dict(ends)}; given up: {len(dead)}")
    print(f"  begun again after a worker was lost: {again}; drawn by a worker that had lost the job: {late}")
    print(f"  in the stream at the end: {waiting}; seeds with one picture: {SEEDS - len(differing)} of {SEEDS}")
finally:
    for worker in workers:
        if hasattr(worker, "process"):
            worker.process.kill()
    if "server" in globals():
        server.send_signal(signal.SIGTERM)
        server.wait()
    nats.kill()
    subprocess.run(["umount", str(workers[-1].folder / "bundles")], stderr=subprocess.DEVNULL)
    if failed:
        print(f"logs are in {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
for reason in failed:
    print(f"FAILED: {reason}")
if failed:
    sys.exit(1)
print("ok: every job that was taken has ended once")
