"""Drives a running `kiln serve` with KServe's Python clients, over HTTP and gRPC.

    pip install kserve==0.21.0
    python tests/clients/kserve_client.py 127.0.0.1:7860 MODEL [KEY]
"""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

address, model, key = sys.argv[1], sys.argv[2], (sys.argv[3:] or ["none"])[0]
headers = {"authorization": f"Bearer {key}"}


def request(**parameters):
    """Two pictures."""
    tensors = [
        InferInput("prompt", [2], "BYTES", data=["a red circle"] * 2),
        InferInput("seed", [2], "INT64", data=[7, 8]),
        InferInput("steps", [1], "INT32", data=[2]),
        InferInput("guidance_scale", [1], "FP32", data=[3.0]),
    ]
    return InferRequest(model_name=model, infer_inputs=tensors, request_id="a", parameters=parameters)


def images(answer):
    """The pixels of an answer."""
    outputs = {output.name: output for output in answer.outputs}
    assert answer.model_name == model and list(np.ravel(outputs["seed"].as_numpy())) == [7, 8]
    return np.asarray(outputs["images"].as_numpy(), dtype=np.uint8).reshape(outputs["images"].shape)


async def rest():
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    base = f"http://{address}"
    assert await client.is_server_live(base) and await client.is_server_ready(base)
    assert await client.is_model_ready(base, model, headers=headers)
    return images(await client.infer(base, request(), model_name=model, headers=headers))


async def grpc():
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready(model, headers=tuple(headers.items()))
        return images(await client.infer(request(), headers=tuple(headers.items())))


async def main():
    over_http, over_grpc = await rest(), await grpc()
    assert over_http.ndim == 4 and (over_http == over_grpc).all()
    print("all well")


asyncio.run(main())
