"""Times of one token's softmax over a ring of keys and values on a GPU, by PyTorch's profiler: as three operators, with
values as they are and transposed, and with keys first, as ONNX's `Attention`, as ONNX Runtime's `MultiHeadAttention`, with a mask
and without, as its `GroupQueryAttention` that is given no new keys, and as its `DecoderMaskedMultiHeadAttention` of another sequence.

    python3 time_window.py [--rows 128] [--heads 16] [--head-dim 64] [SLOTS…]

One line for each way and ring. Needs torch, onnx and onnxruntime-gpu on a machine with a GPU; with --device cpu the graphs are
only run, and compared.
"""

import argparse

import numpy
import onnx
import torch  # Before onnxruntime, which then finds the libraries of CUDA.
import onnxruntime
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT16


def plain(nodes, slots, args):
    scale = helper.make_tensor("scale", FLOAT, [], [args.head_dim**-0.5])
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Mul", ["s", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["p"], axis=-1),
    ]
    return [scale]


def three(nodes, slots, args):
    weights = plain(nodes, slots, args)
    nodes.append(helper.make_node("MatMul", ["p", "v"], ["y"]))
    return weights


def transposed(nodes, slots, args):
    """The values are [.., head_dim, slots] in memory."""
    weights = plain(nodes, slots, args)
    shape = [args.rows, args.heads, args.head_dim, slots]
    weights.append(helper.make_tensor("shape", TensorProto.INT64, [4], shape))
    nodes.append(helper.make_node("Reshape", ["v", "shape"], ["turned"]))
    nodes.append(helper.make_node("Transpose", ["turned"], ["values"], perm=[0, 1, 3, 2]))
    nodes.append(helper.make_node("MatMul", ["p", "values"], ["y"]))
    return weights


