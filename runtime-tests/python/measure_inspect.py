"""Times `dijiang inspect` over graphs of many attentions, and over chains of shared nodes.

    measure_inspect.py [--dijiang PROGRAM] [--layers 24,48,96,192,384,2000] [--runs 3]

Each graph is a decoder of as many layers as are asked for, of head_dim 4 and two heads, spelled as torch.onnx does: what grows
is the number of nodes. A chain is a decoder of one layer whose hidden states have gone through `Add(x, x)` so many times, so
that the number of paths doubles with every node. Needs onnx and numpy. Prints the fastest of the runs and the most memory that
was resident (Linux).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, VOCAB = 8, 2, 11


class Builder:
    def __init__(self):
        self.nodes, self.weights, self.count = [], [], 0
        self.random = np.random.default_rng(0)

    def node(self, kind, *inputs, **attributes):
        self.count += 1
        out = f"v{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n{self.count}", **attributes))
        return out

    def constant(self, values, kind):
        self.count += 1
        name = f"c{self.count}"
        self.weights.append(numpy_helper.from_array(np.array(values, dtype=kind), name))
        return name

    def matrix(self, rows, columns):
        return self.constant(self.random.standard_normal((rows, columns)) * 0.3, np.float32)

    def heads(self, x):
        flat = self.node("MatMul", x, self.matrix(WIDTH, WIDTH))
        split = self.node("Reshape", flat, self.constant([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return split

    def layer(self, x, mask):
        q = self.node("Transpose", self.heads(x), perm=[0, 2, 1, 3])
        k = self.node("Transpose", self.heads(x), perm=[0, 2, 3, 1])
        v = self.node("Transpose", self.heads(x), perm=[0, 2, 1, 3])
        scores = self.node("Mul", self.node("MatMul", q, k), self.constant((WIDTH // HEADS) ** -0.5, np.float32))
        shares = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        back = self.node("Transpose", self.node("MatMul", shares, v), perm=[0, 2, 1, 3])
        joined = self.node("Reshape", back, self.constant([0, 0, WIDTH], np.int64))
        return self.node("Add", x, self.node("MatMul", joined, self.matrix(WIDTH, WIDTH)))


def model(layers, chain=0):
    b = Builder()
    x = b.node("Gather", b.matrix(VOCAB, WIDTH), "input_ids")
    for _ in range(chain):
        x = b.node("Add", x, x)
    width = b.node("Shape", "input_ids")
    length = b.node("Gather", width, b.constant([1], np.int64))
    square = b.node("Concat", length, length, axis=0)
    hidden = b.node("Expand", b.constant(-1e9, np.float32), square)
    mask = b.node("Trilu", hidden, b.constant(1, np.int64), upper=1)
    for _ in range(layers):
        x = b.layer(x, mask)
    b.nodes.append(helper.make_node("MatMul", [x, b.matrix(WIDTH, VOCAB)], ["logits"], name="head"))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB])
    graph = helper.make_graph(b.nodes, "many", [ids], [logits], b.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def measure(program, path):
    started = time.perf_counter()
    child = subprocess.Popen([program, "inspect", str(path)], stdout=subprocess.PIPE, text=True)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{path}: exit status {status}\n{said}")
    return seconds, usage.ru_maxrss / 1024, said.rstrip().splitlines()[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dijiang", default="dijiang")
    parser.add_argument("--layers", default="24,48,96,192,384,2000")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    settings = [(int(layers), 0) for layers in given.layers.split(",")] + [(1, 40)]
    print("| attentions | nodes | seconds | a node, us | MB | |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        for layers, chain in settings:
            made = model(layers, chain)
            path = Path(home) / f"{layers}-{chain}.onnx"
            onnx.save(made, path)
            runs = [measure(given.dijiang, path) for _ in range(given.runs)]
            seconds, memory, nodes = min(r[0] for r in runs), max(r[1] for r in runs), len(made.graph.node)
            told = runs[0][2] + (f", after {chain} of Add(x, x)" if chain else "")
            print(f"| {layers} | {nodes} | {seconds:.2f} | {seconds / nodes * 1e6:.0f} | {memory:.0f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
