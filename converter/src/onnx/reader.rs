//! The walk over the nodes of a model: names become values, nodes become operators in normal form.

use super::dims::DimNames;
use super::external::ExternalFiles;
use super::functions::{self, Functions, Given};
use super::import::{ImportProblem, OPSETS};
use super::legacy::{self, Flattened};
use super::notes::Notes;
use super::proto::{
    AttributeProto, DimValue, DimensionProto, EXTERNAL, FunctionProto, GraphProto, NodeProto,
    OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use super::unique::Unique;
use super::{attribute, branches, domain, dtype, forms, forms::Form, order};
use crate::report::message::shown;
use dijiang_format::dtype::DType;
use dijiang_format::names::{MASK, is_made};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::op::{Attr, Op};
use dijiang_passes::ir::patch::{Change, Patch};
use dijiang_passes::ir::shape::{Dim, Shape};
use dijiang_passes::ir::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A float constant in the model file with more elements than this is a weight.
const MAX_SMALL: usize = 64;

/// Bytes in the model file that are more than this are a quantised weight.
const MAX_TABLE: usize = 4096;

/// Bytes of nodes that the calls of functions may expand to. A few hundred bytes of functions that call
/// each other twice would otherwise expand to more than any memory holds.
const MAX_EXPANDED: usize = 16 << 20;

/// The version of the standard operators, where the list has one.
pub(super) fn opset(imports: &[OperatorSetIdProto]) -> Result<Option<i64>, ImportProblem> {
    match imports.iter().find(|o| domain(&o.domain).is_empty()).map(|o| o.version) {
        Some(found) if !OPSETS.contains(&found) => Err(ImportProblem::Opset { found }),
        found => Ok(found),
    }
}

/// What a name stands for. A function's input that its call leaves out has a name and no value.
#[derive(Clone, Copy)]
struct Named(Option<ValueId>);

type Scope = BTreeMap<String, Named>;

/// How the names of nodes are meant: in the model's graph, or in a function being put in place.
struct Frame {
    opset: i64,
    /// What the call gives; `None` in the model's own graph.
    given: Option<Given>,
    /// Put before the names of nodes and values.
    prefix: String,
    /// The innermost graph last. The inner ones see the names of the outer ones.
    scopes: Vec<Scope>,
}

pub(super) struct Reader<'m> {
    pub(super) patch: Patch<'m>,
    files: ExternalFiles,
    functions: Functions<'m>,
    frame: Frame,
    /// The functions being put in place, the outermost first.
    calls: Vec<&'m FunctionProto>,
    expanded: usize,
    depth: usize,
    /// All names of values, and those that the model's graph will define.
    taken: Unique,
    /// String initialisers and the like: an error only where they are used.
    unreadable: BTreeMap<String, String>,
    /// Computed values of one element of which it is known whether they are true.
    pub(super) truths: BTreeMap<ValueId, bool>,
    unnamed: usize,
    dims: DimNames,
    pub(super) notes: Notes,
}

impl<'m> Reader<'m> {
    pub(super) fn new(
        graph: &'m Graph,
        proto: &GraphProto,
        opset: i64,
        functions: Functions<'m>,
        files: ExternalFiles,
    ) -> Self {
        let prefix = String::new();
        Self {
            patch: Patch::new(graph, "import"),
            files,
            functions,
            frame: Frame { opset, given: None, prefix, scopes: vec![Scope::new()] },
            calls: Vec::new(),
            expanded: 0,
            depth: 0,
            taken: names(proto).collect(),
            unreadable: BTreeMap::new(),
            truths: BTreeMap::new(),
            unnamed: 0,
            dims: DimNames::new(dim_names(proto)),
            notes: Notes::default(),
        }
    }

    /// Returns the files of external data too.
    pub(super) fn read(mut self, proto: &GraphProto) -> Result<(Change, Notes, Vec<PathBuf>), ImportProblem> {
        self.initializers(proto)?;
        self.inputs(proto)?;
        self.nodes(proto)?;
        self.outputs(proto)?;
        self.files.check()?;
        Ok((self.patch.finish(), self.notes, self.files.paths()))
    }

    pub(super) fn initializers(&mut self, proto: &GraphProto) -> Result<(), ImportProblem> {
        if let Some(sparse) = proto.sparse_initializer.first() {
            let name = sparse.values.as_ref().map_or(String::new(), |v| shown(&v.name));
            return Err(ImportProblem::Sparse { name });
        }
        for init in &proto.initializer {
            let fail = |reason| ImportProblem::Initializer { name: shown(&init.name), reason };
            self.initializer(init).map_err(fail)?;
        }
        Ok(())
    }

