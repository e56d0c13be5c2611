//! Logits that transformers gave.

use safetensors::SafeTensors;
use std::path::Path;

/// Texts of one length, and the logits after each of their tokens.
pub(crate) struct Reference {
    pub(crate) rows: Vec<Vec<i64>>,
    pub(crate) logits: Vec<f64>,
}

impl Reference {
    /// The `reference.safetensors` of a fixture.
    pub(crate) fn of_fixture(folder: &Path) -> Self {
        let path = folder.join("reference.safetensors");
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("the reference is safetensors");
        let data = |name: &str| file.tensor(name).expect("a tensor of the reference").data();
        let ints = |name: &str| -> Vec<i64> {
            data(name).as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
        };
        let rows = file.tensor("input_ids").expect("the ids").shape()[0];
        let logits = data("logits").as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
        Self::new(rows, &ints("input_ids"), &ints("attention_mask"), logits)
    }

    /// A `ref.npz`.
    pub(crate) fn of_npz(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (shape, ids) = npy(&bytes, "input_ids", "<i8");
        let (_, mask) = npy(&bytes, "attention_mask", "<i8");
        let (_, logits) = npy(&bytes, "logits", "<f4");
        let ints =
            |data: &[u8]| -> Vec<i64> { data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect() };
        let logits = logits.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
        Self::new(shape[0], &ints(ids), &ints(mask), logits)
    }

    fn new(rows: usize, ids: &[i64], mask: &[i64], logits: Vec<f64>) -> Self {
        let split = |all: &[i64]| all.chunks(all.len() / rows).map(<[i64]>::to_vec).collect();
        assert!(mask.iter().all(|m| *m == 1), "the references have no padding");
        Self { rows: split(ids), logits }
    }
}

/// Shape and elements of one array of an `.npz`. numpy's `savez` stores the arrays as they are, so that each can be
/// read where it lies: its name, then the npy magic, a version, the length of the header, the header, the elements.
fn npy<'a>(npz: &'a [u8], name: &str, element: &str) -> (Vec<usize>, &'a [u8]) {
    let after = |from: usize, what: &[u8]| {
        let found = npz[from..].windows(what.len()).position(|bytes| bytes == what);
        from + found.unwrap_or_else(|| panic!("no array `{name}`")) + what.len()
    };
    let magic = after(after(0, format!("{name}.npy").as_bytes()), b"\x93NUMPY");
    let start = magic + 4;
    let length = u16::from_le_bytes([npz[magic + 2], npz[magic + 3]]) as usize;
    let header = String::from_utf8_lossy(&npz[start..start + length]);
    assert!(header.contains(element) && header.contains("'fortran_order': False"), "`{name}`: {header}");
    let (_, shape) = header.split_once("'shape': (").expect("a shape");
    let (shape, _) = shape.split_once(')').expect("a shape");
    let sizes = shape.split(',').filter(|size| !size.trim().is_empty());
    let shape: Vec<usize> = sizes.map(|size| size.trim().parse().expect("a size")).collect();
    let width: usize = element[2..].parse().expect("a width");
    let elements = start + length..start + length + shape.iter().product::<usize>() * width;
    (shape, &npz[elements])
}
