"""A dijiang bundle as a PyTorch model, for training beyond one GPU. Written by `dijiang export-torch`.

    model = AutoModelForCausalLM.from_pretrained("BUNDLE", trust_remote_code=True, dtype=torch.float32)

loads the bundle's model.safetensors as it is: every parameter is called as it is there. What `model.save_pretrained`
writes goes back into the bundle with `dijiang import-weights BUNDLE DIRECTORY`, and the graphs then serve it.

The recurrence of every linear attention, per key/value head, is

    S_t = a_t S_{t-1} + φ(k_t) ⊗ v_t,    z_t = a_t z_{t-1} + φ(k_t),    o_t = φ(q_t)ᵀ S_t / (φ(q_t)·z_t + ε),

or, under the delta rule, S_t = a_t S_{t-1} + φ(k_t) ⊗ β_t (v_t - a_t S_{t-1}ᵀφ(k_t)) and o_t = φ(q_t)ᵀ S_t, mixed per head
with softmax over near tokens where the recipe has a window; the sums of tokens that have left it stand in one
normalisation with it. It is computed here in chunks and without a state, as training needs it. `generate` works, but
computes the whole text again for each token: the bundle's graphs are what serves. There is no dropout. New parameters
are trained from where the bundle has them; what a recipe fixes (frequencies, decays) is a buffer. Weights always come
from a bundle: a model made from a config alone is all zeros where the bundle would have its features.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutput

# Added to φ(q)·z, so that a query that sees nothing but padding reads zero.
EPSILON = 1e-30
# Keys' exponents stay between this and its negative.
MAX_EXPONENT = 60.0
# Decays that a recipe fixes.
FIXED = ("fixed", "released")
# Added to the squared length of unit features.
LEAST_SQUARE = 1e-12


class DijiangConfig(PretrainedConfig):
    """The config of the converted model, with what was converted and how in `dijiang`:

    - `family`: llama, mistral, ministral, gpt_neox or opt, whose keys the rest of the config has;
    - `recipe`: the recipe of the conversion;
    - `linear_layers`: the layers whose attention is linear; the others are softmax;
    - `windows`: of the layers that see no more than their last tokens, by their number as text, how many.
    """

    model_type = "dijiang"

    def __init__(self, dijiang=None, **kwargs):
        self.dijiang = dijiang or {}
        family = self.dijiang.get("family")
        rope = rope_parameters(kwargs, family)
        kwargs.setdefault("tie_word_embeddings", family == "opt")
        super().__init__(**kwargs)
        # Set last: transformers changes what it finds here.
        self.rope_parameters = rope


def rope_parameters(kwargs, family):
    """Takes the rotary settings, as transformers 4 or 5 spells them, out of `kwargs`."""
    first = lambda *values: next((v for v in values if v is not None), None)
    new, old = kwargs.pop("rope_parameters", None), kwargs.pop("rope_scaling", None)
    base, theta = kwargs.pop("rotary_emb_base", None), kwargs.pop("rope_theta", None)
    share = [kwargs.pop(key, None) for key in ("rotary_pct", "partial_rotary_factor")]
    settings = dict(new or old or {})
    kind = first(settings.get("rope_type"), settings.pop("type", None), "default")
    default_share = 0.25 if family == "gpt_neox" else 1.0
    return {
        **settings,
        "rope_type": kind,
        "rope_theta": first(settings.get("rope_theta"), base, theta, 10000.0),
        "partial_rotary_factor": first(settings.get("partial_rotary_factor"), *share, default_share),
    }


def setting(config, key, default):
    """A key of the config; null counts as absent."""
    value = getattr(config, key, None)
    return default if value is None else value


def wide(x):
    """At least f32: what half precision would spoil is computed in it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Tokens(NamedTuple):
    """Which tokens are none but padding, `[batch, sequence]`, or None where all are tokens; and their positions."""

    mask: torch.Tensor | None
    positions: torch.Tensor


def without_autocast(x):
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


# Feature maps: φ(x) of `[batch, heads, sequence, head_dim]` is `[batch, heads, sequence, m]`. Each takes the
# parameters of its role (one set for queries, one for keys, per head) and those that both share.


class DctSoftmax:
    """softmax over the features of (W x + log D)"""

    @staticmethod
    def per_head(m, d):
        return {"w": (m, d), "log_d": (m,)}

    @staticmethod
    def shared(m, d):
        return {}

    @staticmethod
    def phi(x, own, shared, is_query):
        return (x @ own["w"].transpose(-1, -2) + own["log_d"][:, None]).softmax(-1)


class DctTransposed:
    """softmax of x as it is by one matrix for all heads"""

    takes_x = True

    @staticmethod
    def per_head(m, d):
        return {}

    @staticmethod
    def shared(m, d):
        return {"omega": (m, d)}

    @staticmethod
    def phi(x, own, shared, is_query):
        return F.linear(x, shared["omega"]).softmax(-1)


