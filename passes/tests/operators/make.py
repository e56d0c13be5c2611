# /// script
# dependencies = ["numpy", "onnx", "onnxruntime==1.31.1"]
# ///
"""Writes `reference.txt` beside itself: single operators as text graphs over constants, each with
what ONNX Runtime computes for it."""

import itertools
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

NAMES = {"float32": "f32", "int64": "i64", "int32": "i32", "uint8": "u8", "bool": "bool"}
MS = "com.microsoft"
rng = np.random.default_rng(1)


def f(*dims):
    """Numbers that are exact in f32 and short in text."""
    return (rng.integers(-200, 200, dims) / 64).astype(np.float32)


def i(values, dtype=np.int64):
    return np.array(values, dtype)


def number(x):
    if isinstance(x, (bool, np.bool_)):
        return str(int(x))
    if isinstance(x, (float, np.floating)):
        return repr(float(x))
    return str(int(x))


def tensor(x):
    body = ", ".join(number(v) for v in x.reshape(-1))
    return f"{NAMES[str(x.dtype)]}[{', '.join(map(str, x.shape))}] = [{body}]"


def attribute(name, value):
    if isinstance(value, str):
        return f'{name}: "{value}"'
    return f"{name}: {value!r}"


cases = []


def case(op, inputs, outputs=1, domain="", opset=23, keep=None, **attrs):
    """Attributes whose name ends in `_input` are inputs in ONNX and attributes in the text."""
    inputs = [x if x is None else np.asarray(x) for x in inputs]
    names = [f"i{n}" if x is not None else "" for n, x in enumerate(inputs)]
    wanted = [n for n in range(outputs) if keep is None or n in keep]
    outs = [f"o{n}" if n in wanted else "" for n in range(outputs)]
    while outs and not outs[-1]:
        outs.pop()
    onnx_attrs, extra = {}, []
    for key, value in attrs.items():
        if key.endswith("_input"):
            extra.append((key, i(value)))
        else:
            onnx_attrs[key] = value
    node = helper.make_node(op, names + [k for k, _ in extra], outs, domain=domain, **onnx_attrs)
    types = {v: k for k, v in {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.INT32: "int32", TensorProto.UINT8: "uint8", TensorProto.BOOL: "bool"}.items()}
    feeds = {n: x for n, x in zip(names, inputs) if n} | dict(extra)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, types[str(x.dtype)], x.shape) for n, x in feeds.items()],
        [helper.make_value_info(o, helper.make_tensor_type_proto(0, None)) for o in outs if o],
    )
    for o in graph.output:
        o.ClearField("type")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [np.asarray(x) for x in session.run(None, feeds)]
    lines = ['graph "g" {']
    for n, x in zip(names, inputs):
        if n:
            lines.append(f"  const %{n}: {tensor(x)}")
    listed = ", ".join(f"%o{n}" for n in range(len(outs)))
    given = ", ".join(f"%{n}" if n else "_" for n in names)
    shown = [attribute(k.removesuffix("_input"), v) for k, v in attrs.items()]
    shown = f" {{{', '.join(shown)}}}" if shown else ""
    qualified = f"{domain}.{op}" if domain else op
    lines.append(f'  {listed} = {qualified}({given}){shown} "{op}"')
    lines += [f'  output "o{n}" %o{n}' for n in wanted]
    lines.append("}")
    lines += [f"expect o{n}: {tensor(x)}" for n, x in zip(wanted, found)]
    cases.append("\n".join(lines))


# Activations.
x = f(2, 3)
case("Gelu", [x])
case("Gelu", [x], approximate="tanh")
case("Gelu", [x], domain=MS)
case("BiasGelu", [x, f(3)], domain=MS)
case("FastGelu", [x], domain=MS)
case("FastGelu", [x, f(3)], domain=MS)
case("QuickGelu", [x], domain=MS)
case("QuickGelu", [x], domain=MS, alpha=1.0)
for op in ["Elu", "LeakyRelu", "Selu", "HardSigmoid", "HardSwish"]:
    case(op, [x])
