//! The textual form of a graph, which prints and parses.
//!
//! ```text
//! graph "tiny" {
//!   input %x: f32[batch, 4]
//!   weight %w: f32[4, 2] = random(7)
//!   const %c: i64[2] = [0, -1]
//!   %y = MatMul(%x, %w) "proj": f32[batch, 2]
//!   %z = Reshape(%y, %c) {allowzero: 0} "flat": f32[batch, 2]
//!   output "z" %z
//! }
//! ```
//! Constants of up to 16 elements print their elements. Larger ones print `elided`, which reads
//! back as zeros; `random(seed)` reads as numbers uniform in -1..1, for tests.

use super::graph::{Def, Graph, ValueId};
use super::op::{Attr, Op};
use super::patch::{Patch, PatchError};
use super::shape::{Dim, Shape};
use super::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Longest constant that is printed element by element.
const MAX_PRINTED: usize = 16;

/// Prints a graph: inputs, constants as they are first used, nodes in topological order, outputs.
pub fn print(graph: &Graph) -> String {
    let mut out = format!("graph {:?} {{\n", graph.name);
    for input in graph.inputs() {
        let value = graph.value(*input);
        let _ = writeln!(out, "  input {}: {}", name(graph, *input), value.ty);
    }
    let mut printed = std::collections::BTreeSet::new();
    let mut constant = |out: &mut String, id: ValueId| {
        if let Def::Const(tensor) = &graph.value(id).def
            && printed.insert(id)
        {
            let kind = if graph.value(id).is_weight { "weight" } else { "const" };
            let _ = writeln!(out, "  {kind} {}: {tensor:?} = {}", name(graph, id), elements(tensor));
        }
    };
    for id in graph.order() {
        let node = graph.node(id);
        node.inputs.iter().flatten().for_each(|v| constant(&mut out, *v));
        let list = |values: Vec<String>| values.join(", ");
        let outputs = list(node.outputs.iter().map(|v| name(graph, *v)).collect());
        let inputs = node.inputs.iter().map(|v| v.map_or("_".to_owned(), |v| name(graph, v)));
        let types = list(node.outputs.iter().map(|v| graph.value(*v).ty.to_string()).collect());
        let _ = write!(out, "  {outputs} = {}({})", node.op.qualified_name(), list(inputs.collect()));
        if !node.op.attrs.is_empty() {
            let attrs = node.op.attrs.iter().map(|(k, v)| format!("{k}: {v}"));
            let _ = write!(out, " {{{}}}", list(attrs.collect()));
        }
        let _ = writeln!(out, " {:?}: {types}", node.name);
    }
    for (label, id) in graph.outputs() {
        constant(&mut out, *id);
        let _ = writeln!(out, "  output {label:?} {}", name(graph, *id));
    }
    out.push_str("}\n");
    out
}

fn name(graph: &Graph, value: ValueId) -> String {
    let name = &graph.value(value).name;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/:".contains(c);
    if !name.is_empty() && name.chars().all(plain) { format!("%{name}") } else { format!("%{name:?}") }
}

fn elements(tensor: &Tensor) -> String {
    if tensor.len() > MAX_PRINTED {
        return "elided".to_owned();
    }
    let shown: Vec<String> = match tensor.to_i64() {
        Some(ints) => ints.iter().map(i64::to_string).collect(),
        None if tensor.dtype() == DType::F64 => tensor.to_f64().iter().map(|x| format!("{x:?}")).collect(),
        None => tensor.to_f64().iter().map(|x| format!("{:?}", *x as f32)).collect(),
    };
    format!("[{}]", shown.join(", "))
}

/// Why a text is no graph.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("line {line}, column {column}: expected {expected}, found {found}")]
    Syntax { line: usize, column: usize, expected: String, found: String },
    #[error(transparent)]
    Graph(#[from] PatchError),
}

