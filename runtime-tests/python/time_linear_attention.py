"""Time of one token of `com.microsoft.LinearAttention` by its sizes, by PyTorch's profiler.

    python3 time_linear_attention.py --rows 128 [--rule gated_delta] 96x64x96 96x64x80 64x128x96

A size is heads x features x values. The state is read and written in place, in f32 and in f16. Needs torch and
onnxruntime-gpu on a machine with a GPU; both must be built for the same CUDA.
"""

import argparse

import torch  # Before onnxruntime, which then finds the libraries of CUDA.
import numpy
import onnxruntime
from onnx import TensorProto, helper
from gpu_kernels import kernels

TYPES = {
    "f32": (TensorProto.FLOAT, torch.float32, numpy.float32),
    "f16": (TensorProto.FLOAT16, torch.float16, numpy.float16),
}
WARM_UP, RUNS = 3, 5
DEVICE = "cuda"
# Log decays are at most zero.
RANGES = {"g": (-1.0, 0.0)}
# What each update rule reads of every head and token beside queries, keys and values.
RULES = {"gated": ["g"], "gated_delta": ["g", "b"]}


def shapes(rows, heads, features, values, rule):
    packed = {"q": features, "k": features, "v": values, **dict.fromkeys(RULES[rule], 1)}
    inputs = {name: [rows, 1, heads * width] for name, width in packed.items()}
    state = [rows, heads, features, values]
    return {**inputs, "s": state}, {"y": inputs["v"], "t": state}


def model(inputs, outputs, heads, element, rule):
    node = helper.make_node(
        "LinearAttention", ["q", "k", "v", "s", *RULES[rule]], ["y", "t"], domain="com.microsoft",
        q_num_heads=heads, kv_num_heads=heads, update_rule=rule, scale=1.0,
    )
    declared = [[helper.make_tensor_value_info(name, element, shape) for name, shape in side.items()] for side in (inputs, outputs)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", *declared), opset_imports=opsets, ir_version=10)


def measure(rows, sizes, dtype, rule):
    element, torch_type, numpy_type = TYPES[dtype]
    heads, features, values = sizes
    inputs, outputs = shapes(rows, heads, features, values, rule)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = model(inputs, outputs, heads, element, rule)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    binding, tensors = session.io_binding(), {}
    for name, shape in inputs.items():
        low, high = RANGES.get(name, (0.0, 0.1))
        tensors[name] = (torch.rand(shape, device=DEVICE) * (high - low) + low).to(torch_type)
        binding.bind_input(name, DEVICE, 0, numpy_type, shape, tensors[name].data_ptr())
    tensors["y"] = torch.zeros(outputs["y"], dtype=torch_type, device=DEVICE)
    for name, tensor in (("y", tensors["y"]), ("t", tensors["s"])):
        binding.bind_output(name, DEVICE, 0, numpy_type, outputs[name], tensor.data_ptr())
    found = kernels(lambda: session.run_with_iobinding(binding), WARM_UP, RUNS)
    time = sum(event.device_time for event in found) / RUNS
    moved = 2 * tensors["s"].numel() * tensors["s"].element_size()
    size = "x".join(str(n) for n in sizes)
    print(f"{size:>12} {dtype}: {time:8.1f} us, {moved / time / 1e6:5.2f} TB/s of state")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", type=lambda text: [int(n) for n in text.split("x")])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rule", choices=RULES, default="gated")
    args = parser.parse_args()
    for sizes in args.sizes:
        for dtype in TYPES:
            measure(args.rows, sizes, dtype, args.rule)


if __name__ == "__main__":
    main()
