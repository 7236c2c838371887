"""Drives a running `kiln serve` with Triton's Python clients.

    pip install 'tritonclient[http,grpc]==2.73.0' pillow
    python tests/clients/triton.py 127.0.0.1:7860 [KEY]
"""

import io
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

address, key = sys.argv[1], (sys.argv[2:] or ["none"])[0]
headers = {"authorization": f"Bearer {key}"}


def inputs(of, n=1, steps=2, **more):
    """Tensors for `n` pictures."""
    values = {
        "prompt": np.array([b"a red circle"] * n, dtype=object),
        "seed": np.arange(7, 7 + n, dtype=np.int64),
        "steps": np.array([steps], dtype=np.int32),
        "guidance_scale": np.array([3.0], dtype=np.float32),
        **more,
    }
    tensors = []
    for name, value in values.items():
        datatype = "BYTES" if value.dtype == object else {"i4": "INT32", "i8": "INT64", "f4": "FP32", "u1": "UINT8"}[
            value.dtype.str[1:]
        ]
        tensors.append(of.InferInput(name, value.shape, datatype))
        tensors[-1].set_data_from_numpy(value)
    return tensors


def refused(call):
    """The message of the error that a call raises."""
    try:
        call()
    except InferenceServerException as e:
        return e.message()
    raise AssertionError("it was not refused")


def http():
    of = tritonclient.http
    client = of.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata(headers=headers)["name"] == "kiln"
    model = client.get_model_repository_index(headers=headers)[0]["name"]
    assert client.is_model_ready(model, headers=headers) and client.is_model_ready(model, "1", headers=headers)
    assert not client.is_model_ready("nobody", headers=headers)
    assert client.get_model_metadata(model, headers=headers)["inputs"][0]["name"] == "prompt"
    assert client.get_model_config(model, headers=headers)["backend"] == "kiln"

    binary = client.infer(model, inputs(of, 2), headers=dict(headers), request_id="a")
    images = binary.as_numpy("images")
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[0] == 2 and images.shape[3] == 3
    assert binary.as_numpy("seed").tolist() == [7, 8] and binary.get_response()["id"] == "a"
    assert binary.as_numpy("info").shape == (2,)

    named = [of.InferRequestedOutput("images", binary_data=False), of.InferRequestedOutput("encoded_image")]
    mixed = client.infer(model, inputs(of, 2), outputs=named, headers=dict(headers))
    assert (mixed.as_numpy("images") == images).all() and mixed.as_numpy("seed") is None
    files = [np.asarray(Image.open(io.BytesIO(file))) for file in mixed.as_numpy("encoded_image")]
    assert (np.stack(files) == images).all()

    plain = [of.InferRequestedOutput(name, binary_data=False) for name in ("images", "seed", "info")]
    in_json = inputs(of, 2)
    in_json[0].set_data_from_numpy(np.array([b"a red circle"] * 2, dtype=object), binary_data=False)
    answer = client.infer(model, in_json, outputs=plain, headers=dict(headers))
    assert (answer.as_numpy("images") == images).all() and answer.as_numpy("seed").tolist() == [7, 8]

    for encoding in ("gzip", "deflate"):
        answer = client.infer(
            model,
            inputs(of, 2),
            headers=dict(headers),
            request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        )
        assert (answer.as_numpy("images") == images).all()

    more = {"init_image": images[0], "strength": np.array([0.5], dtype=np.float32)}
    drawn = client.infer(model, inputs(of, steps=4, **more), headers=dict(headers)).as_numpy("images")
    mask = np.zeros(images.shape[1:3], dtype=np.uint8)
    kept = client.infer(model, inputs(of, steps=4, mask=mask, **more), headers=dict(headers)).as_numpy("images")
    assert drawn.shape == kept.shape and (drawn != kept).any()
    file = np.array([mixed.as_numpy("encoded_image")[0]], dtype=object)
    again = client.infer(model, inputs(of, steps=4, **{**more, "init_image": file}), headers=dict(headers))
    assert (again.as_numpy("images") == drawn).all()

    # The client writes its headers into the caller's, so that the next request claims what is not there.
    shared = dict(headers)
    client.infer(model, inputs(of), headers=shared, request_compression_algorithm="gzip")
    message = refused(lambda: client.infer(model, in_json, headers=shared))
    assert "body" in message or "header" in message, message

    assert "steps" in refused(lambda: client.infer(model, inputs(of, steps=0), headers=dict(headers)))
    assert "nobody" in refused(lambda: client.infer("nobody", inputs(of), headers=dict(headers)))
    statistics = client.get_inference_statistics(headers=headers)["model_stats"]
    assert next(one for one in statistics if one["name"] == model)["inference_count"] >= 10
    return model, images


def grpc(model, images):
    of = tritonclient.grpc
    client = of.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata(headers=headers).name == "kiln"
    assert client.is_model_ready(model, headers=headers) and not client.is_model_ready("nobody", headers=headers)
    assert client.get_model_metadata(model, headers=headers).inputs[0].name == "prompt"
    answer = client.infer(model, inputs(of, 2), headers=headers, request_id="a")
    assert (answer.as_numpy("images") == images).all() and answer.get_response().id == "a"
    assert answer.as_numpy("seed").tolist() == [7, 8]
    for encoding in ("gzip", "deflate"):
        answer = client.infer(model, inputs(of, 2), headers=headers, compression_algorithm=encoding)
        assert (answer.as_numpy("images") == images).all()
    named = [of.InferRequestedOutput("png")]
    answer = client.infer(model, inputs(of), outputs=named, headers=headers, parameters={"scheduler": "euler"})
    assert Image.open(io.BytesIO(answer.as_numpy("png")[0])).size == images.shape[2:0:-1]
    assert answer.as_numpy("images") is None

    assert "steps" in refused(lambda: client.infer(model, inputs(of, steps=0), headers=headers))
    assert "nobody" in refused(lambda: client.infer("nobody", inputs(of), headers=headers))
    late = lambda: client.infer(model, inputs(of, steps=150), headers=headers, client_timeout=0.001)
    assert "Deadline" in refused(late)
    assert "timeout" in refused(lambda: client.infer(model, inputs(of, steps=150), headers=headers, timeout=1))

    answers = []
    client.start_stream(callback=lambda result, error: answers.append((result, error)), headers=headers)
    for i in range(4):
        # The third is refused, and the others are drawn.
        client.async_stream_infer(
            model, inputs(of, 2, steps=0 if i == 2 else 2), request_id=str(i), enable_empty_final_response=True
        )
    client.stop_stream()
    assert len(answers) == 4, answers
    assert [error is not None for _, error in answers] == [False, False, True, False], answers
    for i in (0, 1, 3):
        response = answers[i][0].get_response()
        assert response.id == str(i) and response.parameters["triton_final_response"].bool_param
        assert (answers[i][0].as_numpy("images") == images).all()
    if key != "none":
        assert "key" in refused(lambda: client.infer(model, inputs(of)))


model, images = http()
grpc(model, images)
print("all well")
