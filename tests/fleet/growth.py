"""A week of a fleet in minutes: 100,000 jobs through workers that draw nothing.

    python3 -m pip install nats-py==2.16.0
    python3 tests/fleet/growth.py KILN NATS_SERVER [--jobs 100000]

The server is kiln's own. The workers speak kiln's protocol and end each job with a small picture: they are also the shortest
description of what a worker does. Records and pictures are kept for two minutes here, and pictures within 128 MiB, so that the
run goes through many lives of both. Prints, and fails unless: every job ends, the stream is empty, all streams stay within
their limits, and the memory of the server and of NATS stops growing.
"""

import argparse
import asyncio
import concurrent.futures
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import nats
import nats.js.api as api
from nats.js.errors import APIError, KeyWrongLastSequenceError, NotFoundError

from processes import SHAPES, free_port, memory, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("kiln")
parser.add_argument("nats_server")
parser.add_argument("--jobs", type=int, default=100_000)
args = parser.parse_args()
kiln = os.path.abspath(args.kiln)
work = pathlib.Path(tempfile.mkdtemp(prefix="kiln-growth-"))
environment = dict(os.environ, KILN_ENGINE_CACHE=str(work / "engines"))
KEEP_SECONDS, KEEP_BYTES = 120, 128 << 20
PICTURE = b"\x89PNG" + os.urandom(4000)
done = n_waits = 0


async def worker(url, name):
    """Pulls, writes the attempt down, stores a picture, writes the end down, acknowledges."""
    global done, n_waits
    connection = await nats.connect(url)
    stream = connection.jetstream()
    records, pictures = await stream.key_value("kiln-records"), await stream.object_store("kiln-pictures")
    consumer = None
    while True:
        if consumer is None:
            subjects = (await stream.stream_info("kiln-jobs", subjects_filter="kiln.jobs.>")).state.subjects or {}
            if not subjects:
                await asyncio.sleep(0.05)
                continue
            subject = sorted(subjects)[0]
            durable = "_".join(subject.split(".")[2:])
            config = api.ConsumerConfig(
                durable_name=durable, ack_policy=api.AckPolicy.EXPLICIT, ack_wait=60, filter_subject=subject,
                max_ack_pending=-1, inactive_threshold=3600,
            )
            await stream.add_consumer("kiln-jobs", config)
            consumer = await stream.pull_subscribe_bind(durable, "kiln-jobs")
        try:
            messages = await consumer.fetch(16, timeout=0.5)
        except asyncio.TimeoutError:
            continue
        for message in messages:
            order = json.loads(message.data)
            identity = order["record"]["id"]
            while True:
                try:
                    entry = await records.get(identity)
                except NotFoundError:
                    await asyncio.sleep(0.01)
                    continue
                order = json.loads(entry.value)
                order["record"].update(begun=True, attempts=1)
                order.update(worker=name, claim=os.urandom(16).hex())
                try:
                    revision = await records.update(identity, json.dumps(order).encode(), last=entry.revision)
                    break
                except KeyWrongLastSequenceError:
                    continue
            picture = f"out/{identity}/{order['claim'][:8]}-0.png"
            while True:
                try:
                    await pictures.put(picture, PICTURE)
                    break
                except APIError:  # There is no room at the moment; kiln's own workers wait, too.
                    n_waits += 1
                    await asyncio.sleep(0.2)
            order["record"].update(ending={"phase": "done", "pictures": 1, "infotexts": [""]}, ended=int(time.time()))
            order.update(pictures=[picture], seconds=0.01)
            await records.update(identity, json.dumps(order).encode(), last=revision)
            await message.ack()
            done += 1


def submit(port, numbers):
    client = http.client.HTTPConnection("127.0.0.1", port)
    for i in numbers:
        # So many wait at most.
        while i - done > 2000:
            time.sleep(0.05)
        body = json.dumps({"prompt": f"a blue star, number {i}", "seed": i, "steps": 20})
        client.request("POST", "/v1/jobs", body, {"content-type": "application/json"})
        answer = client.getresponse()
        content = answer.read()
        assert answer.status == 202, (answer.status, content)


async def main():
    port, http_port = free_port(), free_port()
    config = work / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{work}/nats" }}\n')
    queue = subprocess.Popen([args.nats_server, "-c", str(config)], stderr=subprocess.DEVNULL)
    url = f"nats://127.0.0.1:{port}"
    server = None
    try:
        wait_for(port)
        init = [kiln, "fleet", "init", "--nats", url, "--keep-hours", str(KEEP_SECONDS / 3600 + 1e-6), "--keep-size", str(KEEP_BYTES)]
        subprocess.run(init, check=True, env=environment)
        server = subprocess.Popen(
            [kiln, "serve", SHAPES, "--nats", url, "--listen", f"127.0.0.1:{http_port}", "--state", str(work / "state")],
            env=environment, stdout=open(work / "log", "ab"), stderr=subprocess.STDOUT,
        )
        await asyncio.to_thread(wait_for, http_port)
        workers = [asyncio.create_task(worker(url, f"fake-{i}")) for i in range(8)]
        began = time.time()
        pool = concurrent.futures.ThreadPoolExecutor(4)
        submitting = [pool.submit(submit, http_port, range(i, args.jobs, 4)) for i in range(4)]
        watcher = (await nats.connect(url)).jetstream()
        samples, largest = [], {}
        names = ["kiln-jobs", "KV_kiln-records", "OBJ_kiln-pictures", "kiln-dead"]
        while done < args.jobs:
            await asyncio.sleep(5)
            for task in workers:
                if task.done():
                    task.result()
            for task in submitting:
                if task.done():
                    task.result()
            row = {"done": done, "server": memory(server), "nats": memory(queue)}
            for name in names:
                state = (await watcher.stream_info(name)).state
                row[name] = (state.messages, state.bytes / (1 << 20))
                largest[name] = max(largest.get(name, (0, 0)), row[name], key=lambda pair: pair[1])
            samples.append(row)
            if len(samples) % 12 == 1:
                print(f"{time.time() - began:6.0f} s", row, flush=True)
        seconds = time.time() - began
        left = (await watcher.stream_info("kiln-jobs")).state.messages
        for task in workers:
            task.cancel()
        half = len(samples) // 2
        peak = {name: (max(row[name] for row in samples[:half]), max(row[name] for row in samples[half:])) for name in ("server", "nats")}
        print(f"\n{done} jobs in {seconds:.0f} s, {done / seconds:.0f} a second; left in the stream: {left}; waits for room: {n_waits}")
        for name, (messages, size) in largest.items():
            print(f"  {name}: at most {messages} messages, {size:.1f} MiB")
        for name, (first, second) in peak.items():
            print(f"  memory of {name}: at most {first:.0f} MiB in the first half, {second:.0f} MiB in the second")
        assert left == 0, left
        assert largest["OBJ_kiln-pictures"][1] <= KEEP_BYTES / (1 << 20), "pictures are more than may be kept"
        assert largest["kiln-jobs"][0] <= 4000
        assert all(second <= 1.25 * first + 20 for first, second in peak.values()), "memory grows"
        log = (work / "log").read_text()
        assert "panicked" not in log, log
        print("ok: everything stays within its limits")
    finally:
        if server:
            server.kill()
        queue.kill()
        shutil.rmtree(work, ignore_errors=True)


asyncio.run(main())
