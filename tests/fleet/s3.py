"""A fleet whose pictures and bundles lie in an S3 bucket, against a server that speaks S3.

    python3 -m pip install "moto[server]==5.2.5"
    python3 tests/fleet/s3.py KILN NATS_SERVER

Starts moto, NATS, a server and a worker without a model, pushes the small model's bundle, draws a picture, compares it with
what one box draws, and deletes it.
"""

import http.client
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from processes import SHAPES, free_port, wait_for

kiln, nats_server = map(os.path.abspath, sys.argv[1:3])
work = pathlib.Path(tempfile.mkdtemp(prefix="kiln-s3-"))
processes = []


def start(port, *command, **extra):
    processes.append(subprocess.Popen(command, env=environment | extra, stdout=log, stderr=log))
    wait_for(port)


def ask(method, port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status < 300, (method, path, answer.status, content[:300])
    return content


def objects():
    return ask("GET", s3, "/pictures?list-type=2").decode()


s3, queue, server, state = (free_port() for _ in range(4))
url = f"nats://127.0.0.1:{queue}"
environment = dict(
    os.environ,
    KILN_ENGINE_CACHE=str(work / "engines"),
    KILN_NATS=url,
    AWS_ACCESS_KEY_ID="someone",
    AWS_SECRET_ACCESS_KEY="secret",
    AWS_REGION="us-east-1",
    AWS_ENDPOINT=f"http://127.0.0.1:{s3}",
    AWS_ALLOW_HTTP="true",
)
try:
    log = open(work / "log", "ab")
    start(s3, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3))
    ask("PUT", s3, "/pictures")
    start(queue, nats_server, "-js", "-sd", str(work / "nats"), "-a", "127.0.0.1", "-p", str(queue))

    def run(*words):
        done = subprocess.run([kiln, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run("fleet", "init", "--results", "s3://pictures/kiln")
    bundle = run("compile", SHAPES)
    digest = run("fleet", "push", bundle, "--name", "shapes")
    models = work / "models.yaml"
    models.write_text(f"models: [{{name: shapes, bundle: '{bundle}'}}]\n")
    start(server, kiln, "serve", str(models), "--nats", url, "--listen", f"127.0.0.1:{server}", "--state", str(work / "state"))
    start(state, kiln, "worker", "--nats", url, "--listen", f"127.0.0.1:{state}", "--bundles", str(work / "bundles"))
    job = json.loads(ask("POST", server, "/v1/jobs", {"prompt": "a red circle", "seed": 7, "steps": 20}))["id"]
    for _ in range(600):
        shown = json.loads(ask("GET", server, f"/v1/jobs/{job}"))
        if shown["status"] in ("done", "failed"):
            break
        time.sleep(0.1)
    assert shown["status"] == "done", shown
    (work / "fleet.png").write_bytes(ask("GET", server, f"/v1/jobs/{job}/pictures/0"))
    run("generate", "a red circle", "--model", bundle, "--seed", "7", "--steps", "20", "--out", str(work / "here.png"))
    run("compare", str(work / "fleet.png"), str(work / "here.png"), "--max-difference", "0")
    listed = objects()
    assert f"kiln/pictures/out/{job}/" in listed and f"kiln/bundles/{digest[:16]}/index.json" in listed, listed
    ask("DELETE", server, f"/v1/jobs/{job}")
    assert f"out/{job}/" not in objects()
    print("ok: bundle and picture went through S3, and the picture is the one of one box")
finally:
    for process in processes:
        process.kill()
    sys.stderr.write((work / "log").read_text()[-3000:] if sys.exc_info()[0] else "")
    shutil.rmtree(work, ignore_errors=True)