class DctUnit:
    """W x + bias, of length one"""

    takes_x = True

    @staticmethod
    def per_head(m, d):
        return {"w": (m, d), "bias": (m,)}

    @staticmethod
    def shared(m, d):
        return {}

    @staticmethod
    def phi(x, own, shared, is_query):
        return unit(x @ own["w"].transpose(-1, -2) + own["bias"][:, None])


class WdctUnit:
    """D ⊙ C x, of length one"""

    takes_x = True

    @staticmethod
    def per_head(m, d):
        return {"log_d": (m,)}

    @staticmethod
    def shared(m, d):
        return {"c": (m, d)}

    @staticmethod
    def phi(x, own, shared, is_query):
        return unit(F.linear(x, shared["c"]) * own["log_d"].exp()[:, None])


class Exponential:
    """exp of `exponents(x, own, shared)`"""

    @classmethod
    def phi(cls, x, own, shared, is_query):
        return bounded_exp(cls.exponents(x, own, shared), is_query)


class Wdcf(Exponential):
    """D ⊙ exp(T C x)"""

    @staticmethod
    def per_head(m, d):
        return {"log_d": (m,)}

    @staticmethod
    def shared(m, d):
        return {"t": (m,), "c": (m, d)}

    @staticmethod
    def exponents(x, own, shared):
        return F.linear(x, shared["c"]) * shared["t"] + own["log_d"][:, None]


class Pff(Exponential):
    """exp(ω x - c‖x‖²) / √m, with c and log √m in `norm`"""

    @staticmethod
    def per_head(m, d):
        return {}

    @staticmethod
    def shared(m, d):
        return {"omega": (m, d), "norm": (2,)}

    @staticmethod
    def exponents(x, own, shared):
        factor, log_root = shared["norm"]
        return F.linear(x, shared["omega"]) - factor * x.square().sum(-1, keepdim=True) - log_root


class Wpff(Pff):
    """D ⊙ the features of Pff"""

    @staticmethod
    def per_head(m, d):
        return {"log_d": (m,)}

    @staticmethod
    def exponents(x, own, shared):
        return Pff.exponents(x, own, shared) + own["log_d"][:, None]


class Prf(Exponential):
    """exp(ω x - ‖x‖²/2) / √m"""

    @staticmethod
    def per_head(m, d):
        return {}

    @staticmethod
    def shared(m, d):
        return {"omega": (m, d)}

    @staticmethod
    def exponents(x, own, shared):
        omega = shared["omega"]
        shift = x.square().sum(-1, keepdim=True) / 2 + math.log(omega.shape[0]) / 2
        return F.linear(x, omega) - shift


class WithoutParameters:
    @staticmethod
    def per_head(m, d):
        return {}

    @staticmethod
    def shared(m, d):
        return {}


class Cosformer(WithoutParameters):
    """relu of x as it is, turned by position"""

    takes_x = True
    is_turned = True
    least_sum = 1e-6

    @staticmethod
    def phi(x, own, shared, is_query):
        return x.relu()


class Elu(WithoutParameters):
    """elu(x) + 1, of x as it is"""

    takes_x = True

    @staticmethod
    def phi(x, own, shared, is_query):
        return F.elu(x) + 1


class Identity(WithoutParameters):
    """x"""

    @staticmethod
    def phi(x, own, shared, is_query):
        return x


MAPS = {
    "cosformer": Cosformer,
    "dct-softmax": DctSoftmax,
    "dct-transposed": DctTransposed,
    "dct-unit": DctUnit,
    "elu": Elu,
    "identity": Identity,
    "pff": Pff,
    "prf": Prf,
    "wdcf": Wdcf,
    "wdct-unit": WdctUnit,
    "wpff": Wpff,
}


def turned(x, tokens, most):
    """[x sin(πi/2M), x cos(πi/2M)], i the position of a token counted from 1 and M the most of them."""
    angles = (tokens.positions[:, None, :, None] + 1).to(x.dtype) * (math.pi / 2 / most)
    return torch.cat((x * angles.sin(), x * angles.cos()), -1)


def unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LEAST_SQUARE)


def bounded_exp(exponents, is_query):
    """A factor per query cancels in the readout, so the largest exponent goes; keys are only kept in range."""
    if is_query:
        return (exponents - exponents.amax(-1, keepdim=True)).exp()
    return exponents.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp()


# Recurrences: q `[..., sequence, m]`, k `[..., sequence, m]`, v `[..., sequence, values]`, and the log decay
# `[..., sequence]` or None; leading axes broadcast. They return φ(q_t)ᵀ S_t, `[..., sequence, values]`.


