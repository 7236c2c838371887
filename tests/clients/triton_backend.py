"""Drives kiln's backend in Triton Inference Server itself, whose program the package nvidia-pytriton holds.

    pip install --no-deps --target TRITON nvidia-pytriton==0.7.0
    pip install "tritonclient[grpc,http]==2.73.0" numpy
    python tests/clients/triton_backend.py KILN LIBTRITON_KILN.SO BUNDLE TRITON
"""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

# A name that no command of kiln's writes in its configuration, to be refused.
WRONG = 'parameters { key: "colour", value: { string_value: "red" } }\n'


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextlib.contextmanager
def server(triton, backends, repository, log):
    http, grpc = free_ports(2)
    program = triton / "pytriton/tritonserver/bin/tritonserver"
    program.chmod(0o755)
    options = {
        "model-repository": repository, "backend-directory": backends, "exit-on-error": "false",
        "http-address": "127.0.0.1", "http-port": http, "grpc-address": "127.0.0.1", "grpc-port": grpc,
        "allow-metrics": "false",
    }
    command = [program, *(f"--{key}={value}" for key, value in options.items())]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(triton / "nvidia_pytriton.libs")}
    with log.open("w") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError, InferenceServerException):
                if tritonclient.http.InferenceServerClient(f"127.0.0.1:{http}").is_server_live():
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield http, grpc
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def texts(kind, name, values):
    tensor = kind.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode() for value in values], dtype=object))
    return tensor


def numbers(kind, name, values, dtype):
    tensor = kind.InferInput(name, list(np.shape(values)), {np.int32: "INT32", np.int64: "INT64", np.uint8: "UINT8"}[dtype])
    tensor.set_data_from_numpy(np.array(values, dtype))
    return tensor


def asked(kind, seed, steps=20):
    return [texts(kind, "prompt", ["a red circle"]), numbers(kind, "seed", [seed], np.int64), numbers(kind, "steps", [steps], np.int32)]


def drawn_by_command(kiln, bundle, seed, folder):
    out = folder / f"{seed}.png"
    command = [kiln, "generate", "a red circle", "--model", bundle, "--seed", seed, "--steps", 20, "--out", out]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


def main():
    kiln, library, bundle, triton = (Path(word).resolve() for word in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        check(kiln, library, bundle, triton, Path(folder))
    print("ok: kiln's backend in Triton")


def check(kiln, library, bundle, triton, folder):
    repository, backends = folder / "models", folder / "backends"
    (backends / "kiln").mkdir(parents=True)
    shutil.copy(library, backends / "kiln/libtriton_kiln.so")
    for name in ("shapes", "wrong"):
        command = [kiln, "export", "triton", bundle, "--out", repository, "--name", name]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    with (repository / "wrong/config.pbtxt").open("a") as file:
        file.write(WRONG)

    with server(triton, backends, repository, folder / "log") as (http_port, grpc_port):
        http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{http_port}", concurrency=4)
        grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
        assert http.is_model_ready("shapes") and not http.is_model_ready("wrong")
        assert "parameters: colour: is no parameter" in (folder / "log").read_text()

        # The same pictures as the command's, alone and together with others.
        outputs = [tritonclient.http.InferRequestedOutput(name) for name in ("images", "encoded_image", "seed", "info")]
        together = [http.async_infer("shapes", asked(tritonclient.http, seed), outputs=outputs) for seed in range(4)]
        together = [waiting.get_result() for waiting in together]
        for seed, found in enumerate(together):
            assert found.as_numpy("images").shape == (1, 64, 64, 3)
            assert found.as_numpy("seed").tolist() == [seed]
            assert b"a red circle" in found.as_numpy("info")[0]
            file = folder / "by-triton.png"
            file.write_bytes(found.as_numpy("encoded_image")[0])
            compare = [kiln, "compare", file, drawn_by_command(kiln, bundle, seed, folder), "--max-difference", "0"]
            subprocess.run(list(map(str, compare)), check=True, capture_output=True)
        over_grpc = grpc.infer("shapes", asked(tritonclient.grpc, 2))
        assert np.array_equal(over_grpc.as_numpy("images"), together[2].as_numpy("images"))

        # A picture to start from, several pictures, and settings as parameters.
        start = numbers(tritonclient.http, "init_image", np.full((48, 48, 3), 90), np.uint8)
        prompts = texts(tritonclient.http, "prompt", ["a red circle", "a blue square"])
        found = http.infer("shapes", [prompts, start], parameters={"steps": 8, "strength": 0.5, "width": 64, "height": 64})
        assert found.as_numpy("images").shape == (2, 64, 64, 3)

        # What is wrong is refused by name, and the next request is drawn.
        for steps, reason in ((0, "steps: 0 is not from 1 to 150"), (151, "steps: 151 is not from 1 to 150")):
            try:
                http.infer("shapes", asked(tritonclient.http, 1, steps))
                raise SystemExit(f"{steps} steps were drawn")
            except InferenceServerException as error:
                assert reason in str(error), error
        http.infer("shapes", asked(tritonclient.http, 1))

        # A call that is cancelled stops drawing: what comes behind it does not wait.
        ended = concurrent.futures.Future()
        slow = [*asked(tritonclient.grpc, 1, 150), texts(tritonclient.grpc, "scheduler", ["heun"]),
                numbers(tritonclient.grpc, "width", [512], np.int32), numbers(tritonclient.grpc, "height", [512], np.int32)]
        call = grpc.async_infer("shapes", slow, lambda result, error: ended.set_result(error))
        time.sleep(1)
        began = time.monotonic()
        call.cancel()
        assert "CANCELLED" in str(ended.result(30))
        http.infer("shapes", asked(tritonclient.http, 1))
        assert time.monotonic() - began < 15, time.monotonic() - began

        counts = http.get_inference_statistics("shapes")["model_stats"][0]
        assert counts["inference_stats"]["success"]["count"] == 8, counts
        assert counts["inference_stats"]["fail"]["count"] == 3, counts
        # Triton waits for open connections when it ends.
        http.close()
        grpc.close()


if __name__ == "__main__":
    main()