def keys_first(nodes, slots, args):
    """Keys times the query, which is a matrix times a vector."""
    scale = helper.make_tensor("scale", FLOAT, [], [args.head_dim**-0.5])
    column = helper.make_tensor("column", TensorProto.INT64, [4], [args.rows, args.heads, args.head_dim, 1])
    row = helper.make_tensor("row", TensorProto.INT64, [4], [args.rows, args.heads, 1, slots])
    nodes += [
        helper.make_node("Reshape", ["q", "column"], ["qt"]),
        helper.make_node("MatMul", ["k", "qt"], ["st"]),
        helper.make_node("Reshape", ["st", "row"], ["s"]),
        helper.make_node("Mul", ["s", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    return [scale, column, row]


def grouped(nodes, slots, args):
    """The order of slots does not matter, so that a count of them is the mask. Past and present are one buffer."""
    flat = helper.make_tensor("flat", TensorProto.INT64, [3], [args.rows, 1, args.heads * args.head_dim])
    back = helper.make_tensor("back", TensorProto.INT64, [4], [args.rows, args.heads, 1, args.head_dim])
    begin = helper.make_tensor("begin", TensorProto.INT64, [1], [0])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    counts = helper.make_tensor("counts", TensorProto.INT32, [args.rows], [slots - 1] * args.rows)
    total = helper.make_tensor("total", TensorProto.INT32, [1], [slots])
    nodes += [
        helper.make_node("Reshape", ["q", "flat"], ["query"]),
        helper.make_node("Slice", ["query", "begin", "begin", "axis"], ["none"]),
        helper.make_node(
            "GroupQueryAttention",
            ["query", "none", "none", "k", "v", "counts", "total"],
            ["o", "present_k", "present_v"],
            domain="com.microsoft",
            num_heads=args.heads,
            kv_num_heads=args.heads,
        ),
        helper.make_node("Reshape", ["o", "back"], ["y"]),
    ]
    return [flat, back, begin, axis, counts, total]


def attention(nodes, slots, args):
    nodes.append(helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"]))
    return []


def multi_head(nodes, slots, args, extra):
    """The query is [rows, 1, heads x head_dim] there, which is the same memory."""
    flat = helper.make_tensor("flat", TensorProto.INT64, [3], [args.rows, 1, args.heads * args.head_dim])
    back = helper.make_tensor("back", TensorProto.INT64, [4], [args.rows, args.heads, 1, args.head_dim])
    nodes += [
        helper.make_node("Reshape", ["q", "flat"], ["query"]),
        helper.make_node("MultiHeadAttention", ["query", "k", "v", *extra], ["o"], domain="com.microsoft", num_heads=args.heads),
        helper.make_node("Reshape", ["o", "back"], ["y"]),
    ]
    return [flat, back]


def masked_heads(nodes, slots, args):
    return multi_head(nodes, slots, args, ("", "", "mask"))


def unmasked_heads(nodes, slots, args):
    return multi_head(nodes, slots, args, ())


def one_kernel(nodes, slots, args):
    """The keys are [.., head_dim / 8, slots, 8] in memory on a GPU."""
    flat = helper.make_tensor("flat", TensorProto.INT64, [3], [args.rows, 1, args.heads * args.head_dim])
    back = helper.make_tensor("back", TensorProto.INT64, [4], [args.rows, args.heads, 1, args.head_dim])
    held = helper.make_tensor("held", TensorProto.INT32, [args.rows, slots], [1] * args.rows * slots)
    nodes += [
        helper.make_node("Reshape", ["q", "flat"], ["query"]),
        helper.make_node(
            "DecoderMaskedMultiHeadAttention", ["query", "k", "v", "held"], ["o"], domain="com.microsoft", num_heads=args.heads
        ),
        helper.make_node("Reshape", ["o", "back"], ["y"]),
    ]
    return [flat, back, held]


def model(write, slots, args):
    nodes = []
    weights = write(nodes, slots, args)
    shapes = {
        "q": [args.rows, args.heads, 1, args.head_dim],
        "k": [args.rows, args.heads, slots, args.head_dim],
        "v": [args.rows, args.heads, slots, args.head_dim],
        "mask": [args.rows, 1, 1, slots],
    }
    inputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", FLOAT, shapes["q"])]
    if write is grouped:
        outputs += [helper.make_tensor_value_info(f"present_{name}", FLOAT, shapes[name]) for name in "kv"]
    graph = helper.make_graph(nodes, "window", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    return made.SerializeToString(), shapes


def on_gpu(session, values):
    from gpu_kernels import kernels

    binding, tensors, declared = session.io_binding(), [], {io.name for io in session.get_outputs()}
    for name, value in values.items():
        tensor = torch.from_numpy(value).cuda()
        tensors.append(tensor)
        if f"present_{name}" in declared:
            binding.bind_output(f"present_{name}", "cuda", 0, numpy.float16, list(value.shape), tensor.data_ptr())
        if name not in {io.name for io in session.get_inputs()}:
            continue
        binding.bind_input(name, "cuda", 0, numpy.float16, list(value.shape), tensor.data_ptr())
    out = torch.zeros(values["q"].shape, dtype=torch.float16, device="cuda")
    binding.bind_output("y", "cuda", 0, numpy.float16, list(out.shape), out.data_ptr())
    runs = 20
    found = kernels(lambda: session.run_with_iobinding(binding), 5, runs)
    names = sorted({event.name[:60] for event in found})
    return out.cpu().numpy(), sum(event.device_time for event in found) / runs, len(found) / runs, names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slots", nargs="*", type=int, default=[36, 40, 68, 72, 256, 260])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    args = parser.parse_args()
    provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[args.device]
    for slots in args.slots:
        for write in (three, transposed, keys_first, attention, masked_heads, unmasked_heads, grouped, one_kernel):
            text, shapes = model(write, slots, args)
            session = onnxruntime.InferenceSession(text, providers=[provider])
            random = numpy.random.default_rng(0)
            values = {name: random.standard_normal(shape).astype(numpy.float16) for name, shape in shapes.items()}
            if args.device == "cpu":
                known = {io.name for io in session.get_inputs()}
                out = session.run(None, {name: value for name, value in values.items() if name in known})[0]
                print(f"{slots} slots, {write.__name__}: {float(numpy.abs(out).mean()):.4f}")
                continue
            _, us, count, names = on_gpu(session, values)
            print(f"{slots} slots, {write.__name__}: {us:.1f} us in {count:.0f} kernels: {'; '.join(names)}")


if __name__ == "__main__":
    main()