    fn initializer(&mut self, proto: &TensorProto) -> Result<(), String> {
        if proto.name.is_empty() {
            return Err("it has no name".to_owned());
        }
        self.check_new(&proto.name)?;
        if let Some(reason) = dtype::unreadable(proto.data_type) {
            if self.unreadable.insert(proto.name.clone(), reason).is_some() {
                return Err("its name is defined twice".to_owned());
            }
            return Ok(());
        }
        let tensor = self.files.read(proto)?;
        self.tensor(&proto.name, tensor, proto.data_location == EXTERNAL);
        Ok(())
    }

    /// A constant. It is a weight where it is large, or where the model keeps it with its weights.
    fn tensor(&mut self, name: &str, tensor: Tensor, is_weight: bool) {
        let label = self.value_name(name);
        let most = match tensor.dtype() {
            DType::U8 | DType::I8 => MAX_TABLE,
            dtype if dtype.is_float() => MAX_SMALL,
            _ => usize::MAX,
        };
        let id = if is_weight || (tensor.len() > most && !is_made(name)) {
            self.notes.weight(&label, &tensor);
            self.patch.weight(&label, tensor)
        } else {
            self.patch.named_constant(&label, tensor)
        };
        self.bind(name, Some(id));
    }

    /// An input with an initialiser is a constant: before IR version 4 all of them were listed as inputs.
    fn inputs(&mut self, proto: &GraphProto) -> Result<(), ImportProblem> {
        let mut seen = BTreeSet::new();
        for input in &proto.input {
            let fail = |reason| ImportProblem::Input { name: shown(&input.name), reason };
            if input.name.is_empty() {
                return Err(fail("it has no name".to_owned()));
            }
            if !seen.insert(&input.name) {
                return Err(fail("it is there twice".to_owned()));
            }
            self.input(input, proto).map_err(fail)?;
        }
        Ok(())
    }

    fn input(&mut self, input: &ValueInfoProto, proto: &GraphProto) -> Result<(), String> {
        if self.unreadable.contains_key(&input.name) {
            return Ok(());
        }
        let ty = input_type(input);
        if let Some(constant) = self.find(&input.name).and_then(|named| named.0) {
            self.notes.default_of_input(&input.name);
            return ty.map_or(Ok(()), |(dtype, _)| self.check_dtype(constant, dtype));
        }
        let (dtype, shape) = ty?;
        let id = match branches::fixed_input(input, dtype, &shape, proto) {
            Some(tensor) => {
                self.notes.add(branches::fixed_note(&input.name));
                self.patch.named_constant(&input.name, tensor)
            }
            None => {
                let shape = self.dims.named(&input.name, shape);
                self.given(&input.name, dtype, shape)
            }
        };
        self.bind(&input.name, Some(id));
        Ok(())
    }

    /// An input of the model. A mask of another kind than whole numbers becomes one of those, which is what runtimes feed.
    fn given(&mut self, name: &str, dtype: DType, shape: Shape) -> ValueId {
        if name != MASK || shape.len() != 2 || dtype.is_int() {
            return self.patch.input(name, dtype, shape);
        }
        self.notes.add(format!(
            "input `{MASK}` takes whole numbers, 1 for a token and 0 for padding, in place of {dtype}"
        ));
        let given = self.patch.input(name, DType::I64, shape);
        let op = Op::new("Cast").with("to", dtype.name());
        self.helper(MASK, "given", op, &[Some(given)])
    }

    fn check_dtype(&self, value: ValueId, declared: DType) -> Result<(), String> {
        match self.patch.ty(value).dtype {
            Some(found) if found != declared => {
                Err(format!("it is declared {declared}, but its values are {found}"))
            }
            _ => Ok(()),
        }
    }

    fn outputs(&mut self, proto: &GraphProto) -> Result<(), ImportProblem> {
        let mut seen = BTreeSet::new();
        for output in &proto.output {
            let fail = |reason| ImportProblem::Output { name: shown(&output.name), reason };
            if !seen.insert(&output.name) {
                return Err(fail("it is there twice".to_owned()));
            }
            let id = self.value(&output.name).ok().flatten();
            let id = id.ok_or_else(|| fail("nothing computes it".to_owned()))?;
            if let Some(tensor) = output.r#type.as_ref().and_then(|t| t.tensor_type.as_ref())
                && let Ok(declared) = dtype::from_number(tensor.elem_type)
            {
                self.check_dtype(id, declared).map_err(fail)?;
            }
            self.patch.output(&output.name, id);
        }
        Ok(())
    }

