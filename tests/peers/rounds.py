"""Rounds of requests, and what they say: throughput, latency, and whether pictures are the same."""
import io
import itertools
import math
import statistics
import threading
import time

import numpy as np
from PIL import Image

from servers import GUIDANCE, Failed

COLOURS = ["red", "orange", "yellow", "green", "blue", "purple"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
THINGS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]


def prompt(seed):
    """One of 1296 prompts, so that no server gains from remembering them."""
    return f"{THINGS[seed % len(THINGS)]} above {THINGS[seed // len(THINGS) % len(THINGS)]}"


def asked(seed, steps, size):
    return {"prompt": prompt(seed), "seed": seed, "steps": steps, "size": size, "guidance_scale": GUIDANCE}


class Round:
    """So many clients, each of which asks for pictures one after another; `make` turns a seed into a request."""

    def __init__(self, server, n_clients, pictures, make, first_seed):
        seeds = itertools.count(first_seed)
        self.latencies, self.errors = [], []
        work = [[make(next(seeds)) for _ in range(pictures)] for _ in range(n_clients)]
        threads = [threading.Thread(target=self.run, args=(server.client(), requests)) for requests in work]
        begun = time.perf_counter()
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        if self.errors:
            raise Failed(f"{server.name}: {self.errors[0]}")
        self.throughput = len(self.latencies) / (time.perf_counter() - begun)

    def run(self, client, requests):
        for request in requests:
            try:
                self.latencies.append(client.draw(request)[0])
            except Exception as error:
                self.errors.append(str(error))


def quantile(values, q):
    """The least value that at least the share `q` of all does not pass."""
    return sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]


def summary(rounds):
    """Pictures per second in the middle round, and the latency of all, in seconds."""
    latencies = [latency for round in rounds for latency in round.latencies]
    return {"pictures_per_second": statistics.median(round.throughput for round in rounds),
            "median": quantile(latencies, 0.5), "p99": quantile(latencies, 0.99), "pictures": len(latencies)}


def largest_difference(one, other, requests):
    """By how many levels of 256 two servers' pictures of the same requests differ at most."""
    def pixels(server, request):
        return np.asarray(Image.open(io.BytesIO(server.client().draw(request)[1])).convert("RGB")).astype(int)
    return max(int(np.abs(pixels(one, request) - pixels(other, request)).max()) for request in requests)
