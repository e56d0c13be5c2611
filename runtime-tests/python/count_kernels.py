"""Kernels that a GPU runs for one token in one layer of decode.onnx, by operator.

    python3 count_kernels.py FEWER MORE [--batch N]

FEWER and MORE are bundles of one model with different numbers of layers: what MORE has in addition, divided by the
layers in addition, is a layer. The graphs are those that ONNX Runtime saves after its own optimiser (extended), on the
processor. What CUDA does otherwise is counted as CUDA does it: casts that are put in for lack of half-precision kernels
are left out, activations that are taken apart for the same reason are one, a transposed weight is read by the product
itself (FusedMatMul), and a sum that only a softmax reads is part of it (BiasSoftmax). Reshapes run no kernel, but one
that gives an output of the graph copies it. A Gemm with a bias, which first copies it, is one kernel and a copy.
"""

import argparse
import collections
import pathlib
import tempfile

import onnx
import onnxruntime

FREE = {"Reshape", "Squeeze", "Unsqueeze", "Identity", "Constant", "Shape"}
ACTIVATIONS = {"Gelu", "FastGelu", "QuickGelu", "BiasGelu"}
COPIES = "copies"
INLINED = "_inlfunc_"


def optimised(bundle, batch, scratch):
    path = pathlib.Path(bundle) / "decode.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(pathlib.Path(scratch) / "decode.onnx")
    written = onnx.load(path, load_external_data=False).graph
    for dim in {d.dim_param for i in written.input for d in i.type.tensor_type.shape.dim if d.dim_param}:
        options.add_free_dimension_override_by_name(dim, batch)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ran = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    whole = [n for n in ran.node if not any(INLINED in name for name in [*n.input, *n.output])]
    if len(whole) < len(ran.node):
        whole += [n for n in written.node if n.op_type in ACTIVATIONS]
    return [n for n in whole if not n.name.startswith("InsertedPrecisionFreeCast")], ran


def kernels(nodes, graph):
    returned = {o.name for o in graph.output}
    given = {i.name for i in graph.input}
    readers = collections.defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node.op_type)
    counts = collections.Counter()
    for node in nodes:
        read_by = set(readers[node.output[0]])
        is_part = (node.op_type == "Add" and read_by == {"Softmax"}) or (
            node.op_type == "Transpose" and read_by <= {"MatMul", "FusedMatMul"} and node.input[0] in given
        )
        counts[COPIES] += node.op_type in FREE and node.output[0] in returned
        if node.op_type in FREE or is_part:
            continue
        counts[node.op_type] += 1
        counts[COPIES] += node.op_type == "Gemm" and len(node.input) == 3
    return counts, sum(i.name.endswith("recurrent_state") for i in graph.input)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fewer")
    parser.add_argument("more")
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (few, few_layers), (many, many_layers) = (
            kernels(*optimised(bundle, args.batch, scratch)) for bundle in [args.fewer, args.more]
        )
    each = {op: (many[op] - few[op]) / (many_layers - few_layers) for op in many}
    for op, count in sorted(each.items(), key=lambda row: (-row[1], row[0])):
        if count:
            print(f"{count:6g}  {op}")
    copies = each.pop(COPIES, 0)
    print(f"{sum(each.values()):6g}  kernels a layer, and {copies:g} copies")


if __name__ == "__main__":
    main()
