"""Serves a diffusers pipeline over HTTP as its users do: FastAPI, uvicorn, and one thread that draws.

    pip install -r tests/peers/requirements.txt
    python tests/peers/diffusers_server.py models/shapes --port 8000 --threads 2

`POST /v1/images/generations` takes `prompt`, `negative_prompt`, `size`, `steps`, `guidance_scale` and `seed`, and
answers with a PNG file in base64, in the words of OpenAI's images API. `GET /healthz` answers once the model is loaded.
"""
import argparse
import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import torch
import uvicorn
from diffusers import DiffusionPipeline
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Asked(BaseModel):
    """What a client asks for."""
    prompt: str
    negative_prompt: str | None = None
    size: str = "512x512"
    steps: int = 50
    guidance_scale: float = 7.5
    seed: int | None = None


class Painter:
    """A pipeline, and the thread that draws with it: pipelines hold state and are not shared between threads."""

    def __init__(self, model):
        self.pipeline = DiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.thread = ThreadPoolExecutor(max_workers=1)

    def draw(self, asked, width, height):
        seed = torch.seed() if asked.seed is None else asked.seed
        image = self.pipeline(
            asked.prompt, negative_prompt=asked.negative_prompt, width=width, height=height,
            num_inference_steps=asked.steps, guidance_scale=asked.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed)).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    async def drawn(self, asked):
        width, height = sides(asked.size)
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.draw, asked, width, height)


def sides(size):
    try:
        width, height = map(int, size.split("x"))
    except ValueError:
        raise HTTPException(400, f"size is '{size}'; WIDTHxHEIGHT is needed") from None
    return width, height


def application(model, threads):
    @asynccontextmanager
    async def life(app):
        torch.set_num_threads(threads)
        app.state.painter = Painter(model)
        yield

    app = FastAPI(lifespan=life)

    @app.get("/healthz")
    async def health():
        return {"status": "ok"}

    @app.post("/v1/images/generations")
    async def generations(asked: Asked):
        picture = await app.state.painter.drawn(asked)
        return {"created": int(time.time()), "data": [{"b64_json": picture}]}

    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    app = application(options.model, options.threads)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
