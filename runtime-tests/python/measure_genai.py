"""How fast onnxruntime-genai decodes a model of its own builder on a GPU: milliseconds a token, and of a prompt.

    python3 measure_genai.py MODEL [--batch 1,32] [--context 2048] [--steps 16] [--fill]

MODEL is a directory that `python3 -m onnxruntime_genai.models.builder -i CHECKPOINT -o MODEL -p fp16 -e cuda` wrote. --fill
writes its weights anew with random numbers of the same sizes: times do not depend on them, and the graph alone is small.
genai 0.18 takes 32 rows at most. Needs onnxruntime-genai-cuda and onnxruntime-gpu of the same CUDA. A line of JSON for each
batch; medians over the steps.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy
import onnxruntime_genai


def fill(model):
    """Random f16 of small size, as many bytes as the graph's external data takes."""
    import onnx

    graph = onnx.load(model / "model.onnx", load_external_data=False).graph
    parts = [{entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer]
    size = max((int(part["offset"]) + int(part["length"]) for part in parts if part), default=0)
    generator = numpy.random.default_rng(0)
    with open(model / "model.onnx.data", "wb") as file:
        for begin in range(0, size, 1 << 27):
            count = (min(1 << 27, size - begin) + 1) // 2
            file.write((generator.standard_normal(count, dtype=numpy.float32) * 0.02).astype(numpy.float16).tobytes())


def measure(model, batch, context, steps):
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=context + steps + 1, batch_size=batch, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    tokens = numpy.random.default_rng(1).integers(3, 1000, (batch, context), dtype=numpy.int32)
    begun = time.perf_counter()
    generator.append_tokens(tokens)
    generator.generate_next_token()
    prompt = time.perf_counter() - begun
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        generator.generate_next_token()
        seconds.append(time.perf_counter() - begun)
    return {
        "batch": batch,
        "context": context,
        "prompt_ms": round(1000 * prompt, 1),
        "token_ms": round(1000 * statistics.median(seconds), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--fill", action="store_true")
    args = parser.parse_args()
    if args.fill:
        fill(args.model)
    model = onnxruntime_genai.Model(str(args.model))
    measure(model, 1, 64, 2)
    for batch in args.batch.split(","):
        print(json.dumps(measure(model, int(batch), args.context, args.steps)), flush=True)


if __name__ == "__main__":
    main()
