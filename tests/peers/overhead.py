"""What `kiln serve` adds to the library's own time, one job at a time.

`/metrics` sums the seconds of each phase over all jobs. `preparing`, `denoising` and `decoding` are the library's time;
`queued` is the server's. The sum of those three is read before and after each request, while nothing else is drawn,
so that the difference is this one job's time in the library. The client's latency less this difference is all that
the server adds: the connection, reading the request, the queue, the thread that draws, learning what previews look
like, packing the answer. Requests are the Open Inference Protocol's, whose answers are pixels, so that no PNG is in
it. They go over a plain socket, for a client's own library would add half a millisecond. Only what the server does
between two steps, which is a preview of some thousand multiplications, counts as the library's.
"""
import json
import re
import socket
import time

from rounds import prompt
from servers import Failed

SUMS = re.compile(r'^kiln_job_phase_seconds_sum\{.*phase="(?:preparing|denoising|decoding)".*\} (\S+)$', re.MULTILINE)
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Overhead:
    def __init__(self, server, model, steps, side):
        self.metrics = server.client()
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.model, self.steps, self.side = model, steps, side

    def once(self, seed):
        """The seconds that the server adds to a job."""
        request = self.request(seed)
        before, begun = self.library(), time.perf_counter()
        status = self.exchange(request)
        took = time.perf_counter() - begun
        if status != b"200":
            raise Failed(f"/v2/models/{self.model}/infer: {status.decode()}")
        return took - (self.library() - before)

    def library(self):
        """The seconds that all jobs so far have spent in the library."""
        return sum(map(float, SUMS.findall(self.metrics.ask("GET", "/metrics")[1].decode())))

    def request(self, seed):
        body = json.dumps({
            "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt(seed)]}],
            "outputs": [{"name": "images", "parameters": {"binary_data": True}}],
            "parameters": {"seed": seed, "steps": self.steps, "width": self.side, "height": self.side}}).encode()
        head = (f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: localhost\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
        return head.encode() + body

    def exchange(self, request):
        """Sends a request, reads the whole answer, and gives its status."""
        self.socket.sendall(request)
        answer = self.more(b"")
        while b"\r\n\r\n" not in answer:
            answer = self.more(answer)
        end = answer.index(b"\r\n\r\n") + 4 + int(LENGTH.search(answer).group(1))
        while len(answer) < end:
            answer = self.more(answer)
        return answer.split(b" ", 2)[1]

    def more(self, answer):
        got = self.socket.recv(1 << 20)
        if not got:
            raise Failed("the server closes the connection")
        return answer + got