def causal(q, k, v, log_decay):
    """Σ_{j≤i} φ(q_i)·φ(k_j) exp(L_i - L_j) v_j, L the cumulative log decay."""
    weights = (q @ k.transpose(-1, -2)).tril()
    if log_decay is not None:
        total = log_decay.cumsum(-1)
        # Bounded, as what the triangle closes must not overflow before it does.
        weights = weights * (total[..., :, None] - total[..., None, :]).clamp(max=0).exp()
    return weights @ v


def chunked(q, k, v, log_decay, size):
    """The same: `causal` inside chunks of `size` tokens, and S across them."""
    time = q.shape[-2]
    if time <= size:
        return causal(q, k, v, log_decay)
    # Padded to whole chunks by φ(k) = 0 and a = 1, which changes nothing: [..., chunks, size, ·]
    missing = -time % size
    q, k, v = (F.pad(x, (0, 0, 0, missing)).unflatten(-2, (-1, size)) for x in (q, k, v))
    if log_decay is None:
        sums = (k.transpose(-1, -2) @ v).cumsum(-3)
        before = F.pad(sums[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
        out = causal(q, k, v, None) + q @ before
    else:
        log_decay = F.pad(log_decay, (0, missing)).unflatten(-1, (-1, size))
        inside = log_decay.cumsum(-1)
        whole = inside[..., -1]
        to_end = (whole[..., None] - inside).clamp(max=0).exp()
        added = (k * to_end[..., None]).transpose(-1, -2) @ v
        after = whole.cumsum(-1)
        between = ((after - whole)[..., :, None] - after[..., None, :]).clamp(max=0).exp().tril(-1)
        before = (between @ added.flatten(-2)).unflatten(-1, added.shape[-2:])
        out = causal(q, k, v, log_decay) + (q * inside.exp()[..., None]) @ before
    return out.flatten(-3, -2)[..., :time, :]


def delta(q, k, v, log_decay, beta, size):
    """S ← a_t S, S ← S + k_t ⊗ β_t (v_t - Sᵀk_t), read as qᵀS, in chunks of `size` tokens by the UT transform. k has length
    one; `log_decay` may be None."""
    time = q.shape[-2]
    missing = -time % size
    q, k, v = (F.pad(x, (0, 0, 0, missing)).unflatten(-2, (-1, size)) for x in (q, k, v))
    if log_decay is None:
        log_decay = torch.zeros_like(beta)
    beta, log_decay = (F.pad(x, (0, missing)).unflatten(-1, (-1, size)) for x in (beta, log_decay))
    inside = log_decay.cumsum(-1)
    # Bounded, as what the triangles close must not overflow before they do.
    between = (inside[..., :, None] - inside[..., None, :]).clamp(max=0).exp()
    written = k * beta[..., None]
    triangle = (written @ k.transpose(-1, -2) * between).tril(-1)
    eye = torch.eye(size, dtype=q.dtype, device=q.device)
    both = torch.cat((written * inside.exp()[..., None], v * beta[..., None]), -1)
    both = torch.linalg.solve_triangular(eye + triangle, both, upper=False, unitriangular=True)
    removed, added = both.split((k.shape[-1], v.shape[-1]), -1)
    weights = (q @ k.transpose(-1, -2) * between).tril()
    read, last = q * inside.exp()[..., None], k * (inside[..., -1:] - inside).exp()[..., None]
    state = torch.zeros_like(k[..., 0, :1, :].transpose(-1, -2) * v[..., 0, :1, :])
    out = []
    for n in range(q.shape[-3]):
        new = added[..., n, :, :] - removed[..., n, :, :] @ state
        out.append(read[..., n, :, :] @ state + weights[..., n, :, :] @ new)
        kept = inside[..., n, -1].exp()[..., None, None]
        state = state * kept + last[..., n, :, :].transpose(-1, -2) @ new
    return torch.stack(out, -3).flatten(-3, -2)[..., :time, :]


def near(q, k, v, mask, local):
    """softmax(q kᵀ) v over the last `window` tokens and the first `sinks`, by counts of tokens, and the logarithm of the
    sum that divides, `[..., sequence, 1]`. q is scaled."""
    batch, time = q.shape[0], q.shape[-2]
    if mask is None:
        mask = torch.ones(batch, time, dtype=torch.bool, device=q.device)
    counts = mask.cumsum(-1)
    query, key = counts[:, :, None], counts[:, None, :]
    seen = (query - key < local["window"]) | (key <= local.get("sinks", 0))
    order = torch.ones(time, time, dtype=torch.bool, device=q.device).tril()
    seen = (seen & order & mask[:, None, :])[:, None, None]
    scores = (q @ k.transpose(-1, -2)).masked_fill(~seen, -6e4)
    return scores.softmax(-1) @ v, scores.logsumexp(-1, keepdim=True)


def leaving(k, v, mask, local):
    """The key and value that leave the window with each token, and whether there are any, `[batch, sequence]`."""
    batch, time = k.shape[0], k.shape[-2]
    if mask is None:
        mask = torch.ones(batch, time, dtype=torch.bool, device=k.device)
    counts = mask.cumsum(-1)
    gone = counts - local["window"]
    same = (gone[:, :, None] == counts[:, None, :]) & mask[:, None, :]
    index = same.to(torch.uint8).argmax(-1)[:, None, :, None]
    k, v = (x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (k, v))
    return k, v, mask & (gone > local.get("sinks", 0))


def at(recipe, layer):
    """The recipe of one layer: a wide one has a longer window, and nothing beside it."""
    wide = recipe.get("wide") or {}
    if layer not in (wide.get("layers") or []):
        return recipe
    local = {"window": wide["window"], "sinks": recipe["local"].get("sinks", 0)}
    alone = {"rule": "none", "slots": None, "decay": "none", "readout": "sum", "by_position": None, "feed": "at-once"}
    return {**recipe, **alone, "local": local}


class ByPosition(nn.Module):
    """Weights of each head by the position of a token, on what it writes and on what it reads; past the last the last."""

    def __init__(self, positions, heads, kv_heads):
        super().__init__()
        self.sums = nn.Parameter(torch.zeros(positions, heads))
        self.values = nn.Parameter(torch.zeros(positions, kv_heads))

    def of(self, table, positions):
        """`[batch, heads, sequence, 1]`"""
        rows = wide(table)[positions.clamp(max=table.shape[0] - 1)]
        return rows.transpose(1, 2)[..., None]


class Slots(nn.Module):
    """What a token adds to the keys and the values of slots, by its position and for each key/value head."""

    def __init__(self, slots, kv_heads):
        super().__init__()
        self.count = slots["count"]
        self.keys = nn.Parameter(torch.zeros(slots["positions"], kv_heads * self.count))
        self.values = nn.Parameter(torch.zeros(slots["positions"], kv_heads * self.count))

    def of(self, table, positions, mask):
        """`[batch, kv_heads, sequence, slots]`, 0 on padding"""
        rows = wide(table)[positions].unflatten(-1, (-1, self.count)).transpose(1, 2)
        return rows if mask is None else rows * mask[:, None, :, None].to(rows.dtype)


class LinearAttention(nn.Module):
    """What the conversion put in the place of softmax: the recipe's parameters, and the sums over φ(k) ⊗ v."""

    def __init__(self, recipe, hidden, heads, kv_heads, head_dim):
        super().__init__()
        spec = recipe["map"]
        self.map = MAPS[spec["kind"]]
        self.makes_unit = spec.get("unit", False)
        self.takes_x = getattr(self.map, "takes_x", False)
        self.turns_by = spec["positions"] if getattr(self.map, "is_turned", False) else None
        self.least_sum = getattr(self.map, "least_sum", None)
        self.rule, self.local = recipe.get("rule", "linear"), recipe.get("local")
        self.leaves = recipe.get("feed") == "leaving"
        self.chunk = recipe["chunk"]
        self.scale = head_dim**-0.5
        features = spec["features"] * head_dim
        self.decay, self.readout_norm = recipe["decay"], recipe["readout"]
        self.is_normalised = self.readout_norm != "sum"
        self.by_position = recipe.get("by_position")
        if self.rule == "slots":
            self.slots = Slots(recipe["slots"], kv_heads)
        elif self.rule != "none":
            self.add_recurrence(hidden, heads, kv_heads, (features, head_dim))
        if self.rule == "delta":
            self.beta = nn.Linear(hidden, kv_heads)
        if self.rule == "delta" and self.local:
            self.mix = nn.Parameter(torch.zeros(heads))
        elif self.rule == "linear" and self.local:
            self.far = nn.Parameter(torch.zeros(heads))

    def add_recurrence(self, hidden, heads, kv_heads, sizes):
        features, head_dim = sizes
        self.q, self.k = nn.Module(), nn.Module()
        for role, count in ((self.q, heads), (self.k, kv_heads)):
            for name, shape in self.map.per_head(features, head_dim).items():
                role.register_parameter(name, nn.Parameter(torch.zeros(count, *shape)))
        self.shared = list(self.map.shared(features, head_dim))
        for name, shape in self.map.shared(features, head_dim).items():
            self.register_buffer(name, torch.zeros(shape))
        if self.decay == "learned":
            self.gate = nn.Linear(hidden, kv_heads)
        elif self.decay in FIXED:
            self.register_buffer("log_decay", torch.zeros(kv_heads, 1))
        if self.is_normalised:
            self.readout = nn.Linear(hidden, heads * head_dim, bias=False)
        if self.readout_norm == "group-norm":
            self.norm = nn.GroupNorm(head_dim, heads * head_dim, eps=1e-5)
        if self.by_position:
            self.positions = ByPosition(self.by_position, heads, kv_heads)

    def forward(self, hidden, q, k, v, tokens):
        """q, k, v `[batch, heads, sequence, head_dim]`; tokens as `Tokens`."""
        mask, positions = tokens
        with without_autocast(q):
            dtype = v.dtype
            hidden, q, k, v = wide(hidden), wide(q), wide(k), wide(v)
            if self.rule == "slots":
                return self.slotted((q, k, v), mask, positions).to(dtype)
            if self.by_position:
                return self.weighed(hidden, (q, k, v), mask, positions).to(dtype)
            if self.turns_by:
                return self.linear(hidden, q, k, v, mask, mask, tokens).to(dtype)
            if not self.local:
                return self.recurrence(hidden, q, k, v, mask, mask).to(dtype)
            group = q.shape[1] // k.shape[1]
            grouped = (q * self.scale).unflatten(1, (-1, group)), k.unsqueeze(2), v.unsqueeze(2)
            out, log_sum = (x.flatten(1, 2) for x in near(*grouped, mask, self.local))
            written = mask
            if self.leaves:
                k, v, written = leaving(k, v, mask, self.local)
            if self.rule == "delta":
                out = self.mixed(out, self.recurrence(hidden, q, k, v, mask, written))
            elif self.rule == "linear":
                out = self.joined(out, log_sum, hidden, (q, k, v), (mask, written))
            out = out if mask is None else out * mask[:, None, :, None].to(out.dtype)
            return out.to(dtype)

    def recurrence(self, hidden, q, k, v, mask, written):
        """`mask` says which tokens decay the state, `written` which write into it."""
        run = self.by_delta if self.rule == "delta" else self.linear
        return run(hidden, q, k, v, mask, written)

    def mixed(self, window, out):
        share = wide(self.mix).sigmoid()[:, None, None]
        return share * window + (1 - share) * out

    def joined(self, window, log_sum, hidden, tensors, masks):
        """One normalisation of what is near and what is far."""
        q, sums = tensors[0], self.sums(hidden, *tensors, *masks)
        far = sums[..., -1:] + EPSILON
        log_far = far.log() + wide(self.far)[:, None, None]
        if hasattr(self.map, "exponents") and not self.makes_unit:
            # What φ took out of the query.
            log_far = log_far + self.map.exponents(*self.given(q, self.q)).amax(-1, keepdim=True)
        out = sums[..., :-1] / far
        return out + (log_sum - log_far).sigmoid() * (window - out)

    def by_delta(self, hidden, q, k, v, mask, written):
        group = q.shape[1] // k.shape[1]
        q, k = self.features(q, self.q, True), self.features(k, self.k, False)
        log_decay = self.log_decays(hidden)
        beta = F.linear(hidden, wide(self.beta.weight), wide(self.beta.bias)).sigmoid().transpose(1, 2)
        if written is not None:
            beta = beta * written[:, None].to(k.dtype)
        if mask is not None and log_decay is not None:
            log_decay = log_decay * mask[:, None].to(k.dtype)
        q, k, v = q.unflatten(1, (-1, group)), k.unsqueeze(2), v.unsqueeze(2)
        beta = beta.unsqueeze(2)
        log_decay = None if log_decay is None else log_decay.unsqueeze(2)
        out = delta(q, k, v, log_decay, beta, self.chunk).flatten(1, 2)
        return self.read(hidden, out, None) if self.is_normalised else out

    def slotted(self, tensors, mask, positions):
        """Softmax over slots: their scores are what a query reads of sums of k ⊗ e, and their values sums of f ⊗ v."""
        q, k, v = tensors
        e, f = (self.slots.of(table, positions, mask) for table in (self.slots.keys, self.slots.values))
        group = q.shape[1] // k.shape[1]
        q, k, v, e, f = (q * self.scale).unflatten(1, (-1, group)), *(x.unsqueeze(2) for x in (k, v, e, f))
        shares = chunked(q, k, e, None, self.chunk).softmax(-1)
        return chunked(shares, f, v, None, self.chunk).flatten(1, 2)

    def weighed(self, hidden, tensors, mask, positions):
        """Sums whose values and results have weights by position, and which nothing divides."""
        q, k, v = tensors
        v = v * self.positions.of(self.positions.values, positions)
        out = self.sums(hidden, q, k, v, mask, mask)[..., :-1]
        return self.read(hidden, out * self.positions.of(self.positions.sums, positions), None)

    def linear(self, hidden, q, k, v, mask, written, tokens=None):
        out = self.sums(hidden, q, k, v, mask, written, tokens)
        return self.read(hidden, out[..., :-1], out[..., -1:])

    def sums(self, hidden, q, k, v, mask, written, tokens=None):
        """φ(q)ᵀ S and φ(q)·z behind it, `[batch, heads, sequence, values + 1]`"""
        group = q.shape[1] // k.shape[1]
        q, k = self.features(q, self.q, True), self.features(k, self.k, False)
        if self.turns_by:
            q, k = (turned(x, tokens, self.turns_by) for x in (q, k))
        log_decay = self.log_decays(hidden)
        if written is not None:
            k = k * written[:, None, :, None].to(k.dtype)
        if mask is not None and log_decay is not None:
            log_decay = log_decay * mask[:, None].to(k.dtype)
        # Values of 1 beside the others sum to the normaliser. Query heads stand beside their key/value head.
        v = F.pad(v, (0, 1), value=1.0)
        q, k, v = q.unflatten(1, (-1, group)), k.unsqueeze(2), v.unsqueeze(2)
        log_decay = None if log_decay is None else log_decay.unsqueeze(2)
        return chunked(q, k, v, log_decay, self.chunk).flatten(1, 2)

    def given(self, x, role):
        """What a map takes: x̂, the parameters of a role and those that both share."""
        own = {name: wide(p) for name, p in role.named_parameters()}
        shared = {name: wide(getattr(self, name)) for name in self.shared}
        # Some maps take x as it is.
        return wide(x) if self.takes_x else wide(x) * math.sqrt(self.scale), own, shared

    def features(self, x, role, is_query):
        features = self.map.phi(*self.given(x, role), is_query)
        return unit(features) if self.makes_unit else features

    def log_decays(self, hidden):
        """`[batch, kv_heads, sequence]`"""
        if self.decay == "learned":
            logits = F.linear(hidden, wide(self.gate.weight), wide(self.gate.bias))
            return F.logsigmoid(logits).transpose(1, 2)
        if self.decay in FIXED:
            return wide(self.log_decay).expand(hidden.shape[0], -1, hidden.shape[1])
        return None

    def read(self, hidden, num, den):
        if not self.is_normalised:
            return num / (den + EPSILON if self.least_sum is None else den.clamp(min=self.least_sum))
        gate = F.silu(F.linear(hidden, wide(self.readout.weight)))
        heads, width = num.shape[1], num.shape[-1]
        if self.readout_norm == "rms-norm":
            normal = num * torch.rsqrt(num.square().mean(-1, keepdim=True) + 1e-6)
        else:
            # Groups are of consecutive channels of all heads: [batch, sequence, heads * width]
            merged = num.transpose(1, 2).flatten(2)
            of = wide(self.norm.weight), wide(self.norm.bias)
            normal = F.group_norm(merged.flatten(0, 1), self.norm.num_groups, *of, self.norm.eps)
            normal = normal.view_as(merged).unflatten(-1, (heads, width)).transpose(1, 2)
        return normal * gate.unflatten(-1, (heads, width)).transpose(1, 2)


def softmax_attention(q, k, v, mask, window=None):
    """As it came, for the layers that stay so: over all earlier tokens, or over the last `window` of them."""
    group, time = q.shape[1] // k.shape[1], q.shape[2]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    if mask is None and window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if mask is None:
        mask = torch.ones(q.shape[0], time, dtype=torch.bool, device=q.device)
    order = torch.ones(time, time, dtype=torch.bool, device=q.device).tril()
    itself = torch.eye(time, dtype=torch.bool, device=q.device)
    visible = order & mask[:, None, None, :]
    if window is not None:
        counts = mask.cumsum(-1)
        visible = visible & (counts[:, None, :, None] - counts[:, None, None, :] < window)
    # Padding sees itself, as a softmax over nothing is no number.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible | itself)


class Attention(nn.Module):
    """What the families' attentions have in common."""

    def __init__(self, config, layer, kv_heads=None, head_dim=None):
        super().__init__()
        self.heads = config.num_attention_heads
        self.kv_heads = kv_heads or self.heads
        self.head_dim = head_dim or config.hidden_size // self.heads
        self.window = config.dijiang.get("windows", {}).get(str(layer))
        if layer in config.dijiang["linear_layers"]:
            sizes = (self.heads, self.kv_heads, self.head_dim)
            self.dijiang = LinearAttention(at(config.dijiang["recipe"], layer), config.hidden_size, *sizes)
        else:
            self.dijiang = None

    def split(self, x):
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def mix(self, hidden, q, k, v, tokens):
        """`[batch, sequence, heads * head_dim]`"""
        if self.dijiang is None:
            mixed = softmax_attention(q, k, v, tokens.mask, self.window)
        else:
            mixed = self.dijiang(hidden, q, k, v, tokens)
        return mixed.transpose(1, 2).flatten(2)


class Rope:
    """Rotary positions: cos and sin of position · frequency, `[batch, 1, sequence, rotated]`."""

    def __init__(self, settings, head_dim, positions, dtype):
        self.rotated = int(head_dim * settings["partial_rotary_factor"])
        # f32, as in the graphs.
        frequencies = rope_frequencies(settings, self.rotated)
        frequencies = torch.tensor(frequencies, dtype=torch.float32, device=positions.device)
        frequencies = frequencies.to(torch.promote_types(dtype, torch.float32))
        angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, None]
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def rotate(self, x):
        x, kept = x[..., : self.rotated], x[..., self.rotated :]
        left, right = x.chunk(2, dim=-1)
        turned = torch.cat((-right, left), dim=-1)
        return torch.cat((x * self.cos + turned * self.sin, kept), dim=-1)


def rope_frequencies(settings, rotated):
    plain = [settings["rope_theta"] ** (-i / rotated) for i in range(0, rotated, 2)]
    kind = settings["rope_type"]
    if kind == "default":
        return plain
    factor = settings["factor"]
    if kind == "linear":
        return [f / factor for f in plain]
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not supported (expected default, linear or llama3)")
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]

    def scaled(f):
        # 0 below `low` turns within the original context, 1 above `high`.
        turns = settings["original_max_position_embeddings"] * f / math.tau
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - kept) * f / factor + kept * f

    return [scaled(f) for f in plain]


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        y = wide(x)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class DijiangForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model, whatever its family: the families below are a backbone and an output projection."""

    config_class = DijiangConfig
    supports_gradient_checkpointing = True
    # In f16 and bf16 too, as the bundle has them.
    _keep_in_fp32_modules = ["dijiang"]
    _keep_in_fp32_modules_strict = ["dijiang"]
    # Rotary tables of a serving graph, which are computed here.
    _keys_to_ignore_on_load_unexpected = [r"^grouped_attention\."]

    def __init__(self, config):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.build(config)
        self.post_init()

    def _init_weights(self, module):
        std = setting(self.config, "initializer_range", setting(self.config, "init_std", 0.02))
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, labels=None, use_cache=None, return_dict=None
    ):
        """Logits `[batch, sequence, vocabulary]`. `attention_mask` is 1 for tokens and 0 for padding; positions count
        tokens where none are given. With `labels`, also the mean cross-entropy of the next tokens; -100 is ignored."""
        mask = None if attention_mask is None else attention_mask.bool()
        if position_ids is None and mask is not None:
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        elif position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        x, context = self.embed(input_ids, position_ids)
        tokens = Tokens(mask, position_ids)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, tokens, context)
            else:
                x = layer(x, tokens, context)
        logits = self.project(x)
        loss = None if labels is None else next_token_loss(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def next_token_loss(logits, labels):
    logits, labels = wide(logits[:, :-1]), labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


# Llama, Mistral and Ministral


class LlamaAttention(Attention):
    def __init__(self, config, layer):
        kv_heads, head_dim = (setting(config, key, None) for key in ("num_key_value_heads", "head_dim"))
        super().__init__(config, layer, kv_heads, head_dim)
        bias = setting(config, "attention_bias", False)
        wide_q, wide_k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, wide_q, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, wide_k, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, wide_k, bias=bias)
        self.o_proj = nn.Linear(wide_q, config.hidden_size, bias=bias)

    def forward(self, x, tokens, rope):
        q, k, v = (self.split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(self.mix(x, rope.rotate(q), rope.rotate(k), v, tokens))


class LlamaMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        bias = setting(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.act = ACT2FN[setting(config, "hidden_act", "silu")]

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        eps = setting(config, "rms_norm_eps", 1e-6)
        self.input_layernorm = RMSNorm(config.hidden_size, eps)
        self.self_attn = LlamaAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x, tokens, rope):
        x = x + self.self_attn(self.input_layernorm(x), tokens, rope)
        return x + self.mlp(self.post_attention_layernorm(x))


class DijiangLlamaForCausalLM(DijiangForCausalLM):
    _no_split_modules = ["LlamaLayer"]

    def build(self, config):
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(LlamaLayer(config, i) for i in range(config.num_hidden_layers))
        self.model.norm = RMSNorm(config.hidden_size, setting(config, "rms_norm_eps", 1e-6))
        # A tied projection has no parameter of its own, here as in the bundle.
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self):
        return self.model.layers

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def embed(self, input_ids, positions):
        x = self.model.embed_tokens(input_ids)
        head_dim = self.model.layers[0].self_attn.head_dim
        return x, Rope(self.config.rope_parameters, head_dim, positions, x.dtype)

    def project(self, x):
        x = self.model.norm(x)
        tied = self.config.tie_word_embeddings
        return F.linear(x, self.model.embed_tokens.weight) if tied else self.lm_head(x)


# GPT-NeoX, which is also Pythia


class GptNeoxAttention(Attention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        bias = setting(config, "attention_bias", True)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)

    def forward(self, x, tokens, rope):
        # Query, key and value lie together head by head.
        joined = self.query_key_value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = joined.chunk(3, dim=-1)
        return self.dense(self.mix(x, rope.rotate(q), rope.rotate(k), v, tokens))


class GptNeoxMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[setting(config, "hidden_act", "gelu")]

    def forward(self, x):
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))


class GptNeoxLayer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        eps = setting(config, "layer_norm_eps", 1e-5)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=eps)
        self.attention = GptNeoxAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=eps)
        self.mlp = GptNeoxMLP(config)
        self.is_parallel = setting(config, "use_parallel_residual", True)

    def forward(self, x, tokens, rope):
        after = x + self.attention(self.input_layernorm(x), tokens, rope)
        return after + self.mlp(self.post_attention_layernorm(x if self.is_parallel else after))


class DijiangGptNeoxForCausalLM(DijiangForCausalLM):
    _no_split_modules = ["GptNeoxLayer"]

    def build(self, config):
        self.gpt_neox = nn.Module()
        self.gpt_neox.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.gpt_neox.layers = nn.ModuleList(GptNeoxLayer(config, i) for i in range(config.num_hidden_layers))
        eps = setting(config, "layer_norm_eps", 1e-5)
        self.gpt_neox.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=eps)
        if not config.tie_word_embeddings:
            self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self):
        return self.gpt_neox.layers

    def get_input_embeddings(self):
        return self.gpt_neox.embed_in

    def embed(self, input_ids, positions):
        x = self.gpt_neox.embed_in(input_ids)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        return x, Rope(self.config.rope_parameters, head_dim, positions, x.dtype)

    def project(self, x):
        x = self.gpt_neox.final_layer_norm(x)
        tied = self.config.tie_word_embeddings
        return F.linear(x, self.gpt_neox.embed_in.weight) if tied else self.embed_out(x)


# OPT


class OptAttention(Attention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        bias, size = setting(config, "enable_bias", True), config.hidden_size
        self.q_proj = nn.Linear(size, size, bias=bias)
        self.k_proj = nn.Linear(size, size, bias=bias)
        self.v_proj = nn.Linear(size, size, bias=bias)
        self.out_proj = nn.Linear(size, size, bias=bias)

    def forward(self, x, tokens):
        q, k, v = (self.split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(self.mix(x, q, k, v, tokens))


class OptLayer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        bias = setting(config, "enable_bias", True)
        self.norm_first = setting(config, "do_layer_norm_before", True)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.self_attn = OptAttention(config, layer)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_dim, bias=bias)
        self.fc2 = nn.Linear(config.ffn_dim, config.hidden_size, bias=bias)
        self.act = ACT2FN[setting(config, "activation_function", "relu")]

    def forward(self, x, tokens, _context):
        x = self.block(self.self_attn_layer_norm, x, lambda x: self.self_attn(x, tokens))
        return self.block(self.final_layer_norm, x, lambda x: self.fc2(self.act(self.fc1(x))))

    def block(self, norm, x, inner):
        return x + inner(norm(x)) if self.norm_first else norm(x + inner(x))


class DijiangOptForCausalLM(DijiangForCausalLM):
    _no_split_modules = ["OptLayer"]
    # The first rows of the table are not used.
    position_offset = 2

    def build(self, config):
        hidden = config.hidden_size
        narrow = setting(config, "word_embed_proj_dim", hidden)
        norm_first = setting(config, "do_layer_norm_before", True)
        self.model = nn.Module()
        decoder = self.model.decoder = nn.Module()
        decoder.embed_tokens = nn.Embedding(config.vocab_size, narrow)
        decoder.embed_positions = nn.Embedding(config.max_position_embeddings + self.position_offset, hidden)
        decoder.layers = nn.ModuleList(OptLayer(config, i) for i in range(config.num_hidden_layers))
        has_norm = norm_first and not setting(config, "_remove_final_layer_norm", False)
        decoder.final_layer_norm = nn.LayerNorm(hidden) if has_norm else None
        decoder.project_in = nn.Linear(narrow, hidden, bias=False) if narrow != hidden else None
        decoder.project_out = nn.Linear(hidden, narrow, bias=False) if narrow != hidden else None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(narrow, config.vocab_size, bias=False)

    @property
    def layers(self):
        return self.model.decoder.layers

    def get_input_embeddings(self):
        return self.model.decoder.embed_tokens

    def embed(self, input_ids, positions):
        decoder = self.model.decoder
        x = decoder.embed_tokens(input_ids)
        x = x if decoder.project_in is None else decoder.project_in(x)
        return x + decoder.embed_positions(positions + self.position_offset), None

    def project(self, x):
        decoder = self.model.decoder
        x = x if decoder.final_layer_norm is None else decoder.final_layer_norm(x)
        x = x if decoder.project_out is None else decoder.project_out(x)
        tied = self.config.tie_word_embeddings
        return F.linear(x, decoder.embed_tokens.weight) if tied else self.lm_head(x)