case("LeakyRelu", [x], alpha=0.3)

# Element by element.
case("Sign", [f(4)])
case("Round", [np.array([0.5, 1.5, -2.5, 2.4], np.float32)])
case("Mod", [i([7, -7, 7, -7]), i([3, 3, -3, -3])])
case("Mod", [np.array([7.5, -7.5], np.float32), np.array([2.0, 2.0], np.float32)], fmod=1)
case("Xor", [i([1, 0, 1], bool), i([1, 1, 0], bool)])
case("Clip", [x, np.array(-1.0, np.float32), np.array(1.5, np.float32)])
case("Abs", [i([3, -4])])

# Arranging and picking.
case("Flatten", [f(2, 3, 2)], axis=2)
case("Tile", [f(2, 1), i([2, 3])])
case("Size", [f(2, 3)])
case("Dropout", [x])
case("GatherElements", [f(2, 3), i([[0, -1], [2, 2]])], axis=1)
case("GatherND", [f(2, 3, 2), i([[0, 1], [1, -1]])])
case("GatherND", [f(2, 3, 2), i([[1], [0]])], batch_dims=1)
case("ScatterND", [f(4, 2), i([[1], [3]]), f(2, 2)])
case("ScatterND", [f(2, 2), i([[[0, 1]], [[1, 0]]]), f(2, 1)])
case("ArgMax", [f(2, 4)], axis=1, keepdims=0)
case("ArgMin", [f(2, 4)])
case("OneHot", [i([0, -1, 2]), i(3), np.array([0.0, 5.0], np.float32)])

# Reductions.
for op in ["ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"]:
    case(op, [f(2, 2, 3)], axes_input=[0, 2], keepdims=0)
case("LogSoftmax", [x], axis=0)

# Products.
for ta, tb in itertools.product([0, 1], [0, 1]):
    a = f(2, 3, 2) if ta else f(2, 2, 3)
    b = f(2, 2, 3) if tb else f(2, 3, 2)
    case("FusedMatMul", [a, b], domain=MS, alpha=0.25, transA=ta, transB=tb)
case("FusedGemm", [f(2, 3), f(2, 3), f(2)], domain=MS, transB=1, alpha=0.5, beta=2.0, activation="Relu")
case("Einsum", [f(1, 2, 2, 3), f(1, 2, 3, 3)], equation="bhqd,bhkd->bhqk")
case("Einsum", [f(1, 2, 2, 3), f(1, 2, 3, 3)], equation="bhqk,bhkd->bqhd")
case("Einsum", [f(2, 3), f(3, 2)], equation="ij,jk")

# Norms.
case("RMSNormalization", [f(2, 4), f(4)], epsilon=1e-6)
case("RMSNormalization", [f(2, 2, 3), f(2, 3)], axis=1)
case("SimplifiedLayerNormalization", [f(2, 4), f(4)], epsilon=1e-6, axis=-1)
case("SkipLayerNormalization", [f(1, 2, 4), f(1, 2, 4), f(4), f(4), f(4)], 4, domain=MS, keep=[0, 3], epsilon=1e-5)
case("SkipLayerNormalization", [f(1, 2, 4), f(1, 2, 4), f(4)], domain=MS, epsilon=1e-5)
case("SkipSimplifiedLayerNormalization", [f(1, 2, 4), f(1, 2, 4), f(4), f(4)], 4, domain=MS, keep=[0, 3], epsilon=1e-6)
ids = i([[1, 0, 2], [3, 3, 1]], np.int32)
segments = i([[0, 0, 1], [1, 1, 0]], np.int32)
tables = [f(4, 4), f(5, 4), f(2, 4), f(4), f(4)]
case("EmbedLayerNormalization", [ids, segments, *tables, i([[1, 1, 0], [1, 1, 1]], np.int32)], 3, domain=MS, epsilon=1e-6)
case("EmbedLayerNormalization", [ids, None, *tables[:2], None, *tables[3:], None, i([[0, 2, 4], [1, 1, 0]], np.int32)], 3, domain=MS, keep=[0, 2], epsilon=1e-6)