/// Reads the textual form back. Types of nodes are inferred; where the text states one, it must agree.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut parser = Parser { text, pos: 0 };
    parser.word("graph")?;
    let title = parser.string()?;
    parser.symbol("{")?;
    let mut graph = Graph::new(&title);
    let change = {
        let mut patch = Patch::new(&graph, "parse");
        let mut names = BTreeMap::new();
        while !parser.eat("}") {
            parser.line(&mut patch, &mut names)?;
        }
        patch.finish()
    };
    graph.apply(change)?;
    Ok(graph)
}

type Names = BTreeMap<String, ValueId>;

struct Parser<'t> {
    text: &'t str,
    pos: usize,
}

impl<'t> Parser<'t> {
    fn rest(&mut self) -> &'t str {
        let rest = &self.text[self.pos..];
        let trimmed = rest.trim_start();
        self.pos += rest.len() - trimmed.len();
        trimmed
    }

    fn fail<T>(&mut self, expected: &str) -> Result<T, ParseError> {
        let found: String = self.rest().chars().take_while(|c| !c.is_whitespace()).take(24).collect();
        let before = &self.text[..self.pos];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |i| i + 1) + 1;
        let found = if found.is_empty() { "the end".to_owned() } else { format!("`{found}`") };
        Err(ParseError::Syntax { line, column, expected: expected.to_owned(), found })
    }

    fn eat(&mut self, symbol: &str) -> bool {
        let found = self.rest().starts_with(symbol);
        if found {
            self.pos += symbol.len();
        }
        found
    }

    fn symbol(&mut self, symbol: &str) -> Result<(), ParseError> {
        if self.eat(symbol) { Ok(()) } else { self.fail(&format!("`{symbol}`")) }
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !keep(c)).unwrap_or(rest.len());
        self.pos += end;
        &rest[..end]
    }

    fn ident(&mut self) -> Result<String, ParseError> {
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || "._".contains(c));
        if word.is_empty() { self.fail("a name") } else { Ok(word.to_owned()) }
    }

    fn word(&mut self, expected: &str) -> Result<(), ParseError> {
        if self.eat(expected) { Ok(()) } else { self.fail(&format!("`{expected}`")) }
    }

    fn string(&mut self) -> Result<String, ParseError> {
        if !self.rest().starts_with('"') {
            return self.fail("a string in quotes");
        }
        let body = &self.text[self.pos + 1..];
        let mut out = String::new();
        let mut chars = body.char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.pos += i + 2;
                    return Ok(out);
                }
                '\\' => out.extend(chars.next().map(|(_, c)| if c == 'n' { '\n' } else { c })),
                c => out.push(c),
            }
        }
        self.fail("the end of a string")
    }

    fn value_name(&mut self) -> Result<String, ParseError> {
        self.symbol("%")?;
        if self.rest().starts_with('"') {
            return self.string();
        }
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || "._/:".contains(c));
        // A value's own name may hold colons, but the colon before a type ends it.
        let name_end = name.trim_end_matches(':');
        self.pos -= name.len() - name_end.len();
        if name_end.is_empty() { self.fail("a value name") } else { Ok(name_end.to_owned()) }
    }

    fn value(&mut self, names: &Names) -> Result<ValueId, ParseError> {
        let start = self.pos;
        let name = self.value_name()?;
        match names.get(&name) {
            Some(id) => Ok(*id),
            None => {
                self.pos = start;
                self.fail("a value defined above")
            }
        }
    }

    fn int(&mut self) -> Result<i64, ParseError> {
        let start = self.pos;
        let word = self.take_while(|c| c.is_ascii_digit() || c == '-');
        word.parse().or_else(|_| {
            self.pos = start;
            self.fail("an integer")
        })
    }

    fn number(&mut self) -> Result<f64, ParseError> {
        let start = self.pos;
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        word.parse().or_else(|_| {
            self.pos = start;
            self.fail("a number")
        })
    }

    fn list<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() {
                self.symbol(",")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn dtype(&mut self) -> Result<Option<DType>, ParseError> {
        if self.eat("?") {
            return Ok(None);
        }
        let start = self.pos;
        let word = self.take_while(|c| c.is_ascii_alphanumeric());
        match word.parse() {
            Ok(dtype) => Ok(Some(dtype)),
            Err(_) => {
                self.pos = start;
                self.fail("an element type")
            }
        }
    }

    fn shape(&mut self) -> Result<Option<Shape>, ParseError> {
        self.symbol("[")?;
        if self.eat("..]") {
            return Ok(None);
        }
        let dim = |p: &mut Self| {
            let word = p.take_while(|c| c != ',' && c != ']').trim_end();
            Ok(match word.parse() {
                Ok(n) => Dim::Known(n),
                Err(_) if word == "?" => Dim::Unknown,
                Err(_) => Dim::sym(word),
            })
        };
        Ok(Some(self.list("]", dim)?))
    }

    fn full_type(&mut self) -> Result<(DType, Shape), ParseError> {
        match (self.dtype()?, self.shape()?) {
            (Some(dtype), Some(shape)) => Ok((dtype, shape)),
            _ => self.fail("a complete type"),
        }
    }

    fn line(&mut self, patch: &mut Patch<'_>, names: &mut Names) -> Result<(), ParseError> {
        if self.eat("input ") {
            let name = self.value_name()?;
            self.symbol(":")?;
            let (dtype, shape) = self.full_type()?;
            let id = patch.input(&name, dtype, shape);
            names.insert(name, id);
        } else if self.eat("const ") {
            let (name, tensor) = self.constant()?;
            let id = patch.named_constant(&name, tensor);
            names.insert(name, id);
        } else if self.eat("weight ") {
            let (name, tensor) = self.constant()?;
            let id = patch.weight(&name, tensor);
            names.insert(name, id);
        } else if self.eat("output ") {
            let label = self.string()?;
            let id = self.value(names)?;
            patch.output(&label, id);
        } else {
            self.node(patch, names)?;
        }
        Ok(())
    }

    fn constant(&mut self) -> Result<(String, Tensor), ParseError> {
        let name = self.value_name()?;
        self.symbol(":")?;
        let (dtype, shape) = self.full_type()?;
        self.symbol("=")?;
        Ok((name, self.tensor(dtype, &shape)?))
    }

    fn node(&mut self, patch: &mut Patch<'_>, names: &mut Names) -> Result<(), ParseError> {
        let mut outputs = vec![self.value_name()?];
        while self.eat(",") {
            outputs.push(self.value_name()?);
        }
        self.symbol("=")?;
        let qualified = self.ident()?;
        let (domain, name) = qualified.rsplit_once('.').unwrap_or(("", &qualified));
        let mut op = Op::in_domain(domain, name);
        self.symbol("(")?;
        let inputs = self.list(")", |p| if p.eat("_") { Ok(None) } else { p.value(names).map(Some) })?;
        if self.eat("{") {
            let attrs = self.list("}", |p| {
                let key = p.ident()?;
                p.symbol(":")?;
                Ok((key, p.attr()?))
            })?;
            op.attrs.extend(attrs);
        }
        let label = if self.rest().starts_with('"') { self.string()? } else { outputs[0].clone() };
        let ids = patch.named_node(&label, op, &inputs, outputs.clone());
        if self.eat(":") {
            for id in &ids {
                let (dtype, shape) = (self.dtype()?, self.shape()?);
                let stated = super::infer::Type::maybe(dtype, shape);
                let inferred = patch.ty(*id);
                if !inferred.agrees(&stated) {
                    let expected = format!("a type that agrees with {inferred}");
                    return self.fail(&expected);
                }
                self.eat(",");
            }
        }
        names.extend(outputs.into_iter().zip(ids));
        Ok(())
    }

    fn attr(&mut self) -> Result<Attr, ParseError> {
        if self.rest().starts_with('"') {
            return Ok(Attr::Str(self.string()?));
        }
        if self.eat("[") {
            let numbers = self.list("]", |p| {
                let start = p.pos;
                let word = p.take_while(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)).to_owned();
                p.pos = start;
                Ok((is_float(&word), p.number()?))
            })?;
            return Ok(if numbers.iter().any(|(float, _)| *float) {
                Attr::Floats(numbers.iter().map(|(_, x)| *x as f32).collect())
            } else {
                Attr::Ints(numbers.iter().map(|(_, x)| *x as i64).collect())
            });
        }
        if self.eat("tensor ") {
            let (dtype, shape) = self.full_type()?;
            let dims: Vec<u64> = shape.iter().filter_map(Dim::known).collect();
            return Ok(Attr::Tensor(zeros(dtype, &dims)));
        }
        let start = self.pos;
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)).to_owned();
        self.pos = start;
        if is_float(&word) { Ok(Attr::Float(self.number()? as f32)) } else { Ok(Attr::Int(self.int()?)) }
    }

    fn tensor(&mut self, dtype: DType, shape: &Shape) -> Result<Tensor, ParseError> {
        let dims: Vec<u64> = shape.iter().filter_map(Dim::known).collect();
        if dims.len() != shape.len() {
            return self.fail("a constant with known dims");
        }
        if self.eat("elided") {
            return Ok(zeros(dtype, &dims));
        }
        let len = dims.iter().product::<u64>() as usize;
        let values = if self.eat("random(") {
            let seed = self.int()?;
            self.symbol(")")?;
            let mut random = Random::new(seed as u64);
            (0..len).map(|_| random.uniform() * 2.0 - 1.0).collect()
        } else {
            self.symbol("[")?;
            self.list("]", Self::number)?
        };
        if values.len() != len {
            return self.fail(&format!("{len} elements before this"));
        }
        if dtype == DType::I64 {
            let ints: Vec<i64> = values.iter().map(|x| *x as i64).collect();
            return Ok(Tensor::from_i64(&dims, &ints));
        }
        let bytes: Vec<u8> =
            values.iter().flat_map(|x| Tensor::scalar(dtype, *x).bytes().into_owned()).collect();
        Tensor::from_bytes(dtype, dims, bytes).or_else(|e| self.fail(&e.to_string()))
    }
}

