#!/usr/bin/env bash
# Makes tests/gpu/inputs: all that tests/gpu/check.sh needs on a machine with an NVIDIA driver, Python and PyTorch that can
# not reach anything, in pieces of at most 30 MiB, for GPUs of one architecture (ARCHITECTURE, 90 without it). Needs Rust,
# pip and a network.
set -euo pipefail
cd "$(dirname "$0")/../.."

inputs=tests/gpu/inputs
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$inputs"
mkdir -p "$inputs" "$work/tree/lib" "$work/tree/wheels"

cargo build --release --bin kiln
cargo build --release -p kiln-runtime --example swaps
target=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
for program in kiln examples/swaps; do
    cp "$target/release/$program" "$work/tree/"
    strip "$work/tree/$(basename "$program")"
done
for library in cuda tensorrt-rtx; do
    cp "$(dirname "$("$target/release/kiln" runtime install "$library")")"/lib{onnxruntime,tensorrt}*.so* "$work/tree/lib/" 2>/dev/null || true
done
ls "$work"/tree/lib/libonnxruntime.so.* "$work"/tree/lib/libtensorrt_rtx.so.*
# CUDA's own libraries come with PyTorch; the provider's code for other GPUs stays here.
provider=$work/tree/lib/libonnxruntime_providers_cuda.so
python3 tests/gpu/thin.py "$provider" "$provider" "${ARCHITECTURE:-90}"
# What diffusers needs beside PyTorch to run a UNet and a VAE; wheels for any Python from 3.11 on.
python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 --abi abi3 --abi none \
    --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --platform any --dest "$work/tree/wheels" \
    diffusers==0.42.1 huggingface-hub==1.* safetensors importlib-metadata zipp filelock tqdm packaging typing-extensions \
    httpx httpcore h11 anyio idna certifi sniffio requests urllib3 fsspec hf-xet shellingham typer click
python3 tests/gpu/pack.py "$work/tree" "$inputs"
du -sh "$inputs"/*
