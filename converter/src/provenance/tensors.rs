//! How the weights of two bundles differ, tensor by tensor.

use crate::checkpoint::{CheckpointError, Weights};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_passes::ir::tensor::Tensor;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor that is not the same in both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDifference {
    pub name: String,
    /// `f32 [4, 8]`; none where A has no such tensor.
    pub a: Option<String>,
    pub b: Option<String>,
    /// Of all elements, where both are of one shape and are numbers.
    pub largest: Option<f64>,
}

/// Reads the weights of both bundles, and returns what differs in the order of names.
pub(super) fn compare(
    a: (&Path, &Manifest),
    b: (&Path, &Manifest),
) -> Result<Vec<TensorDifference>, CheckpointError> {
    let [a, b] = [tensors(a)?, tensors(b)?];
    let names: Vec<&String> = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))).collect();
    let one = |name: &&String| difference(name, a.get(*name), b.get(*name));
    let mut found: Vec<TensorDifference> = names.par_iter().filter_map(one).collect();
    let problem = a.values().chain(b.values()).find_map(Tensor::problem);
    if let Some(problem) = problem {
        return Err(problem.into());
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Those of the bundle's own file, and of files that it links to.
fn tensors((bundle, manifest): (&Path, &Manifest)) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let mut all = BTreeMap::new();
    for file in std::iter::once(files::WEIGHTS).chain(manifest.linked.iter().map(String::as_str)) {
        let read = Weights::read(&bundle.join(file))?;
        for (name, tensor) in read.tensors() {
            all.entry(name.to_owned()).or_insert_with(|| tensor.clone());
        }
    }
    Ok(all)
}

fn difference(name: &str, a: Option<&Tensor>, b: Option<&Tensor>) -> Option<TensorDifference> {
    let told = |tensor: &Tensor| format!("{} {:?}", tensor.dtype(), tensor.dims());
    let largest = match (a, b) {
        (Some(a), Some(b)) if a.dims() == b.dims() => {
            if a.dtype() == b.dtype() && a.bytes() == b.bytes() {
                return None;
            }
            Some(largest(&a.to_f64(), &b.to_f64()))
        }
        _ => None,
    };
    Some(TensorDifference { name: name.to_owned(), a: a.map(told), b: b.map(told), largest })
}

/// NaN where one of the two is no number and the other is.
fn largest(a: &[f64], b: &[f64]) -> f64 {
    let apart = a.iter().zip(b).map(|(a, b)| if a.to_bits() == b.to_bits() { 0.0 } else { (a - b).abs() });
    apart.fold(0.0, |most: f64, one| if one.is_nan() || one > most { one } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::dtype::DType;

    #[test]
    fn a_difference_is_told_with_its_size() {
        let a = Tensor::from_f32(&[3], &[1.0, -2.0, 3.0]);
        let b = Tensor::from_f32(&[3], &[1.0, -2.5, 3.25]);
        assert_eq!(difference("w", Some(&a), Some(&a.clone())), None);
        assert_eq!(difference("w", Some(&a), Some(&b)).and_then(|d| d.largest), Some(0.5));
        let half = difference("w", Some(&a), Some(&a.cast(DType::F16))).expect("another type");
        assert_eq!((half.largest, half.b.as_deref()), (Some(0.0), Some("f16 [3]")));
        let row = a.with_dims(vec![1, 3]).expect("as many");
        assert_eq!(difference("w", Some(&a), Some(&row)).map(|d| d.largest), Some(None));
        let nan = Tensor::from_f32(&[3], &[1.0, f32::NAN, 9.0]);
        assert!(difference("w", Some(&a), Some(&nan)).and_then(|d| d.largest).is_some_and(f64::is_nan));
    }
}