# Weights in blocks of few bits; their numbers are their own, so that the others stay.
few = np.random.default_rng(2)


def packed(*dims):
    return few.integers(0, 256, dims).astype(np.uint8)


def short(*dims):
    return (few.integers(-200, 200, dims) / 64).astype(np.float32)


blocks = dict(domain=MS, K=20, N=3, block_size=16)
case("MatMulNBits", [short(2, 20), packed(3, 2, 8), short(6)], bits=4, **blocks)
case("MatMulNBits", [short(1, 2, 20), packed(3, 2, 8), short(6), packed(3, 1)], bits=4, **blocks)
case("MatMulNBits", [short(2, 20), packed(3, 2, 16), short(6), packed(3, 2)], bits=8, **blocks)

# Rotary embedding.
cos, sin = f(6, 2), f(6, 2)
positions = i([[0, 1, 2], [3, 5, 4]])
for interleaved in [0, 1]:
    case("RotaryEmbedding", [f(2, 2, 3, 4), cos, sin, positions], interleaved=interleaved)
    case("RotaryEmbedding", [f(2, 2, 3, 4), positions, cos, sin], domain=MS, interleaved=interleaved)
case("RotaryEmbedding", [f(2, 3, 8), cos, sin, positions], num_heads=2)
case("RotaryEmbedding", [f(2, 2, 3, 4), f(2, 3, 2), f(2, 3, 2)])
case("RotaryEmbedding", [f(2, 2, 3, 6), cos, sin, positions], rotary_embedding_dim=4)
case("RotaryEmbedding", [f(2, 3, 8), i([2]), cos, sin], domain=MS)
case("RotaryEmbedding", [f(2, 3, 12), positions, cos, sin], domain=MS, num_heads=2, rotary_embedding_dim=4)

# Attention.
q, k, v = f(2, 4, 3, 4), f(2, 2, 3, 4), f(2, 2, 3, 4)
case("Attention", [q, k, v])
case("Attention", [q, k, v], scale=0.3, is_causal=1)
case("Attention", [q, k, v, f(3, 3)])
open_ = i([[[[0, 0, 0], [1, 1, 0], [1, 1, 1]]]], bool)
case("Attention", [q, k, v, open_])
case("Attention", [q, k, v, f(2, 1, 3, 5), f(2, 2, 2, 4), f(2, 2, 2, 4)], 3, is_causal=1)
case("Attention", [f(2, 3, 8), f(2, 3, 4), f(2, 3, 4)], q_num_heads=2, kv_num_heads=1)

hidden, weights, bias = f(2, 3, 4), f(4, 12), f(12)
case("Attention", [hidden, weights, bias], domain=MS, num_heads=2)
case("Attention", [hidden, weights, bias, i([2, 3], np.int32)], domain=MS, num_heads=2, mask_filter_value=-50.0)
case("Attention", [hidden, weights, bias, i([[1, 1, 0], [0, 1, 1]], np.int32)], domain=MS, num_heads=2, unidirectional=1, scale=0.2)
case("Attention", [hidden, weights, bias, None, None, f(2, 2, 3, 3)], domain=MS, num_heads=2)
case("Attention", [hidden, f(4, 10), f(10)], domain=MS, num_heads=2, qkv_hidden_sizes=[4, 4, 2])

case("MultiHeadAttention", [f(2, 3, 4), f(2, 2, 4), f(2, 2, 6)], domain=MS, num_heads=2)
case("MultiHeadAttention", [f(2, 3, 4), f(2, 3, 4), f(2, 3, 4), f(12), i([[1, 1, 0], [1, 1, 1]], np.int32)], domain=MS, num_heads=2, unidirectional=1)
case("MultiHeadAttention", [f(2, 2, 4), f(2, 2, 4), f(2, 2, 4), None, None, f(2, 2, 2, 3), f(2, 2, 1, 2), f(2, 2, 1, 2)], 3, domain=MS, num_heads=2)

