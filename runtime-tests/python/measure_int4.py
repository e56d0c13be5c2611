"""What weights of four bits cost: the squared error of a checkpoint's projections by kind of block, and the time of one
product in ONNX Runtime.

    python3 measure_int4.py CHECKPOINT
"""

import pathlib
import sys
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

WHOLE, NARROWED = (1.0,), (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
LAYERS = 8


def lost(weight, block, parts, zero_points):
    """Squared error of a weight in blocks, the least of all parts of a block's range, over its squares."""
    blocks = weight.reshape(-1, block)
    least = np.full((len(blocks), 1), np.inf)
    low, high = np.minimum(blocks.min(1, keepdims=True), 0), np.maximum(blocks.max(1, keepdims=True), 0)
    far = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    for part in parts:
        scale = (high - low) * part / 15 if zero_points else far * part / -8
        scale = np.where(scale == 0, 1, scale)
        zero = np.clip(np.round(-low * part / scale), 0, 15) if zero_points else 8
        found = (np.clip(np.round(blocks / scale) + zero, 0, 15) - zero) * scale
        least = np.minimum(least, ((found - blocks) ** 2).sum(1, keepdims=True))
    return least.sum() / (weight**2).sum()


def seconds(rows, inputs, outputs, block, level):
    """Least time of one product; a float weight where there is no block."""
    random = np.random.default_rng(0)
    nodes, constants = [], []
    for i in range(LAYERS):
        if block is None:
            constants.append(numpy_helper.from_array(random.random((inputs, outputs), np.float32), f"w{i}"))
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
            continue
        count = inputs // block
        shapes = {f"b{i}": (outputs, count, block // 2), f"z{i}": (outputs, (count + 1) // 2)}
        for name, shape in shapes.items():
            constants.append(numpy_helper.from_array(random.integers(0, 256, shape, np.uint8), name))
        constants.append(numpy_helper.from_array(random.random((outputs, count), np.float32), f"s{i}"))
        sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": level}
        given = ["x", f"b{i}", f"s{i}", f"z{i}"]
        nodes.append(helper.make_node("MatMulNBits", given, [f"y{i}"], domain="com.microsoft", **sizes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inputs])
    ys = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [rows, outputs]) for i in range(LAYERS)]
    graph = helper.make_graph(nodes, "products", [x], ys, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    given, times = {"x": random.random((rows, inputs), np.float32)}, []
    for _ in range(30):
        started = time.perf_counter()
        session.run(None, given)
        times.append(time.perf_counter() - started)
    return min(times) / LAYERS


def main():
    tensors = load_file(pathlib.Path(sys.argv[1]) / "model.safetensors")
    names = sorted(name for name in tensors if "proj" in name)[::23]
    for block in (32, 128):
        weights = [tensors[name].astype(np.float32) for name in names if tensors[name].shape[1] % block == 0]
        for zero_points in (True, False):
            for what, parts in (("whole range", WHOLE), ("narrowed", NARROWED)):
                error = np.sqrt(np.mean([lost(weight, block, parts, zero_points) for weight in weights]))
                kind = "zero points" if zero_points else "no zero points"
                print(f"blocks of {block}, {kind}, {what}: error {error:.4f} ({len(weights)} weights)")
    for block, level in ((None, 0), (32, 0), (32, 4)):
        took = seconds(1, 576, 1536, block, level) * 1e6
        print(f"one row, 576 x 1536, block {block}, accuracy level {level}: {took:.1f} us")


main()
