//! One attention, spelled in many ways: decoders of one or two layers in the textual form.

use std::fmt::Write as _;

/// Tokens that a decoder knows.
pub(crate) const VOCAB: i64 = 23;

/// How a decoder is written; 0 is the plainest everywhere, which is what failures shrink to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spelling {
    pub(crate) layers: u8,
    pub(crate) kv_heads: u8,
    /// Query heads of a key head, less one.
    pub(crate) shared_by: u8,
    pub(crate) head_dim: u8,
    pub(crate) projection: u8,
    pub(crate) positions: u8,
    pub(crate) keys: u8,
    pub(crate) repeats: u8,
    pub(crate) scale: u8,
    pub(crate) mask: u8,
    pub(crate) closed: u8,
    pub(crate) softmax: u8,
    pub(crate) has_padding: bool,
    pub(crate) has_past: bool,
    pub(crate) is_turned_around: bool,
    pub(crate) seed: u16,
}

/// What a hidden key is added, as exporters have it.
const CLOSED: [&str; 5] = ["-1e30", "-10000.0", "-65504.0", "-3.4028235e38", "-1e9"];

impl Spelling {
    pub(crate) const PROJECTIONS: u8 = 5;
    pub(crate) const POSITIONS: u8 = 5;
    pub(crate) const KEYS: u8 = 3;
    pub(crate) const REPEATS: u8 = 3;
    pub(crate) const SCALES: u8 = 5;
    pub(crate) const MASKS: u8 = 5;
    pub(crate) const CLOSED: u8 = CLOSED.len() as u8;
    pub(crate) const SOFTMAXES: u8 = 3;

    pub(crate) fn kv_heads(&self) -> usize {
        usize::from(self.kv_heads) + 1
    }

    pub(crate) fn heads(&self) -> usize {
        self.kv_heads() * (usize::from(self.shared_by) + 1)
    }

    pub(crate) fn head_dim(&self) -> usize {
        [4, 8, 6, 16][usize::from(self.head_dim)]
    }

    pub(crate) fn layers(&self) -> usize {
        usize::from(self.layers) + 1
    }

    /// Whether the graph is told the positions of tokens, or has none.
    pub(crate) fn knows_positions(&self) -> bool {
        !matches!(self.positions, 1 | 2)
    }

    /// Whether a linear model must come of it: positions that the graph counts itself are refused, as no cache is left to
    /// count, and a triangle that is built to its size may be.
    pub(crate) fn must_convert(&self) -> bool {
        self.knows_positions() && self.mask != 3
    }

    fn is_rotary(&self) -> bool {
        matches!(self.positions, 2 | 4)
    }

    fn width(&self) -> usize {
        self.heads() * self.head_dim()
    }

    /// The graph as text.
    pub(crate) fn text(&self) -> String {
        let mut t = Text { lines: String::new(), of: self, seeds: u32::from(self.seed) * 100 };
        t.inputs();
        t.mask();
        t.embedding();
        for layer in 0..self.layers() {
            t.layer(layer);
        }
        let last = self.layers();
        t.weight("head", &[self.width(), VOCAB as usize]);
        t.line(&format!("%logits = MatMul(%h.{last}.x, %head)"));
        t.line("output \"logits\" %logits");
        format!("graph \"spelled\" {{\n{}}}\n", t.lines)
    }
}

struct Text<'a> {
    lines: String,
    of: &'a Spelling,
    seeds: u32,
}

