"""Servers that are compared: how each starts, what it is asked, and what it takes."""
import base64
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
GUIDANCE = 7.5
PATIENCE = 600  # seconds until a server that does not start, or an answer that does not come, is given up


class Failed(Exception):
    """A server that does not start, or does not answer with a picture."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Client:
    """A connection that stays open, as clients' libraries keep it."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, data, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def draw(self, asked):
        """The seconds that a picture takes, and its PNG file."""
        begun = time.perf_counter()
        status, answer = self.ask("POST", "/v1/images/generations", asked)
        took = time.perf_counter() - begun
        if status != 200:
            raise Failed(f"{status}: {answer[:300]!r}")
        return took, base64.b64decode(json.loads(answer)["data"][0]["b64_json"])


class Server:
    """A process that serves one model."""

    def __init__(self, name, command, port, folder, health):
        self.name, self.command, self.port, self.health = name, command, port, health
        self.log = os.path.join(folder, f"{name}.log")
        self.process = None

    def start(self, asked):
        """Starts it, and gives the seconds until its first picture."""
        begun = time.monotonic()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        try:
            self.wait(begun + PATIENCE)
            self.client().draw(asked)
        except (Failed, OSError) as error:
            self.stop()
            raise Failed(f"{self.name} draws no first picture: {self.complaint() or error}") from None
        return time.monotonic() - begun

    def wait(self, end):
        """Waits until it answers."""
        while not self.answers():
            if self.process.poll() is not None:
                raise Failed("it ends")
            if time.monotonic() > end:
                raise Failed("it does not answer")
            time.sleep(0.02)

    def answers(self):
        try:
            return self.client().ask("GET", self.health)[0] == 200
        except OSError:
            return False

    def client(self):
        return Client(self.port)

    def peak(self):
        """The most memory that the process had at once, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) * 1024

    def complaint(self):
        """The first line of its log that tells of an error."""
        with open(self.log, errors="replace") as log:
            return next((line.strip() for line in log if re.search("error|fail", line, re.IGNORECASE)), None)

    def stop(self):
        """Ends it; one that still draws for clients that are gone is given no time for that."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def kiln(binary, model, threads, folder, name="kiln", engine_cache=None):
    port = free_port()
    state = os.path.join(folder, f"{name}-state")
    command = [binary, "serve", model, "--listen", f"127.0.0.1:{port}", "--state", state, "--threads", str(threads)]
    cache = ["--engine-cache", engine_cache] if engine_cache else []
    return Server(name, command + cache, port, folder, "/healthz")


def diffusers(model, threads, folder):
    port = free_port()
    script = os.path.join(HERE, "diffusers_server.py")
    command = [sys.executable, script, model, "--port", str(port), "--threads", str(threads)]
    return Server("diffusers", command, port, folder, "/healthz")


def stable_diffusion_cpp(binary, model, threads, steps, folder):
    """Its server reads neither steps nor guidance from a request, so they are the server's defaults."""
    port = free_port()
    settings = ["--threads", str(threads), "--steps", str(steps), "--cfg-scale", str(GUIDANCE),
                "--sampling-method", "ddim_trailing"]
    command = [binary, "-m", model, "--listen-port", str(port)] + settings
    return Server("stable-diffusion.cpp", command, port, folder, "/v1/models")
