#!/bin/sh
# Triton Inference Server waits for HTTP connections that say nothing when it is told to end: one client that keeps its
# connection alive, as HTTP clients do, holds the end up for the whole exit timeout, 30 s by default, although no request runs.
# Without such a connection it ends at once. What the wait uses up is no longer there for unloading models.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --no-deps --target "$work/triton" nvidia-pytriton==0.7.0
chmod +x "$work/triton/pytriton/tritonserver/bin/tritonserver"
mkdir "$work/models"
python3 - "$work" <<'END'
import http.client, os, signal, socket, subprocess, sys, time

work, TIMEOUT = sys.argv[1], 4


def run(keeps_alive):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = f"{work}/triton/pytriton/tritonserver/bin/tritonserver"
    options = [f"--model-repository={work}/models", f"--backend-directory={work}/triton/pytriton/tritonserver/backends",
               f"--http-port={port}", "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false",
               f"--exit-timeout-secs={TIMEOUT}"]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{work}/triton/nvidia_pytriton.libs"}
    server = subprocess.Popen([program, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(100):
        try:
            client.request("GET", "/v2")
            break
        except OSError:
            client.close()
            time.sleep(0.1)
    about = client.getresponse().read().decode()
    if not keeps_alive:
        client.close()
        time.sleep(0.5)
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    return about.split('"version":"')[1].split('"')[0], time.monotonic() - began


version, seconds = run(keeps_alive=False)
print(f"Triton {version}, exit timeout {TIMEOUT} s")
print(f"no connection left: ended after {seconds:.1f} s")
_, held = run(keeps_alive=True)
print(f"one idle connection: ended after {held:.1f} s")
assert seconds < 1 and held >= TIMEOUT - 1, "this has changed"
END
