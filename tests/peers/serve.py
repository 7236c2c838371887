#!/usr/bin/env python3
"""Compares `kiln serve` with other servers of the same model, in one run of alternating rounds.

    pip install -r tests/peers/requirements.txt
    python tests/peers/serve.py target/release/kiln [--sd-server sd-server] [--json figures.json]

All servers run at once, one is asked at a time. Prints Markdown tables; fails where pictures differ, a request fails or
a bar is missed.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version

import servers
from overhead import Overhead
from rounds import Round, asked, largest_difference, quantile, summary

HERE = os.path.dirname(os.path.abspath(__file__))
SHAPES = os.path.join(HERE, "..", "..", "models", "shapes")
LEVELS = 2  # by which pictures may differ
MANY = 16   # clients at once


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln")
    parser.add_argument("--sd-server", help="the server of stable-diffusion.cpp")
    parser.add_argument("--model", default=SHAPES, help="a checkpoint in the diffusers layout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", type=int, default=8, help="pictures in a round of one client")
    parser.add_argument("--each", type=int, default=1, help=f"pictures of each of {MANY} clients in a round")
    parser.add_argument("--overhead", type=int, default=20, help="jobs in a round that measure kiln's overhead")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=64, help="of the pictures; 64 is the small model's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rest", type=float, default=1, help="seconds before each round")
    parser.add_argument("--json", help="a file for the figures")
    return parser.parse_args()


class Comparison:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.starts, self.absent, self.rounds, self.overheads = {}, {}, {}, []
        model, threads = options.model, options.threads
        self.first = servers.kiln(options.kiln, model, threads, folder, "kiln-first", os.path.join(folder, "engines"))
        self.servers = [servers.kiln(options.kiln, model, threads, folder), servers.diffusers(model, threads, folder)]
        if options.sd_server:
            peer = servers.stable_diffusion_cpp(options.sd_server, model, threads, options.steps, folder)
            self.servers.append(peer)

    def request(self, seed):
        return asked(seed, self.options.steps, f"{self.options.side}x{self.options.side}")

    def rest(self, what):
        print(what, file=sys.stderr, flush=True)
        time.sleep(self.options.rest)

    def start(self):
        """Starts every server, and before that kiln with an empty engine cache; a third one may fail."""
        self.rest("start kiln-first")
        self.starts[self.first.name] = self.first.start(self.request(0))
        self.first.stop()
        for server in list(self.servers):
            self.rest(f"start {server.name}")
            try:
                self.starts[server.name] = server.start(self.request(0))
            except servers.Failed as error:
                if server in self.servers[:2]:
                    raise
                self.absent[server.name] = str(error)
                self.servers.remove(server)
        print("started", file=sys.stderr, flush=True)

    def measure(self):
        """Rounds: the servers take turns with one client, then kiln's overhead, then turns with many clients."""
        for i in range(self.options.rounds):
            first_seed = 1 + 100 * i
            self.turns(i, 1, self.options.alone, first_seed)
            self.rest(f"round {i + 1}: overhead")
            self.overheads += self.overhead(first_seed)
            self.turns(i, MANY, self.options.each, first_seed)
        print("measured", file=sys.stderr, flush=True)

    def turns(self, i, n_clients, pictures, first_seed):
        for server in self.servers:
            self.rest(f"round {i + 1}: {server.name}, clients: {n_clients}")
            done = Round(server, n_clients, pictures, self.request, first_seed)
            self.rounds.setdefault((server.name, n_clients), []).append(done)

    def overhead(self, first_seed):
        model = os.path.basename(os.path.abspath(self.options.model))
        overhead = Overhead(self.servers[0], model, self.options.steps, self.options.side)
        return [overhead.once(first_seed + job) for job in range(self.options.overhead)]

    def figures(self):
        rows = {server.name: self.row(server) for server in self.servers}
        difference = largest_difference(*self.servers[:2], [self.request(seed) for seed in range(4)])
        return {"servers": rows, "absent": self.absent, "first_start": self.starts["kiln-first"],
                "overheads": self.overheads, "ratios": self.ratios(), "levels": difference, "versions": versions(),
                "settings": {key: value for key, value in vars(self.options).items()
                             if key not in ("kiln", "sd_server", "model", "json")}}

    def row(self, server):
        clients = {str(n): summary(self.rounds[server.name, n]) for n in (1, MANY)}
        return {"clients": clients, "peak_bytes": server.peak(), "start_seconds": self.starts[server.name]}

    def ratios(self):
        """What is compared: its value, and the bar that it has to reach, as `(least, most)`."""
        kiln, peer = [[self.rounds[name, n] for n in (1, MANY)] for name in ("kiln", "diffusers")]
        p99 = summary(kiln[1])["p99"] / summary(peer[1])["p99"]
        return {f"pictures per second, {MANY} clients: kiln / diffusers": (throughput(kiln[1], peer[1]), 1.5, None),
                f"p99 latency, {MANY} clients: kiln / diffusers": (p99, None, 0.5),
                f"pictures per second, kiln: {MANY} clients / 1": (throughput(kiln[1], kiln[0]), 1.6, None),
                "overhead of kiln's server, median, ms": (1000 * quantile(self.overheads, 0.5), None, 2),
                "overhead of kiln's server, p99, ms": (1000 * quantile(self.overheads, 0.99), None, 10)}


def throughput(rounds, others):
    """How many times the pictures of other rounds, each beside its own."""
    return statistics.median(one.throughput / other.throughput for one, other in zip(rounds, others))


def versions():
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "fastapi", "uvicorn")}


def reached(value, least, most):
    return (least is None or value >= least) and (most is None or value <= most)


def tables(figures):
    yield "| server | clients | pictures/s | median | p99 | peak memory | start to first picture |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in figures["servers"].items():
        for n, of in row["clients"].items():
            yield (f"| {name} | {n} | {of['pictures_per_second']:.2f} | {of['median']:.2f} s | {of['p99']:.2f} s | "
                   f"{row['peak_bytes'] / 2**20:.0f} MiB | {row['start_seconds']:.1f} s |")
    for name, why in figures["absent"].items():
        yield f"| {name} | | | | | | {why} |"
    yield f"\nkiln's first start, which compiles the model: {figures['first_start']:.1f} s to the first picture\n"
    yield "| what | figure | bar | |"
    yield "|---|---|---|---|"
    for what, (value, least, most) in figures["ratios"].items():
        bar = f"at least {least}" if most is None else f"at most {most}"
        yield f"| {what} | {value:.2f} | {bar} | {'reached' if reached(value, least, most) else 'missed'} |"
    same = figures["levels"] <= LEVELS
    yield (f"| largest difference of kiln's and diffusers' pictures, levels | {figures['levels']} | at most {LEVELS} | "
           f"{'reached' if same else 'missed'} |")


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(options, folder)
        try:
            comparison.start()
            comparison.measure()
            figures = comparison.figures()
        except servers.Failed as error:
            sys.exit(str(error))
        finally:
            [server.stop() for server in comparison.servers]
    print("\n".join(tables(figures)))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=2)
    passes = figures["levels"] <= LEVELS and all(reached(*of) for of in figures["ratios"].values())
    sys.exit(0 if passes else 1)


if __name__ == "__main__":
    main()
