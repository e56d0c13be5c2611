"""What serving a bundle costs on a device: the time of a prompt, the time of a token, and the nodes that run.

    python3 measure_serving.py DIJIANG BUNDLE DEVICE TOKENS[,TOKENS…] [--new N] [--threads N]

On a GPU each prompt is also fed and continued without recorded runs, and on the processor. Every way must give the
same tokens as the first; f32 bundles do, others are told how many agree. The first time of a way includes loading its
graphs, so each is run twice and the second one printed. With the Python packages onnx and
onnxruntime the nodes of the graphs are counted as they run on the processor, with one row of one token, and of 4,096 in
prefill.onnx. In f16 the processor adds casts, so that f32 bundles say more of what a GPU runs.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

# These move nothing.
VIEWS = ("Reshape", "Squeeze", "Unsqueeze")
# A GPU runs these on the processor, or branches, and then replays nothing.
HELD = {"Shape", "Size", "Range", "If", "Loop", "Scan", "NonZero"}
TEXT = "The king went to the sea, and the sea was still. "


def generate(dijiang, bundle, prompt, new, device, more):
    command = [dijiang, "generate", bundle, "--prompt-file", prompt, "-n", str(new), "--device", device, "--json"]
    done = subprocess.run(command + more, capture_output=True, text=True)
    if done.returncode != 0:
        return None, done.stderr.strip()
    return json.loads(done.stdout), None


def measure(args, tokens, scratch):
    prompt = pathlib.Path(scratch) / "prompt.txt"
    # The fixtures' tokenizers take a byte for a token, others about four; the row says what it came to.
    prompt.write_text((TEXT * (tokens // len(TEXT) + 1))[:tokens])
    threads = ["--threads", str(args.threads)] if args.threads else []
    ways = [(args.device, threads)]
    if args.device != "cpu":
        ways += [(args.device, ["--no-cuda-graph"]), ("cpu", [])]
    first = None
    for device, more in ways:
        for _ in range(2):
            found, error = generate(args.dijiang, args.bundle, str(prompt), args.new, device, more)
        name = " ".join([device, *more])
        if found is None:
            print(f"{tokens:>9}  {name:<22} {error}")
            continue
        first = first or found["tokens"]
        alike = sum(a == b for a, b in zip(first, found["tokens"]))
        each = 1000 * found["decode_seconds"] / max(1, len(found["tokens"]) - 1)
        print(
            f"{found['prompt_tokens']:>9}  {name:<22} prompt {found['prefill_seconds']:8.3f} s  token {each:8.3f} ms"
            f"  state {found['state_bytes'] / 1e6:7.2f} MB  tokens as the first {alike} of {len(first)}"
        )


def count_nodes(bundle, scratch):
    try:
        import onnx
        import onnxruntime
    except ImportError:
        print("nodes: onnx and onnxruntime are not installed")
        return
    for name, tokens in [("model.onnx", 1), ("decode.onnx", 1), ("prefill.onnx", 4096)]:
        path = pathlib.Path(bundle) / name
        if not path.exists():
            continue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        ran = str(pathlib.Path(scratch) / name)
        options.optimized_model_filepath = ran
        inputs = onnx.load(path, load_external_data=False).graph.input
        for shape in [i.type.tensor_type.shape.dim for i in inputs if i.name.endswith(("ids", "mask"))]:
            for dim, size in zip(shape, [1, tokens]):
                if dim.dim_param:
                    options.add_free_dimension_override_by_name(dim.dim_param, size)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(ran, load_external_data=False).graph.node
        layers = sum(i.name.endswith(".recurrent_state") for i in inputs)
        moved = [n for n in nodes if n.op_type not in VIEWS]
        kinds = collections.Counter(n.op_type for n in moved).most_common(8)
        shown = ", ".join(f"{kind} {count}" for kind, count in kinds)
        print(
            f"{name}: {len(nodes)} nodes, {len(nodes) / max(1, layers):.1f} a layer, {len(moved) / max(1, layers):.1f}"
            f" without {' and '.join(VIEWS)}: {shown}"
        )
        held = sorted({n.op_type for n in nodes} & HELD)
        if held and name != "model.onnx":
            print(f"{name}: not to be recorded on a GPU, because of {', '.join(held)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dijiang")
    parser.add_argument("bundle")
    parser.add_argument("device")
    parser.add_argument("tokens", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        count_nodes(args.bundle, scratch)
        for tokens in args.tokens:
            measure(args, tokens, scratch)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