    fn nodes(&mut self, graph: &GraphProto) -> Result<(), ImportProblem> {
        for at in order::sorted(&graph.node) {
            self.node(&graph.node[at]).map_err(|problem| explained(problem, graph, at))?;
        }
        Ok(())
    }

    pub(super) fn node(&mut self, proto: &NodeProto) -> Result<(), ImportProblem> {
        self.expand(proto)?;
        let resolved;
        let proto = match self.frame.given.take() {
            Some(given) => {
                resolved = functions::resolved(proto, &given);
                self.frame.given = Some(given);
                &*resolved
            }
            None => proto,
        };
        let name = self.node_name(proto);
        if let Some(function) = self.functions.called(proto) {
            return self.call(function, proto, &name);
        }
        let standard = domain(&proto.domain).is_empty();
        match proto.op_type.as_str() {
            "If" if standard => return self.branch(proto, &name),
            "Constant" if standard => self.constant(proto),
            _ => self.operator(proto, &name),
        }
        .map_err(|reason| problem(proto, &name, reason))
    }

    fn node_name(&mut self, proto: &NodeProto) -> String {
        if !proto.name.is_empty() {
            return format!("{}{}", self.frame.prefix, proto.name);
        }
        self.unnamed += 1;
        format!("{}{}_{}", self.frame.prefix, proto.op_type, self.unnamed)
    }

