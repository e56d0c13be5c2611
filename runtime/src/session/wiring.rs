//! Which outputs of a session become inputs of its next run, and which are left to the caller.

use crate::session::error::RuntimeError;
use crate::session::tensor::HostTensor;
use crate::session::{Io, shape_fits};

/// An output that becomes an input of the next run, by their positions in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Position among [`Session::inputs`](crate::Session::inputs).
    pub input: usize,
    /// Position among [`Session::outputs`](crate::Session::outputs).
    pub output: usize,
}

/// A checked set of links.
#[derive(Debug)]
pub(crate) struct Wiring {
    pub(crate) links: Vec<Link>,
    /// Inputs that the caller gives.
    pub(crate) open_inputs: Vec<Io>,
    input_is_open: Vec<bool>,
}

impl Wiring {
    /// No links: the caller gives and takes everything.
    pub(crate) fn none(inputs: &[Io]) -> Self {
        Self { links: Vec::new(), open_inputs: inputs.to_vec(), input_is_open: vec![true; inputs.len()] }
    }

    pub(crate) fn new(
        inputs: &[Io],
        outputs: &[Io],
        links: &[Link],
        initial: &[HostTensor],
    ) -> Result<Self, RuntimeError> {
        if links.len() != initial.len() {
            return Err(bad(format!(
                "{} outputs are carried, {} tensors were given",
                links.len(),
                initial.len()
            )));
        }
        for (i, (link, tensor)) in links.iter().zip(initial).enumerate() {
            check(inputs, outputs, *link, tensor)?;
            let taken = |other: &Link| other.input == link.input || other.output == link.output;
            if links[..i].iter().any(taken) {
                return Err(bad(format!("`{}` is carried twice", inputs[link.input].name)));
            }
        }
        let is_open = |input: usize| links.iter().all(|link| link.input != input);
        let input_is_open: Vec<bool> = (0..inputs.len()).map(is_open).collect();
        let open = inputs.iter().zip(&input_is_open).filter(|(_, open)| **open);
        Ok(Self {
            links: links.to_vec(),
            open_inputs: open.map(|(io, _)| io.clone()).collect(),
            input_is_open,
        })
    }

    /// All inputs in the graph's order, from those given and those carried, both in their own order.
    pub(crate) fn merge<T>(&self, given: Vec<T>, carried: Vec<T>) -> Vec<T> {
        let mut carried: Vec<(usize, T)> = self.links.iter().map(|link| link.input).zip(carried).collect();
        carried.sort_by_key(|(input, _)| *input);
        let (mut given, mut carried) = (given.into_iter(), carried.into_iter().map(|(_, value)| value));
        self.input_is_open
            .iter()
            .filter_map(|open| if *open { given.next() } else { carried.next() })
            .collect()
    }

    /// Splits all outputs into those left to the caller, in the graph's order, and those carried, in the links' order.
    pub(crate) fn split<T>(&self, outputs: Vec<T>) -> (Vec<T>, Vec<T>) {
        let (mut open, mut carried) = (Vec::new(), Vec::new());
        for (output, value) in outputs.into_iter().enumerate() {
            match self.links.iter().position(|link| link.output == output) {
                Some(link) => carried.push((link, value)),
                None => open.push(value),
            }
        }
        carried.sort_by_key(|(link, _)| *link);
        (open, carried.into_iter().map(|(_, value)| value).collect())
    }

    pub(crate) fn carries(&self, output: usize) -> bool {
        self.links.iter().any(|link| link.output == output)
    }
}

fn check(inputs: &[Io], outputs: &[Io], link: Link, tensor: &HostTensor) -> Result<(), RuntimeError> {
    let (Some(input), Some(output)) = (inputs.get(link.input), outputs.get(link.output)) else {
        return Err(bad(format!("there is no input {} or no output {}", link.input, link.output)));
    };
    if input.dtype != output.dtype {
        let (from, to) = (
            format!("`{}` is {}", output.name, output.dtype),
            format!("`{}` is {}", input.name, input.dtype),
        );
        return Err(bad(format!("{from}, but {to}")));
    }
    if input.dtype != tensor.dtype() || !shape_fits(&input.shape, tensor.shape()) {
        let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
        return Err(bad(format!("`{}` is {} {}, not {found}", input.name, input.dtype, input.shape_text())));
    }
    Ok(())
}

fn bad(reason: String) -> RuntimeError {
    RuntimeError::BadCall { place: "carried outputs", reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::DimSpec;
    use dijiang_format::dtype::DType;

    fn io(name: &str, dtype: DType) -> Io {
        Io { name: name.to_owned(), dtype, shape: vec![DimSpec::Dynamic(None)] }
    }

    fn graph() -> (Vec<Io>, Vec<Io>) {
        let inputs = vec![io("a", DType::F32), io("x", DType::I64), io("b", DType::F32)];
        (inputs, vec![io("b_new", DType::F32), io("y", DType::I64), io("a_new", DType::F32)])
    }

    #[test]
    fn merging_undoes_splitting() {
        let (inputs, outputs) = graph();
        let zero = HostTensor::zeros(DType::F32, &[1]).unwrap();
        let links = [Link { input: 2, output: 0 }, Link { input: 0, output: 2 }];
        let wiring = Wiring::new(&inputs, &outputs, &links, &[zero.clone(), zero]).unwrap();
        assert_eq!(wiring.open_inputs, [inputs[1].clone()]);
        assert_eq!(wiring.split(vec!["b", "y", "a"]), (vec!["y"], vec!["b", "a"]));
        assert_eq!(wiring.merge(vec!["x"], vec!["b", "a"]), ["a", "x", "b"]);
        assert!(wiring.carries(0) && !wiring.carries(1));
    }

    #[test]
    fn wrong_links_are_refused() {
        let (inputs, outputs) = graph();
        let zero = || HostTensor::zeros(DType::F32, &[1]).unwrap();
        let refused =
            |links: &[Link], initial: &[HostTensor]| Wiring::new(&inputs, &outputs, links, initial).is_err();
        let good = Link { input: 0, output: 2 };
        assert!(refused(&[good], &[]));
        assert!(refused(&[Link { input: 9, output: 0 }], &[zero()]));
        assert!(refused(&[Link { input: 1, output: 0 }], &[zero()]));
        assert!(refused(&[good, Link { input: 2, output: 2 }], &[zero(), zero()]));
        assert!(refused(&[good], &[HostTensor::zeros(DType::F32, &[1, 1]).unwrap()]));
        assert!(!refused(&[good], &[zero()]));
    }
}
