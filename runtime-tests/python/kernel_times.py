"""Times of the kernels that a GPU runs for prefill.onnx or decode.onnx of a bundle, by PyTorch's profiler.

    python3 kernel_times.py BUNDLE/prefill.onnx --batch 1 --tokens 4096 --layers 24 [--top N]
    python3 kernel_times.py BUNDLE/decode.onnx --batch 128 --tokens 1 --layers 24
    python3 kernel_times.py BUNDLE/train/gradients.onnx --layers 24 --as-written

ONNX Runtime's own profile counts the host's time of a node, some 25 us each; this one records the device. Weights are
inputs of these graphs and get random numbers, as the time does not depend on them. Needs torch, onnx and onnxruntime-gpu on
a machine with a GPU; both must be built for the same CUDA. Kernels are launched one by one, or with --recorded together.
"""

import argparse
import collections
import pathlib

import torch  # Before onnxruntime, which then finds the libraries of CUDA.
import numpy
import onnxruntime
from onnx import TensorProto
from gpu_kernels import kernels

TYPES = {
    "tensor(float)": (torch.float32, numpy.float32),
    "tensor(float16)": (torch.float16, numpy.float16),
    "tensor(bfloat16)": (torch.bfloat16, TensorProto.BFLOAT16),
    "tensor(int64)": (torch.int64, numpy.int64),
}
WARM_UP, RUNS = 4, 5
DEVICE = "cuda"


def filled(name, dtype, shape):
    if dtype == torch.int64:
        return torch.ones(shape, dtype=dtype, device=DEVICE)
    numbers = torch.rand(shape, device=DEVICE) if name.startswith("past") else torch.randn(shape, device=DEVICE) * 0.02
    return numbers.to(dtype)


def bind(session, sizes):
    """A state is one buffer, past and present, as `generate` has it."""
    binding, tensors = session.io_binding(), {}
    for put, declared, make in (
        (binding.bind_input, session.get_inputs(), filled),
        (binding.bind_output, session.get_outputs(), lambda _, dtype, shape: torch.zeros(shape, dtype=dtype, device=DEVICE)),
    ):
        for io in declared:
            dtype, element = TYPES[io.type]
            shape = [dim if isinstance(dim, int) else sizes.get(dim, 1) for dim in io.shape]
            past = tensors.get(io.name.replace("present", "past_key_values", 1))
            tensor = past if past is not None and past.shape == tuple(shape) else make(io.name, dtype, shape)
            tensors[io.name] = tensor
            put(io.name, DEVICE, 0, element, shape, tensor.data_ptr())
    return binding, tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--layers", type=int, required=True, help="times are divided by it")
    parser.add_argument("--recorded", action="store_true", help="as a recorded run, and how long it takes in all")
    parser.add_argument("--as-written", action="store_true", help="without ONNX Runtime's optimiser, as training loads its graphs")
    parser.add_argument("--top", type=int, default=40)
    args = parser.parse_args()

    sizes = {"batch": args.batch, "sequence": args.tokens}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if args.as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1" if args.recorded else "0"})
    session = onnxruntime.InferenceSession(str(args.graph), options, providers=[provider])
    binding, _tensors = bind(session, sizes)
    found = kernels(lambda: session.run_with_iobinding(binding), WARM_UP, RUNS)

    times, counts = collections.Counter(), collections.Counter()
    for event in found:
        times[event.name] += event.device_time
        counts[event.name] += 1
    span = max(event.time_range.end for event in found) - min(event.time_range.start for event in found)
    each = RUNS * args.layers
    total = sum(times.values())
    print(f"{args.graph.name}, {args.batch} x {args.tokens}: {total / RUNS / 1e3:.2f} ms, {total / each:.0f} us a layer")
    print(f"from the first kernel to the last {span / RUNS / 1e3:.2f} ms, {len(found) / each:.0f} kernels a layer")
    for name, time in times.most_common(args.top):
        print(f"{time / each:8.1f} us a layer, {counts[name] / each:5.2f} of {time / counts[name]:6.1f}  {name[:110]}")


if __name__ == "__main__":
    main()