    fn find(&self, name: &str) -> Option<Named> {
        self.frame.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    pub(super) fn value(&self, name: &str) -> Result<Option<ValueId>, String> {
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(Named(found)) = self.find(name) {
            return Ok(found);
        }
        if let Some(reason) = self.unreadable.get(name) {
            return Err(format!("its input `{}`: {reason}", shown(name)));
        }
        Err(format!("its input `{}` is not defined before it", shown(name)))
    }

    fn check_new(&self, name: &str) -> Result<(), String> {
        match self.find(name) {
            Some(_) => Err("its name is defined twice".to_owned()),
            None => Ok(()),
        }
    }

    pub(super) fn bind(&mut self, name: &str, id: Option<ValueId>) {
        if let Some(scope) = self.frame.scopes.last_mut() {
            scope.insert(name.to_owned(), Named(id));
        }
    }

    /// The name of a value in the IR, where names are never reused: that of the file for values of
    /// the model's graph, and one that is free for all others.
    fn value_name(&mut self, name: &str) -> String {
        let is_outer = self.frame.given.is_none() && self.frame.scopes.len() == 1;
        if is_outer { name.to_owned() } else { self.taken.fresh(&format!("{}{name}", self.frame.prefix)) }
    }

    fn operator(&mut self, proto: &NodeProto, name: &str) -> Result<(), String> {
        if self.renamed(proto)? {
            return Ok(());
        }
        let mut inputs = Vec::new();
        for input in &proto.input {
            inputs.push(self.value(input)?);
        }
        let mut op = self.op(proto, &mut inputs)?;
        self.attributes_to_inputs(&mut op, &mut inputs, name)?;
        while inputs.last().is_some_and(Option::is_none) {
            inputs.pop();
        }
        self.note(&op, name);
        if legacy::flattens(&op, self.frame.opset) {
            return self.flattening(op, &inputs, name, proto);
        }
        self.add(name, op, &inputs, &proto.output)
    }

    fn note(&mut self, op: &Op, name: &str) {
        if op.spec().is_none() {
            self.notes.opaque(op.qualified_name(), name);
        }
        if let Some(since) = legacy::changed_after(op, self.frame.opset) {
            let (name, op, opset) = (shown(name), op.qualified_name(), self.frame.opset);
            self.notes.add(format!(
                "node `{name}` ({op}): it is kept as opset {opset} writes it, and opset {since} writes it otherwise"
            ));
        }
    }

    fn attributes_to_inputs(
        &mut self,
        op: &mut Op,
        inputs: &mut Vec<Option<ValueId>>,
        name: &str,
    ) -> Result<(), String> {
        for (slot, tensor) in legacy::attributes_to_inputs(op, self.frame.opset)? {
            let constant = self.taken.fresh(&format!("{name}:input{slot}"));
            let id = self.patch.named_constant(&constant, tensor);
            if inputs.len() > slot {
                return Err(format!("{} inputs, expected {slot} before the attribute", inputs.len()));
            }
            inputs.resize(slot, None);
            inputs.push(Some(id));
        }
        Ok(())
    }

    /// A softmax over all dims from its axis on, in the one form that later opsets have.
    fn flattening(
        &mut self,
        mut op: Op,
        inputs: &[Option<ValueId>],
        name: &str,
        proto: &NodeProto,
    ) -> Result<(), String> {
        let Some(x) = inputs.first().copied().flatten() else { return Err("it has no input".to_owned()) };
        let axis = match op.attrs.remove("axis") {
            Some(Attr::Int(axis)) => axis,
            Some(other) => return Err(format!("attribute `axis` = {other} is of the wrong kind")),
            None => 1,
        };
        let shape = self.patch.ty(x).shape.clone();
        let dims: Vec<Option<u64>> = shape.iter().flatten().map(Dim::known).collect();
        let sizes = match legacy::flattened(axis, shape.map(|s| s.len()), &dims)? {
            Flattened::Axis(axis) => return self.add(name, op.with("axis", axis), inputs, &proto.output),
            Flattened::Reshaped(sizes) => sizes,
        };
        let sizes_name = self.taken.fresh(&format!("{name}:sizes"));
        let sizes = self.patch.named_constant(&sizes_name, Tensor::from_i64(&[sizes.len() as u64], &sizes));
        let flat = self.helper(name, "flatten", Op::new("Reshape"), &[Some(x), Some(sizes)]);
        let done = self.helper(name, "flat", op.with("axis", -1), &[Some(flat)]);
        let shape = self.helper(name, "shape", Op::new("Shape"), &[Some(x)]);
        self.add(name, Op::new("Reshape"), &[Some(done), Some(shape)], &proto.output)
    }

    /// A node that the model does not have, beside one that it has.
    fn helper(&mut self, node: &str, what: &str, op: Op, inputs: &[Option<ValueId>]) -> ValueId {
        let name = self.taken.fresh(&format!("{node}:{what}"));
        self.patch.named_node(&name, op, inputs, vec![name.clone()])[0]
    }

    fn add(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[Option<ValueId>],
        outputs: &[String],
    ) -> Result<(), String> {
        let truth = branches::truth(self, &op, inputs);
        let mut labels = Vec::with_capacity(outputs.len());
        let mut own = BTreeSet::new();
        for (slot, output) in outputs.iter().enumerate() {
            if output.is_empty() {
                // It still needs a name in the IR. A long name many times over would fill the memory.
                let stem = if name.len() <= 256 { name } else { "node" };
                labels.push(self.taken.fresh(&format!("{stem}:unused{slot}")));
                continue;
            }
            if self.check_new(output).is_err() || !own.insert(output) {
                return Err(format!("its output `{}` is defined twice", shown(output)));
            }
            labels.push(self.value_name(output));
        }
        let ids = self.patch.named_node(name, op, inputs, labels);
        for (output, id) in outputs.iter().zip(&ids).filter(|(output, _)| !output.is_empty()) {
            self.bind(output, Some(*id));
        }
        if let (Some(truth), [id]) = (truth, ids.as_slice()) {
            self.truths.insert(*id, truth);
        }
        Ok(())
    }

    /// A `Constant` node, in any of its forms that hold numbers.
    fn constant(&mut self, proto: &NodeProto) -> Result<(), String> {
        let ([output], [attr]) = (proto.output.as_slice(), proto.attribute.as_slice()) else {
            return Err("expected one output and one attribute".to_owned());
        };
        if self.check_new(output).is_err() {
            return Err(format!("its output `{}` is defined twice", shown(output)));
        }
        if ["value_string", "value_strings"].contains(&attr.name.as_str()) {
            self.unreadable.insert(output.clone(), "strings are not supported".to_owned());
            return Ok(());
        }
        let read =
            attribute::from_proto(attr).map_err(|e| format!("attribute `{}`: {e}", shown(&attr.name)))?;
        let tensor = match (attr.name.as_str(), read) {
            ("value", Attr::Tensor(tensor)) => tensor,
            ("value_int", Attr::Int(x)) => Tensor::from_i64(&[], &[x]),
            ("value_ints", Attr::Ints(x)) => Tensor::from_i64(&[x.len() as u64], &x),
            ("value_float", Attr::Float(x)) => Tensor::from_f32(&[], &[x]),
            ("value_floats", Attr::Floats(x)) => Tensor::from_f32(&[x.len() as u64], &x),
            (name, _) => return Err(format!("attribute `{}` is not supported", shown(name))),
        };
        self.tensor(output, tensor, false);
        Ok(())
    }

    /// A constant by another name, as exporters write one that several nodes share. A weight stays one.
    fn renamed(&mut self, proto: &NodeProto) -> Result<bool, String> {
        let is_identity = proto.op_type == "Identity" && domain(&proto.domain).is_empty();
        let ([input], [output], true) = (proto.input.as_slice(), proto.output.as_slice(), is_identity) else {
            return Ok(false);
        };
        let Some(id) = self.value(input)?.filter(|_| !output.is_empty()) else { return Ok(false) };
        let value = self.patch.value(id);
        let Some(tensor) = value.as_const().filter(|_| !value.is_weight).cloned() else { return Ok(false) };
        if self.check_new(output).is_err() {
            return Err(format!("its output `{}` is defined twice", shown(output)));
        }
        self.tensor(output, tensor, false);
        Ok(true)
    }

    /// Takes the branch of an `If` that is known to be taken in its place.
    fn branch(&mut self, proto: &NodeProto, name: &str) -> Result<(), ImportProblem> {
        let fail = |reason| problem(proto, name, reason);
        let taken = branches::taken(self, proto).map_err(fail)?;
        let graph = branches::graph(proto, taken).map_err(fail)?;
        self.deeper().map_err(fail)?;
        self.frame.scopes.push(Scope::new());
        self.initializers(graph)?;
        self.nodes(graph)?;
        let outputs = self.results(graph.output.iter().map(|o| &o.name));
        self.frame.scopes.pop();
        self.depth -= 1;
        self.notes.add(branches::note(name, taken));
        outputs.and_then(|ids| self.bind_results(proto, &ids)).map_err(fail)
    }

    fn results<'n>(&self, names: impl Iterator<Item = &'n String>) -> Result<Vec<Option<ValueId>>, String> {
        names
            .map(|name| {
                self.value(name).map_err(|_| format!("nothing computes its result `{}`", shown(name)))
            })
            .collect()
    }