/// `1.0`, `1e-6`, `inf`, `NaN`
fn is_float(word: &str) -> bool {
    word.chars().any(|c| !c.is_ascii_digit() && c != '-')
}

fn zeros(dtype: DType, dims: &[u64]) -> Tensor {
    let len = dims.iter().product::<u64>() as usize * dtype.size();
    Tensor::from_bytes(dtype, dims.to_vec(), vec![0; len]).expect("zeros fill dims")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = r#"graph "tiny" {
  input %x: f32[batch, 4]
  weight %w: f32[4, 2] = [0.5, -1.0, 2.0, 3.25, 1e-6, 0.0, 1.0, 2.0]
  %y:0 = MatMul(%x, %w) "y": f32[batch, 2]
  const %shape: i64[2] = [-1, 1]
  %"odd name" = Reshape(%y:0, %shape) {allowzero: 0} "flat": f32[?, 1]
  %a, %b = Split(%y:0) {axis: 1} "two": f32[batch, 1], f32[batch, 1]
  %s = Clip(%a, _, %b) "clip": f32[batch, 1]
  output "z" %"odd name"
  output "s" %s
}
"#;

    #[test]
    fn what_prints_parses_to_the_same_text() {
        let graph = parse(TINY).expect("it parses");
        assert_eq!(print(&graph), TINY);
        assert_eq!(crate::ir::verify::verify(&graph), []);
    }

    #[test]
    fn errors_name_the_place() {
        let cases = [
            (
                "graph \"g\" {\n  %y = Add(%x, %x)\n}",
                "line 2, column 12: expected a value defined above, found `%x,`",
            ),
            (
                "graph \"g\" {\n  input %x: f33[2]\n}",
                "line 2, column 13: expected an element type, found `f33[2]`",
            ),
            (
                "graph \"g\" {\n input %x: f32[2]\n const %w: f32[3] = [1.0, 2.0, 3.0]\n %y = Add(%x, %w)\n output \"y\" %y\n}",
                "parse: node `y` (Add): [2] and [3] do not broadcast (inputs f32[2], f32[3])",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text).expect_err("it does not parse").to_string(), want);
        }
    }
}