impl Text<'_> {
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.lines, "  {line}");
    }

    fn weight(&mut self, name: &str, dims: &[usize]) {
        self.seeds += 1;
        let (seed, dims) = (self.seeds, dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        self.line(&format!("weight %{name}: f32[{dims}] = random({seed})"));
    }

    fn integers(&mut self, name: &str, values: &[i64]) {
        let n = values.len();
        self.line(&format!("const %{name}: i64[{n}] = {values:?}"));
    }

    /// A sum or a product, either way round.
    fn either(&mut self, out: &str, op: &str, [a, b]: [&str; 2]) {
        let [a, b] = if self.of.is_turned_around { [b, a] } else { [a, b] };
        self.line(&format!("%{out} = {op}(%{a}, %{b})"));
    }

    fn inputs(&mut self) {
        self.line("input %input_ids: i64[batch, sequence]");
        let total = if self.of.has_past { "past + sequence" } else { "sequence" };
        if self.of.has_padding {
            self.line(&format!("input %attention_mask: i64[batch, {total}]"));
        }
        if self.of.positions > 2 {
            self.line("input %position_ids: i64[batch, sequence]");
        }
        for layer in (0..self.of.layers()).filter(|_| self.of.has_past) {
            let (kv, d) = (self.of.kv_heads(), self.of.head_dim());
            for part in ["key", "value"] {
                self.line(&format!("input %past_key_values.{layer}.{part}: f32[batch, {kv}, past, {d}]"));
            }
        }
        for (name, value) in [("zero", "0"), ("one", "1")] {
            self.line(&format!("const %{name}: i64[] = [{value}]"));
        }
        self.integers("end", &[i64::MAX]);
        self.integers("first", &[0]);
        self.integers("all", &[-1]);
        self.integers("heads", &[self.of.heads() as i64]);
        self.integers("d", &[self.of.head_dim() as i64]);
        self.line("const %clear: f32[] = [0.0]");
        self.line("const %unit: f32[] = [1.0]");
        self.line(&format!("const %shut: f32[] = [{}]", CLOSED[usize::from(self.of.closed)]));
    }

    /// `places` of all keys, `queries` of the new tokens as a column, and which keys a query reads: `earlier`
    /// `[sequence, total]`, and where there is padding `seen` `[batch, 1, 1, total]`.
    fn mask(&mut self) {
        self.line("%length = Shape(%input_ids) {end: 2, start: 1}");
        if self.of.has_past {
            self.line("%cached = Shape(%past_key_values.0.key) {end: 3, start: 2}");
            self.line("%columns = Add(%cached, %length)");
        } else {
            self.line("%cached = Identity(%first)");
            self.line("%columns = Identity(%length)");
        }
        self.line("%total = Squeeze(%columns) {axes: [0]}");
        self.line("%places = Range(%zero, %total, %one)");
        self.line("%new = Slice(%places, %cached, %end)");
        self.line("%queries = Unsqueeze(%new) {axes: [1]}");
        if self.of.mask == 3 {
            self.line("%square = Concat(%columns, %columns) {axis: 0}");
            self.line("%ones = Expand(%unit, %square)");
            self.line("%triangle = Trilu(%ones) {upper: 0}");
            self.line("%reach = Slice(%triangle, %cached, %end, %first)");
        } else {
            self.line("%earlier = LessOrEqual(%places, %queries)");
            self.line("%reach = Cast(%earlier) {to: \"f32\"}");
        }
        if self.of.has_padding {
            self.line("%wide = Unsqueeze(%attention_mask) {axes: [1, 2]}");
            self.line("%seen = Equal(%wide, %one)");
            self.line("%token = Cast(%wide) {to: \"f32\"}");
        }
        match self.of.mask {
            0 | 2 if self.of.has_padding => self.either("open", "And", ["earlier", "seen"]),
            0 | 2 => self.line("%open = Identity(%earlier)"),
            _ => {
                self.line("%beyond = Sub(%unit, %reach)");
                self.either("causal", "Mul", ["beyond", "shut"]);
                if self.of.has_padding {
                    self.line("%padded = Sub(%unit, %token)");
                    self.either("padding", "Mul", ["padded", "shut"]);
                }
            }
        }
        match (self.of.mask, self.of.has_padding) {
            (0, _) => self.line("%mask = Where(%open, %clear, %shut)"),
            (3, true) => self.either("mask", "Add", ["causal", "padding"]),
            (3, false) => self.line("%mask = Identity(%causal)"),
            _ => {}
        }
    }

    fn embedding(&mut self) {
        let width = self.of.width();
        self.weight("embed", &[VOCAB as usize, width]);
        match self.of.positions {
            1 | 3 => {
                let places = if self.of.positions == 1 { "new" } else { "position_ids" };
                self.weight("places.weight", &[64, width]);
                self.line("%h.tokens = Gather(%embed, %input_ids) {axis: 0}");
                self.line(&format!("%h.places = Gather(%places.weight, %{places}) {{axis: 0}}"));
                self.either("h.0.x", "Add", ["h.tokens", "h.places"]);
            }
            _ => self.line("%h.0.x = Gather(%embed, %input_ids) {axis: 0}"),
        }
        if self.of.is_rotary() {
            self.angles();
        }
    }

    /// Rotary embedding: `cos` and `sin` `[sequence, head_dim]`, or `[batch, 1, sequence, head_dim]`.
    fn angles(&mut self) {
        let half = self.of.head_dim() / 2;
        let rates: Vec<f64> = (0..half).map(|i| 100_f64.powf(-(i as f64) / half as f64)).collect();
        self.line(&format!("const %rates: f32[{half}] = {rates:?}"));
        let places = if self.of.positions == 2 { "queries" } else { "position.columns" };
        if self.of.positions == 4 {
            self.line("%position.columns = Unsqueeze(%position_ids) {axes: [1, 3]}");
        }
        self.line(&format!("%at = Cast(%{places}) {{to: \"f32\"}}"));
        self.either("angle", "Mul", ["at", "rates"]);
        self.line("%angles = Concat(%angle, %angle) {axis: -1}");
        self.line("%cos = Cos(%angles)");
        self.line("%sin = Sin(%angles)");
        self.integers("half", &[half as i64]);
        self.integers("last", &[-1]);
    }

    fn layer(&mut self, i: usize) {
        let width = self.of.width();
        self.projections(i);
        for (name, heads) in [("q", self.of.heads()), ("k", self.of.kv_heads()), ("v", self.of.kv_heads())] {
            self.integers(&format!("h.{i}.{name}.dims"), &[0, 0, heads as i64, self.of.head_dim() as i64]);
            self.line(&format!("%h.{i}.{name}.split = Reshape(%h.{i}.{name}.flat, %h.{i}.{name}.dims)"));
            self.line(&format!(
                "%h.{i}.{name}.first = Transpose(%h.{i}.{name}.split) {{perm: [0, 2, 1, 3]}}"
            ));
        }
        for name in ["q", "k"] {
            self.rotated(i, name);
        }
        self.cache(i);
        self.attention(i);
        self.weight(&format!("h.{i}.attn.o.weight"), &[width, width]);
        self.integers(&format!("h.{i}.join"), &[0, 0, width as i64]);
        self.line(&format!("%h.{i}.tokens = Transpose(%h.{i}.mixed) {{perm: [0, 2, 1, 3]}}"));
        self.line(&format!("%h.{i}.joined = Reshape(%h.{i}.tokens, %h.{i}.join)"));
        self.line(&format!("%h.{i}.out = MatMul(%h.{i}.joined, %h.{i}.attn.o.weight)"));
        let (x, out) = (format!("h.{i}.x"), format!("h.{i}.out"));
        self.either(&format!("h.{}.x", i + 1), "Add", [&x, &out]);
    }

    /// `q.flat`, `k.flat` and `v.flat`: products of their own, with biases, of flattened tokens, or one that is split or
    /// sliced.
    fn projections(&mut self, i: usize) {
        let (width, kv) = (self.of.width(), self.of.kv_heads() * self.of.head_dim());
        let parts = [("q", width), ("k", kv), ("v", kv)];
        if matches!(self.of.projection, 3 | 4) {
            self.weight(&format!("h.{i}.attn.qkv.weight"), &[width, width + 2 * kv]);
            self.line(&format!("%h.{i}.qkv = MatMul(%h.{i}.x, %h.{i}.attn.qkv.weight)"));
            return self.cut(i, parts);
        }
        for (name, n) in parts {
            let at = format!("h.{i}.{name}");
            self.weight(&format!("h.{i}.attn.{name}.weight"), &[width, n]);
            match self.of.projection {
                0 => self.line(&format!("%{at}.flat = MatMul(%h.{i}.x, %h.{i}.attn.{name}.weight)")),
                1 => {
                    self.weight(&format!("h.{i}.attn.{name}.bias"), &[n]);
                    self.line(&format!("%{at}.product = MatMul(%h.{i}.x, %h.{i}.attn.{name}.weight)"));
                    let [product, bias] = [format!("{at}.product"), format!("h.{i}.attn.{name}.bias")];
                    self.either(&format!("{at}.flat"), "Add", [&product, &bias]);
                }
                _ => {
                    self.weight(&format!("h.{i}.attn.{name}.bias"), &[n]);
                    self.integers(&format!("{at}.row.dims"), &[-1, width as i64]);
                    self.line(&format!("%{at}.row = Reshape(%h.{i}.x, %{at}.row.dims)"));
                    let weights = format!("%h.{i}.attn.{name}.weight, %h.{i}.attn.{name}.bias");
                    self.line(&format!("%{at}.product = Gemm(%{at}.row, {weights})"));
                    self.line(&format!("%{at}.size = Shape(%input_ids)"));
                    self.integers(&format!("{at}.n"), &[n as i64]);
                    self.line(&format!("%{at}.whole = Concat(%{at}.size, %{at}.n) {{axis: 0}}"));
                    self.line(&format!("%{at}.flat = Reshape(%{at}.product, %{at}.whole)"));
                }
            }
        }
    }

    fn cut(&mut self, i: usize, parts: [(&str, usize); 3]) {
        if self.of.projection == 3 {
            self.integers(&format!("h.{i}.sizes"), &parts.map(|(_, n)| n as i64));
            self.line(&format!(
                "%h.{i}.q.flat, %h.{i}.k.flat, %h.{i}.v.flat = Split(%h.{i}.qkv, %h.{i}.sizes) {{axis: 2}}"
            ));
            return;
        }
        let mut at = 0;
        self.integers(&format!("h.{i}.axis"), &[2]);
        for (name, n) in parts {
            self.integers(&format!("h.{i}.{name}.begin"), &[at]);
            at += n as i64;
            self.integers(&format!("h.{i}.{name}.end"), &[at]);
            let cut = format!("%h.{i}.{name}.begin, %h.{i}.{name}.end, %h.{i}.axis");
            self.line(&format!("%h.{i}.{name}.flat = Slice(%h.{i}.qkv, {cut})"));
        }
    }

    /// `q.turned` and `k.turned`.
    fn rotated(&mut self, i: usize, name: &str) {
        let at = format!("h.{i}.{name}");
        if !self.of.is_rotary() {
            return self.line(&format!("%{at}.turned = Identity(%{at}.first)"));
        }
        self.line(&format!("%{at}.low = Slice(%{at}.first, %first, %half, %last)"));
        self.line(&format!("%{at}.high = Slice(%{at}.first, %half, %end, %last)"));
        self.line(&format!("%{at}.minus = Neg(%{at}.high)"));
        self.line(&format!("%{at}.swapped = Concat(%{at}.minus, %{at}.low) {{axis: -1}}"));
        self.either(&format!("{at}.a"), "Mul", [&format!("{at}.first"), "cos"]);
        self.either(&format!("{at}.b"), "Mul", [&format!("{at}.swapped"), "sin"]);
        self.either(&format!("{at}.turned"), "Add", [&format!("{at}.a"), &format!("{at}.b")]);
    }

    /// `keys` and `values` of all tokens and all heads.
    fn cache(&mut self, i: usize) {
        for (name, new, part) in [("keys", "k.turned", "key"), ("values", "v.first", "value")] {
            if self.of.has_past {
                let past = format!("%past_key_values.{i}.{part}");
                self.line(&format!("%h.{i}.{name}.own = Concat({past}, %h.{i}.{new}) {{axis: 2}}"));
                self.line(&format!("output \"present.{i}.{part}\" %h.{i}.{name}.own"));
            } else {
                self.line(&format!("%h.{i}.{name}.own = Identity(%h.{i}.{new})"));
            }
            self.repeated(i, name);
        }
    }

    /// Each key head for all the query heads that share it.
    fn repeated(&mut self, i: usize, name: &str) {
        let (at, each) = (format!("h.{i}.{name}"), self.of.heads() / self.of.kv_heads());
        let (heads, d) = (self.of.heads() as i64, self.of.head_dim() as i64);
        match self.of.repeats {
            _ if each == 1 => self.line(&format!("%{at} = Identity(%{at}.own)")),
            0 => {
                self.integers(&format!("{at}.each"), &[1, 1, each as i64, 1, 1]);
                self.integers(&format!("{at}.dims"), &[0, heads, -1, d]);
                self.line(&format!("%{at}.apart = Unsqueeze(%{at}.own) {{axes: [2]}}"));
                self.line(&format!("%{at}.spread = Expand(%{at}.apart, %{at}.each)"));
                self.line(&format!("%{at} = Reshape(%{at}.spread, %{at}.dims)"));
            }
            1 => {
                let picked: Vec<i64> = (0..heads).map(|head| head / each as i64).collect();
                self.integers(&format!("{at}.picked"), &picked);
                self.line(&format!("%{at} = Gather(%{at}.own, %{at}.picked) {{axis: 1}}"));
            }
            _ => {
                self.integers(&format!("{at}.dims"), &[0, heads, -1, d]);
                self.line(&format!("%{at}.apart = Unsqueeze(%{at}.own) {{axes: [2]}}"));
                let copies = vec![format!("%{at}.apart"); each].join(", ");
                self.line(&format!("%{at}.spread = Concat({copies}) {{axis: 2}}"));
                self.line(&format!("%{at} = Reshape(%{at}.spread, %{at}.dims)"));
            }
        }
    }

    /// `mixed` `[batch, heads, sequence, head_dim]`.
    fn attention(&mut self, i: usize) {
        let at = format!("h.{i}");
        self.scaled_queries(i);
        match self.of.keys {
            0 => {
                self.line(&format!("%{at}.other = Transpose(%{at}.keys.scaled) {{perm: [0, 1, 3, 2]}}"));
                self.line(&format!("%{at}.product = MatMul(%{at}.q, %{at}.other)"));
            }
            // The other way round, and back.
            1 => {
                self.line(&format!("%{at}.other = Transpose(%{at}.q) {{perm: [0, 1, 3, 2]}}"));
                self.line(&format!("%{at}.back = MatMul(%{at}.keys.scaled, %{at}.other)"));
                self.line(&format!("%{at}.product = Transpose(%{at}.back) {{perm: [0, 1, 3, 2]}}"));
            }
            // Heads folded into the batch, and the scores unfolded again.
            _ => {
                self.reshaped(i, ("q", "q.rows"), &["all", "length", "d"]);
                self.reshaped(i, ("keys.scaled", "key.rows"), &["all", "columns", "d"]);
                self.line(&format!("%{at}.other = Transpose(%{at}.key.rows) {{perm: [0, 2, 1]}}"));
                self.line(&format!("%{at}.product.rows = MatMul(%{at}.q.rows, %{at}.other)"));
                self.reshaped(i, ("product.rows", "product"), &["all", "heads", "length", "columns"]);
            }
        }
        self.scaled_scores(i);
        self.masked(i);
        match self.of.softmax {
            0 => self.line(&format!("%{at}.weights = Softmax(%{at}.masked) {{axis: -1}} \"{at}/softmax\"")),
            1 => self.line(&format!("%{at}.weights = Softmax(%{at}.masked) {{axis: 3}} \"{at}/softmax\"")),
            _ => {
                self.line(&format!("%{at}.most = ReduceMax(%{at}.masked) {{axes: [-1], keepdims: 1}}"));
                self.line(&format!("%{at}.less = Sub(%{at}.masked, %{at}.most)"));
                self.line(&format!("%{at}.exp = Exp(%{at}.less)"));
                self.line(&format!("%{at}.sum = ReduceSum(%{at}.exp) {{axes: [-1], keepdims: 1}}"));
                self.line(&format!("%{at}.weights = Div(%{at}.exp, %{at}.sum)"));
            }
        }
        if self.of.keys < 2 {
            return self.line(&format!("%{at}.mixed = MatMul(%{at}.weights, %{at}.values)"));
        }
        self.reshaped(i, ("weights", "weight.rows"), &["all", "length", "columns"]);
        self.reshaped(i, ("values", "value.rows"), &["all", "columns", "d"]);
        self.line(&format!("%{at}.mixed.rows = MatMul(%{at}.weight.rows, %{at}.value.rows)"));
        self.reshaped(i, ("mixed.rows", "mixed"), &["all", "heads", "length", "d"]);
    }

    fn reshaped(&mut self, i: usize, (from, to): (&str, &str), dims: &[&str]) {
        let dims: Vec<String> = dims.iter().map(|dim| format!("%{dim}")).collect();
        self.line(&format!("%h.{i}.{to}.dims = Concat({}) {{axis: 0}}", dims.join(", ")));
        self.line(&format!("%h.{i}.{to} = Reshape(%h.{i}.{from}, %h.{i}.{to}.dims)"));
    }

    /// `q` and `keys.scaled`, where the scale is theirs.
    fn scaled_queries(&mut self, i: usize) {
        let (at, d) = (format!("h.{i}"), self.of.head_dim() as f64);
        let (of_q, of_k) = match self.of.scale {
            2 => (Some(d.powf(-0.5)), None),
            3 => (Some(d.powf(-0.25)), Some(d.powf(-0.25))),
            _ => (None, None),
        };
        for (from, to, scale) in [("q.turned", "q", of_q), ("keys", "keys.scaled", of_k)] {
            match scale {
                Some(scale) => {
                    self.line(&format!("const %{at}.{to}.by: f32[] = [{scale:?}]"));
                    self.either(
                        &format!("{at}.{to}"),
                        "Mul",
                        [&format!("{at}.{from}"), &format!("{at}.{to}.by")],
                    );
                }
                None => self.line(&format!("%{at}.{to} = Identity(%{at}.{from})")),
            }
        }
    }

    /// `scores`, where the scale is theirs.
    fn scaled_scores(&mut self, i: usize) {
        let (at, d) = (format!("h.{i}"), self.of.head_dim() as f64);
        match self.of.scale {
            0 => {
                self.line(&format!("const %{at}.by: f32[] = [{:?}]", d.powf(-0.5)));
                self.either(&format!("{at}.scores"), "Mul", [&format!("{at}.product"), &format!("{at}.by")]);
            }
            1 => {
                self.line(&format!("const %{at}.by: f32[] = [{:?}]", d.sqrt()));
                self.line(&format!("%{at}.scores = Div(%{at}.product, %{at}.by)"));
            }
            _ => self.line(&format!("%{at}.scores = Identity(%{at}.product)")),
        }
    }

    fn masked(&mut self, i: usize) {
        let at = format!("h.{i}");
        let (scores, masked) = (format!("{at}.scores"), format!("{at}.masked"));
        match (self.of.mask, self.of.has_padding) {
            (0 | 3, _) => self.either(&masked, "Add", [&scores, "mask"]),
            (2, _) => self.line(&format!("%{masked} = Where(%open, %{scores}, %shut)")),
            (1, true) => {
                self.either(&format!("{at}.early"), "Add", [&scores, "causal"]);
                self.either(&masked, "Add", [&format!("{at}.early"), "padding"]);
            }
            (1, false) => self.either(&masked, "Add", [&scores, "causal"]),
            // As GPT-2 had it: b · scores - c (1 - b).
            (_, padding) => {
                self.either(&format!("{at}.kept"), "Mul", [&scores, "reach"]);
                let early = if padding { format!("{at}.early") } else { masked.clone() };
                self.either(&early, "Add", [&format!("{at}.kept"), "causal"]);
                if padding {
                    self.either(&masked, "Add", [&early, "padding"]);
                }
            }
        }
    }
}