    fn bind_results(&mut self, proto: &NodeProto, ids: &[Option<ValueId>]) -> Result<(), String> {
        if proto.output.len() > ids.len() {
            return Err(format!("it has {} outputs, but computes {}", proto.output.len(), ids.len()));
        }
        for (output, id) in proto.output.iter().zip(ids).filter(|(output, _)| !output.is_empty()) {
            if self.check_new(output).is_err() {
                return Err(format!("its output `{}` is defined twice", shown(output)));
            }
            self.bind(output, *id);
        }
        Ok(())
    }

    /// Puts the nodes of a function in the place of its call.
    fn call(
        &mut self,
        function: &'m FunctionProto,
        proto: &NodeProto,
        name: &str,
    ) -> Result<(), ImportProblem> {
        let fail = |reason| problem(proto, name, reason);
        self.check_call(function, proto)?;
        self.deeper().map_err(fail)?;
        let mut scope = Scope::new();
        for (slot, input) in function.input.iter().enumerate() {
            let given = proto.input.get(slot).map_or(Ok(None), |given| self.value(given)).map_err(fail)?;
            scope.insert(input.clone(), Named(given));
        }
        let opset = opset(&function.opset_import).map_err(|e| in_function(function, e.to_string()))?;
        let opset = opset.unwrap_or(self.frame.opset);
        let given = Some(functions::attributes(function, proto));
        let frame = Frame { opset, given, prefix: format!("{name}/"), scopes: vec![scope] };
        let outer = std::mem::replace(&mut self.frame, frame);
        self.calls.push(function);
        for node in &function.node {
            self.node(node)?;
        }
        let outputs = self.results(function.output.iter());
        self.calls.pop();
        self.depth -= 1;
        self.frame = outer;
        outputs.and_then(|ids| self.bind_results(proto, &ids)).map_err(fail)
    }