# Its heads come in multiples of 16.
rope = [f(6, 8), f(6, 8)]
grouped = dict(domain=MS, num_heads=2, kv_num_heads=1)
lens = i([2, 1], np.int32)
case("GroupQueryAttention", [f(2, 3, 32), f(2, 3, 16), f(2, 3, 16), None, None, i([2, 2], np.int32), i(3, np.int32)], 3, **grouped)
empty = np.zeros((2, 1, 0, 16), np.float32)
case("GroupQueryAttention", [f(2, 3, 64), None, None, empty, empty, lens, i(3, np.int32), *rope], 3, do_rotary=1, **grouped)
past = [f(1, 1, 3, 16), f(1, 1, 3, 16)]
case("GroupQueryAttention", [f(1, 1, 64), None, None, *past, i([3], np.int32), i(4, np.int32), *rope], 3, do_rotary=1, scale=0.25, **grouped)
case("GroupQueryAttention", [f(1, 2, 64), None, None, *past, i([4], np.int32), i(5, np.int32), *rope, None, f(1, 1, 2, 5)], 3, do_rotary=1, rotary_interleaved=1, **grouped)

case("ScatterND", [f(4, 2), i([[3], [1], [-1]]), f(3, 2)], reduction="add")
case("ScatterND", [f(2, 2), i([[[0, 1]], [[0, 1]]]), f(2, 1)], reduction="add")
case("ScatterElements", [f(2, 3), i([[0, 2], [-1, 1]]), f(2, 2)], axis=1)
case("ScatterElements", [f(3, 2), i([[0, 2], [-3, 1]]), f(2, 2)])
case("ScatterElements", [f(2, 3), i([[0, 0, 2], [-1, 2, 2]]), f(2, 3)], axis=-1, reduction="add")
case("ReduceLogSumExp", [f(2, 3)], keepdims=0)
case("ReduceLogSumExp", [f(2, 3, 2)], axes_input=[0, -1])
# Rows that have less of the past than others write over the rest of it.
shorter = [f(2, 1, 3, 16), f(2, 1, 3, 16), i([3, 1], np.int32), i(4, np.int32)]
case("GroupQueryAttention", [f(2, 1, 64), None, None, *shorter, *rope], 3, do_rotary=1, **grouped)
case("LinearAttentionGate", [f(2, 2, 3), f(3), f(3), f(2, 2, 3)], 2, domain=MS)
case("LinearAttentionGate", [f(2, 1, 3), f(3), f(3)], domain=MS)
# Keys and values of another sequence, by head.
case("MultiHeadAttention", [f(2, 1, 4), f(2, 2, 3, 2), f(2, 2, 3, 2), None, None, f(2, 1, 1, 3)], domain=MS, num_heads=2)
# Scores are capped before a mask closes some of them.
for opset in [23, 24]:
    case("Attention", [q, k, v, f(3, 3)], opset=opset, softcap=1.5)
case("Attention", [q, k, v, open_], softcap=1.5, is_causal=1)
case("InstanceNormalization", [f(2, 2, 3), f(2), f(2)], epsilon=1e-3)
case("InstanceNormalization", [f(1, 2, 2, 2), f(2), f(2)])
rows = i([[1, 0], [2, -1]])
table = dict(domain=MS, block_size=16, gather_axis=0, quantize_axis=1)
case("GatherBlockQuantized", [packed(3, 16), rows, short(3, 2)], bits=4, **table)
case("GatherBlockQuantized", [packed(3, 16), rows, short(3, 2), packed(3, 1)], bits=4, **table)
case("GatherBlockQuantized", [packed(3, 24), rows, short(3, 2), packed(3, 2)], bits=8, **table)

path = pathlib.Path(__file__).with_name("reference.txt")
path.write_text("\n\n".join(cases) + "\n")
print(len(cases), "cases")
