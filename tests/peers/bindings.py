"""Times a picture of the small model drawn by the command, by Python and by C, in turns, with the memory of each process.

    python tests/peers/bindings.py target/release/kiln PREFIX [ROUNDS]

PREFIX is where `sh crates/kiln-capi/install.sh target/release PREFIX` installed the library; the wheel can be imported.
Seconds are those of loading, steps and decoding together; memory is the peak of the process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = r"""
#include <kiln.h>
#include <stdio.h>
int main(int argc, char **argv) {
    const char *prompts[] = {"a red circle"};
    uint64_t seed = 7;
    kiln_pipeline *pipeline;
    kiln_output *output;
    kiln_seconds s = {.size = sizeof s};
    kiln_request request = {.size = sizeof request, .prompts = prompts, .n_prompts = 1, .seeds = &seed, .n_seeds = 1, .steps = 50};
    if (argc != 3 || kiln_open(argv[1], NULL, &pipeline, NULL) || kiln_pipeline_generate(pipeline, &request, NULL, &output, NULL)
        || kiln_output_save_png(output, 0, argv[2], NULL) || kiln_output_seconds(output, &s, NULL)) return 1;
    printf("%f\n", s.start + s.steps + s.decode);
    return 0;
}
"""
PYTHON = """
import sys, time, kiln
pipe = kiln.Pipeline(sys.argv[1])
began = time.perf_counter()
width, height, pixels = pipe("a red circle", seed=7, num_inference_steps=50, output_type="bytes").images[0]
print(time.perf_counter() - began)
"""


def run(command, environment):
    """What a command prints, and its peak memory in bytes."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return said, usage.ru_maxrss * 1024


def main():
    kiln, prefix = (Path(word).resolve() for word in sys.argv[1:3])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 15
    bundle = subprocess.run([kiln, "compile", "models/shapes"], check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "draw.c"), Path(folder, "draw")
        source.write_text(PROGRAM)
        build = ["cc", "-O2", source, f"-I{prefix}/include", f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib", "-lkiln", "-o", program]
        subprocess.run(list(map(str, build)), check=True)
        asked = ["generate", "a red circle", "--model", bundle, "--seed", 7, "--steps", 50, "--json", "--out", Path(folder, "a.png")]
        library = json.loads(run([kiln, "runtime", "list", "--json"], os.environ)[0])
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "KILN_ONNXRUNTIME": found(library)}
        ways = {
            "command": ([kiln, *asked], lambda said: seconds(json.loads(said))),
            "C": ([program, bundle, Path(folder, "b.png")], float),
            "Python": ([sys.executable, "-c", PYTHON, bundle], float),
        }
        figures = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (command, read) in ways.items():
                said, memory = run(command, environment)
                figures[way].append((read(said), memory))
        report(figures)


def found(libraries):
    """The path of ONNX Runtime for the processor in what `kiln runtime list --json` prints."""
    return next(library["path"] for library in libraries["libraries"] if library["name"] == "cpu")


def seconds(printed):
    return sum(printed["seconds"][phase] for phase in ("start", "steps", "decode"))


def report(figures):
    base = [statistics.median(column) for column in zip(*figures["command"])]
    for way, rows in figures.items():
        time, memory = (statistics.median(column) for column in zip(*rows))
        print(f"{way:8} {time:.3f} s ({time / base[0]:.3f})  {memory / 1e6:.1f} MB ({memory / base[1]:.3f})")


if __name__ == "__main__":
    main()