    fn check_call(&self, function: &'m FunctionProto, proto: &NodeProto) -> Result<(), ImportProblem> {
        let fail = |reason| in_function(function, reason);
        if self.calls.iter().any(|f| std::ptr::eq(*f, function)) {
            let names: Vec<String> = self.calls.iter().map(|f| functions::full_name(f)).collect();
            return Err(fail(format!("it calls itself ({} and back)", names.join(", then "))));
        }
        if proto.input.len() > function.input.len() {
            let (found, expected) = (proto.input.len(), function.input.len());
            return Err(fail(format!("it is called with {found} inputs, expected {expected}")));
        }
        Ok(())
    }

    /// Keeps count of what the calls of functions expand to.
    fn expand(&mut self, node: &NodeProto) -> Result<(), ImportProblem> {
        let (Some(function), Some(given)) = (self.calls.last(), &self.frame.given) else { return Ok(()) };
        self.expanded += NODE_BYTES + self.frame.prefix.len() * (node.output.len() + 1);
        self.expanded += functions::resolved_size(node, given, MAX_EXPANDED);
        if self.expanded > MAX_EXPANDED {
            let most = MAX_EXPANDED >> 20;
            let reason = format!("the calls of functions expand to more than {most} MB of nodes");
            return Err(in_function(function, reason));
        }
        Ok(())
    }

    /// Branches and calls within each other each take some of the stack.
    fn deeper(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("branches and calls of functions are more than {MAX_DEPTH} deep"));
        }
        Ok(())
    }

    /// The operator in normal form. Takes away the inputs that become attributes.
    fn op(&self, proto: &NodeProto, inputs: &mut [Option<ValueId>]) -> Result<Op, String> {
        let mut op = Op::in_domain(domain(&proto.domain), &proto.op_type);
        for attr in &proto.attribute {
            read_attribute(attr, proto, &mut op)
                .map_err(|e| format!("attribute `{}`: {e}", shown(&attr.name)))?;
        }
        for (name, form) in forms::of(domain(&proto.domain), &proto.op_type) {
            if let Form::InputSince { slot, since } = form
                && self.frame.opset >= since
            {
                self.input_to_attribute(name, slot, &mut op, inputs)?;
            }
        }
        self.implicit(&mut op, inputs)?;
        Ok(op)
    }

    fn input_to_attribute(
        &self,
        name: &str,
        slot: usize,
        op: &mut Op,
        inputs: &mut [Option<ValueId>],
    ) -> Result<(), String> {
        let Some(input) = inputs.get_mut(slot).and_then(Option::take) else { return Ok(()) };
        let value = self.patch.value(input);
        let ints = value.as_const().and_then(Tensor::to_i64);
        let ints = ints
            .ok_or_else(|| format!("`{name}` is computed (`{}`), expected constants", shown(&value.name)))?;
        // No axes mean all of them, unless `noop_with_empty_axes` has said otherwise.
        if !ints.is_empty() || !forms::is_reduction(op.name()) {
            op.attrs.insert(name.to_owned(), Attr::Ints(ints));
        }
        Ok(())
    }

    /// What ONNX leaves to be derived from the rank, and the IR says.
    fn implicit(&self, op: &mut Op, inputs: &[Option<ValueId>]) -> Result<(), String> {
        let shape = inputs.first().copied().flatten().and_then(|v| self.patch.ty(v).shape.clone());
        let missing = |name: &str| !op.attrs.contains_key(name);
        let (name, ints): (_, Vec<i64>) = match op.name() {
            "Transpose" if op.is("Transpose") && missing("perm") => {
                let shape = shape.ok_or("without `perm` the rank of its input must be known")?;
                ("perm", (0..shape.len() as i64).rev().collect())
            }
            "Squeeze" if op.is("Squeeze") && missing("axes") => {
                let dims: Option<Vec<u64>> = shape.and_then(|s| s.iter().map(Dim::known).collect());
                let dims = dims.ok_or("without `axes` the dims of its input must be known")?;
                ("axes", (0..).zip(&dims).filter(|(_, d)| **d == 1).map(|(axis, _)| axis).collect())
            }
            _ => return Ok(()),
        };
        op.attrs.insert(name.to_owned(), Attr::Ints(ints));
        Ok(())
    }
}

/// What a node takes in memory, besides its names and attributes.
const NODE_BYTES: usize = 400;

const MAX_DEPTH: usize = 128;

fn in_function(function: &FunctionProto, reason: String) -> ImportProblem {
    ImportProblem::Function { function: functions::full_name(function), reason }
}

fn problem(proto: &NodeProto, name: &str, reason: String) -> ImportProblem {
    let op = Op::in_domain(domain(&proto.domain), &proto.op_type).qualified_name();
    ImportProblem::Node { node: shown(name), op: shown(&op), reason }
}

/// The names that a graph defines.
fn names(proto: &GraphProto) -> impl Iterator<Item = &String> {
    let constants = proto.initializer.iter().map(|i| &i.name);
    let inputs = proto.input.iter().map(|i| &i.name);
    constants.chain(inputs).chain(proto.node.iter().flat_map(|n| &n.output))
}

/// The names that the inputs of a graph have for their dims.
fn dim_names(proto: &GraphProto) -> impl Iterator<Item = &String> {
    let types = proto.input.iter().filter_map(|input| input.r#type.as_ref()?.tensor_type.as_ref());
    types.filter_map(|tensor| tensor.shape.as_ref()).flat_map(|shape| &shape.dim).filter_map(|dim| match &dim
        .value
    {
        Some(DimValue::Param(name)) => Some(name),
        _ => None,
    })
}

/// Says of a node whose input is not defined before it what may be the cause.
fn explained(problem: ImportProblem, graph: &GraphProto, at: usize) -> ImportProblem {
    let ImportProblem::Node { node, op, reason } = problem else { return problem };
    if !reason.ends_with(NOT_BEFORE) {
        return ImportProblem::Node { node, op, reason };
    }
    let hint = match lies_on_cycle(&graph.node, at) {
        true => "it lies on a cycle",
        false => "nothing computes it; an initialiser is missing",
    };
    ImportProblem::Node { node, op, reason: format!("{reason} (hint: {hint})") }
}

const NOT_BEFORE: &str = "is not defined before it";

/// Whether a node needs what it computes.
fn lies_on_cycle(nodes: &[NodeProto], at: usize) -> bool {
    let makers: BTreeMap<&str, usize> =
        nodes.iter().enumerate().flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i))).collect();
    let mut seen = BTreeSet::new();
    let mut open = vec![at];
    while let Some(node) = open.pop() {
        for maker in nodes[node].input.iter().filter_map(|input| makers.get(input.as_str())) {
            if *maker == at {
                return true;
            }
            if seen.insert(*maker) {
                open.push(*maker);
            }
        }
    }
    false
}

/// One attribute in normal form. Whether the operator knows it is the operator table's to say.
fn read_attribute(attr: &AttributeProto, proto: &NodeProto, op: &mut Op) -> Result<(), String> {
    let value = attribute::from_proto(attr)?;
    let name = attr.name.as_str();
    let value = match (forms::find(op.domain(), op.name(), name), value) {
        (Some(Form::ElementType), Attr::Int(number)) => {
            let number = i32::try_from(number).unwrap_or_default();
            Attr::Str(dtype::from_number(number)?.name().to_owned())
        }
        (Some(Form::OutputCountSince(_)), Attr::Int(n)) => {
            if n != proto.output.len() as i64 {
                return Err(format!("it is {n}, but the node has {} outputs", proto.output.len()));
            }
            return Ok(());
        }
        (None, Attr::Int(noop)) if name == "noop_with_empty_axes" && forms::is_reduction(op.name()) => {
            if noop != 0 {
                op.attrs.insert("axes".to_owned(), Attr::Ints(Vec::new()));
            }
            return Ok(());
        }
        (_, value) => value,
    };
    if op.attrs.insert(name.to_owned(), value).is_some() {
        return Err("it is there twice".to_owned());
    }
    Ok(())
}

fn input_type(info: &ValueInfoProto) -> Result<(DType, Shape), String> {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let tensor = tensor.ok_or("it is not a tensor")?;
    let dtype = dtype::from_number(tensor.elem_type)?;
    let shape = tensor.shape.as_ref().ok_or("its rank is missing")?;
    let dims: Result<Shape, String> = shape.dim.iter().map(dim).collect();
    Ok((dtype, dims?))
}

fn dim(proto: &DimensionProto) -> Result<Dim, String> {
    match &proto.value {
        Some(DimValue::Param(name)) if !name.is_empty() => Ok(Dim::sym(name)),
        // Some exporters write -1 where a dim is not known.
        None | Some(DimValue::Param(_) | DimValue::Value(-1)) => Ok(Dim::Unknown),
        Some(DimValue::Value(n)) => {
            u64::try_from(*n).map(Dim::Known).map_err(|_| format!("dim {n} is negative"))
        }
    }
}
