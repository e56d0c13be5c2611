//! The weights of a bundle, one after the other, so that no more than one is in host memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use crate::decode::computed_weight::{Source, part};
use crate::session::error::RuntimeError;
use crate::session::tensor::{HostTensor, byte_len};
use crate::session::{DimSpec, Io};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::joined::{self, RowRange, WeightPart};
use dijiang_format::weight_header::{LENGTH_BYTES, MOST_HEADER};

/// What one tensor is made of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredPart {
    /// As it would be declared alone.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

/// Is given each tensor with its name and parts.
type Take<'a> = dyn FnMut(&str, &HostTensor, &[StoredPart]) -> Result<(), RuntimeError> + 'a;

/// Hands over the tensors that are declared, in their order, each with its parts; the bundle must have them in that
/// shape. What has another element type there is rounded. What is declared as `a+b`, `a[0:64:192]` or `a*g` is made of what it
/// names: [`joined`].
pub(crate) fn read(bundle: &Path, declared: &[Io], take: &mut Take<'_>) -> Result<(), RuntimeError> {
    let paths = paths(bundle)?;
    let mut files = paths.iter().map(|path| WeightFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    for io_declared in declared {
        let name = &io_declared.name;
        let (tensor, parts) = match find(&mut files, name) {
            Some(file) => {
                let tensor = file.tensor(io_declared)?;
                let parts = vec![StoredPart { name: name.clone(), shape: tensor.shape().to_vec() }];
                (tensor, parts)
            }
            None => join(&mut files, &bundle.join(files::WEIGHTS), io_declared)?,
        };
        take(name, &tensor, &parts)?;
    }
    Ok(())
}

fn find<'a>(files: &'a mut [WeightFile], name: &str) -> Option<&'a mut WeightFile> {
    files.iter_mut().find(|f| f.header.info(name).is_some())
}

/// A tensor made of stored ones, as its name says.
fn join(
    files: &mut [WeightFile],
    path: &Path,
    declared: &Io,
) -> Result<(HostTensor, Vec<StoredPart>), RuntimeError> {
    let (mut tensors, mut parts) = (Vec::new(), Vec::new());
    for made_of in joined::parse(&declared.name) {
        let made = match made_of.stored() {
            Some(rows) => stored_rows(files, path, rows, declared.dtype)?,
            None => {
                let mut rows = |rows: &WeightPart| stored_rows(files, path, rows, DType::F32);
                part(&made_of, &mut Source { path, rows: &mut rows })?.to_float(declared.dtype)?
            }
        };
        parts.push(StoredPart { name: made_of.to_string(), shape: made.shape().to_vec() });
        tensors.push(made);
    }
    let tensor = HostTensor::concat(0, &tensors.iter().collect::<Vec<_>>())?;
    let found: Vec<DimSpec> = tensor.shape().iter().map(|size| DimSpec::Fixed(*size)).collect();
    if found != declared.shape {
        let (name, taken) = (&declared.name, declared.shape_text());
        return Err(failed(path, format!("`{name}` is {:?}, the graph takes {taken}", tensor.shape())));
    }
    Ok((tensor, parts))
}

fn stored_rows(
    files: &mut [WeightFile],
    path: &Path,
    part: &WeightPart,
    dtype: DType,
) -> Result<HostTensor, RuntimeError> {
    let name = &part.name;
    let file = find(files, name).ok_or_else(|| failed(path, format!("it has no tensor `{name}`")))?;
    let stored = file.stored(name, dtype)?;
    let taken = match part.rows {
        None => stored,
        Some(rows) => {
            cut(&stored, rows).ok_or_else(|| failed(path, format!("`{name}` has no rows {part}")))?
        }
    };
    Ok(if taken.dtype() == dtype { taken } else { taken.to_float(dtype)? })
}

/// Some rows of a tensor; `None` where they do not divide it.
fn cut(stored: &HostTensor, rows: RowRange) -> Option<HostTensor> {
    let mut shape = stored.shape().to_vec();
    let count = *shape.first()?;
    shape[0] = rows.count(count)?;
    HostTensor::new(stored.dtype(), shape, rows.cut(stored.bytes(), count)?).ok()
}

/// The bundle's own file, then those that it links to, in the order of their names.
fn paths(bundle: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let io = |error: std::io::Error| failed(bundle, error.to_string());
    let mut linked = Vec::new();
    for entry in std::fs::read_dir(bundle).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name.to_str().is_some_and(files::is_linked) {
            linked.push(bundle.join(name));
        }
    }
    linked.sort();
    Ok(std::iter::once(bundle.join(files::WEIGHTS)).chain(linked).collect())
}

fn failed(path: &Path, reason: String) -> RuntimeError {
    RuntimeError::Bundle { path: path.to_path_buf(), reason }
}

struct WeightFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the elements begin.
    start: u64,
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, RuntimeError> {
        let io = |error: std::io::Error| failed(path, error.to_string());
        let mut file = File::open(path).map_err(io)?;
        let mut length = [0; LENGTH_BYTES];
        file.read_exact(&mut length).map_err(io)?;
        let header_length = u64::from_le_bytes(length);
        let whole = file.metadata().map_err(io)?.len();
        if header_length > whole {
            return Err(failed(path, format!("its header is {header_length} bytes, the file {whole}")));
        }
        if header_length > MOST_HEADER {
            let reason = format!("its header is {header_length} bytes, expected {MOST_HEADER} at most");
            return Err(failed(path, reason));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header = serde_json::from_slice(&header).map_err(|e| failed(path, e.to_string()))?;
        Ok(Self { path: path.to_owned(), file, header, start: LENGTH_BYTES as u64 + header_length })
    }

    fn tensor(&mut self, declared: &Io) -> Result<HostTensor, RuntimeError> {
        let path = &self.path;
        let name = &declared.name;
        let missing = || failed(path, format!("it has no tensor `{name}`"));
        let info: &TensorInfo = self.header.info(name).ok_or_else(missing)?;
        let fixed = declared.shape.iter().map(|dim| match dim {
            DimSpec::Fixed(size) => Some(*size),
            DimSpec::Dynamic(_) => None,
        });
        let shape: Option<Vec<usize>> = fixed.collect();
        let shape = shape.filter(|shape| *shape == info.shape).ok_or_else(|| {
            failed(path, format!("`{name}` is {:?}, the graph takes {}", info.shape, declared.shape_text()))
        })?;
        let tensor = self.elements(name, declared.dtype, shape)?;
        Ok(if tensor.dtype() == declared.dtype { tensor } else { tensor.to_float(declared.dtype)? })
    }

    /// A tensor in the shape and the type it is stored in, where that can be made `dtype`.
    fn stored(&mut self, name: &str, dtype: DType) -> Result<HostTensor, RuntimeError> {
        let shape = self.header.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        self.elements(name, dtype, shape)
    }

    fn elements(&mut self, name: &str, dtype: DType, shape: Vec<usize>) -> Result<HostTensor, RuntimeError> {
        let path = &self.path;
        let missing = || failed(path, format!("it has no tensor `{name}`"));
        let info = self.header.info(name).ok_or_else(missing)?;
        let (begin, end) = info.data_offsets;
        let stored = [dtype, DType::F32, DType::F16, DType::BF16].into_iter().find(|of| is_of(info, *of));
        let stored = stored.filter(|stored| *stored == dtype || dtype.is_float());
        let Some(stored) = stored.filter(|of| byte_len(*of, &shape).is_ok_and(|len| len == end - begin))
        else {
            return Err(failed(path, format!("`{name}` is not {dtype} there")));
        };
        let io = |error: std::io::Error| failed(path, error.to_string());
        let mut bytes = vec![0; end - begin];
        self.file.seek(SeekFrom::Start(self.start + begin as u64)).map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        Ok(HostTensor::new(stored, shape, bytes)?)
    }
}

/// Whether a tensor of a file has this element type.
fn is_of(info: &TensorInfo, dtype: DType) -> bool {
    format!("{:?}", info.dtype).eq_ignore_ascii_case(dtype.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(directory: &Path) {
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let a = floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let b = floats(&[8.0, 9.0]);
        let view = |shape: &[usize], data| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data)
                .expect("a view")
        };
        let third = floats(&[1.0 / 3.0]);
        let pair = floats(&[10.0, -1.0]);
        let tensors = [
            ("a", view(&[4, 2], &a[..])),
            ("b", view(&[1, 2], &b[..])),
            ("third", view(&[1], &third[..])),
            ("pair", view(&[2], &pair[..])),
        ];
        let bytes = safetensors::serialize(tensors, None).expect("a file");
        std::fs::write(directory.join(files::WEIGHTS), bytes).expect("it is written");
    }

    fn load(directory: &Path, name: &str, shape: &[usize]) -> Result<(Vec<f32>, Vec<String>), RuntimeError> {
        let shape = shape.iter().map(|size| DimSpec::Fixed(*size)).collect();
        let declared = Io { name: name.to_owned(), dtype: DType::F32, shape };
        let mut found = (Vec::new(), Vec::new());
        read(directory, &[declared], &mut |_, tensor, parts| {
            let parts = parts.iter().map(|part| format!("{} {:?}", part.name, part.shape)).collect();
            found = (tensor.to_f32()?, parts);
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn rows_come_one_after_the_other() {
        let dir = tempfile::tempdir().expect("a directory");
        bundle(dir.path());
        let of = |name: &str, shape: &[usize]| load(dir.path(), name, shape).expect("a tensor");
        assert_eq!(of("b+b", &[2, 2]).0, [8.0, 9.0, 8.0, 9.0]);
        let (values, parts) = of("a[1:2:2]+a[0:1:2]+b", &[5, 2]);
        assert_eq!(values, [2.0, 3.0, 6.0, 7.0, 0.0, 1.0, 4.0, 5.0, 8.0, 9.0]);
        assert_eq!(parts, ["a[1:2:2] [2, 2]", "a[0:1:2] [2, 2]", "b [1, 2]"]);
        assert_eq!(of("b", &[1, 2]).1, ["b [1, 2]"]);
    }

    /// Written out by hand: rows 1 and 3 of `a` are `2 3` and `6 7`, `b` is `8 9`.
    #[test]
    fn what_a_name_says_is_computed() {
        let dir = tempfile::tempdir().expect("a directory");
        bundle(dir.path());
        let of = |name: &str, shape: &[usize]| load(dir.path(), name, shape).expect("a tensor");
        assert_eq!(of("-b+b", &[2, 2]).0, [-8.0, -9.0, 8.0, 9.0]);
        assert_eq!(of("b&-b&b", &[1, 2]).0, [8.0, 9.0]);
        assert_eq!(of("a|a", &[4, 4]).0[..8], [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0]);
        let (values, parts) = of("a[1:2:2]*pair+b", &[3, 2]);
        assert_eq!(values, [20.0, -3.0, 60.0, -7.0, 8.0, 9.0]);
        assert_eq!(parts, ["a[1:2:2]*pair [2, 2]", "b [1, 2]"]);
        assert_eq!(of("pair&a[1:2:2]@pair", &[2]).0, [10.0 + 17.0, -1.0 + 53.0]);
        // sigmoid(1/3) and sigmoid(-1/3), over both columns; sigmoid(10) and sigmoid(-1), a column each.
        let near = |values: Vec<f32>, expected: [f32; 4]| {
            assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{values:?}");
        };
        near(of("b%third|b%-third", &[1, 4]).0, [4.6606, 5.2431, 3.3394, 3.7569]);
        near(of("b%pair|b%-pair", &[1, 4]).0, [7.9996, 2.4205, 0.0004, 6.5795]);
        let error =
            |name: &str, shape: &[usize]| load(dir.path(), name, shape).expect_err("misfit").to_string();
        for (name, expected) in [
            ("a*third", "`a*third`: a is [4, 2], and third [1]"),
            ("a%b", "`a%b`: a is [4, 2], and b [1, 2]"),
            ("a@third", "`a@third`: a is [4, 2], and third [1]"),
            ("a&b", "`a&b`: one is [4, 2], another [1, 2]"),
            ("a|b", "cannot"),
        ] {
            assert!(error(name, &[4, 2]).contains(expected), "{}", error(name, &[4, 2]));
        }
    }

    #[test]
    fn what_is_declared_in_another_type_is_rounded_to_it() {
        let dir = tempfile::tempdir().expect("a directory");
        bundle(dir.path());
        let load = |name: &str, dtype: DType, size: usize| {
            let declared = Io { name: name.to_owned(), dtype, shape: vec![DimSpec::Fixed(size)] };
            let mut found = None;
            let mut take = |_: &str, tensor: &HostTensor, _: &[StoredPart]| {
                found = Some(tensor.clone());
                Ok(())
            };
            read(dir.path(), &[declared], &mut take).map(|()| found.expect("a tensor"))
        };
        for (name, size) in [("third", 1), ("third+third", 2)] {
            let found = load(name, DType::F16, size).expect("it is rounded");
            // 1365/4096 is the f16 next to a third.
            assert_eq!(found.dtype(), DType::F16, "{name}");
            assert_eq!(
                found.to_float(DType::F32).expect("numbers").to_f32().expect("f32"),
                vec![1365.0 / 4096.0; size]
            );
        }
        let error = load("third", DType::I32, 1).expect_err("no float is an integer").to_string();
        assert!(error.contains("`third` is not i32 there"), "{error}");
    }

    /// The file is as long as it says, but holds nothing.
    #[test]
    fn a_header_longer_than_any_is_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(files::WEIGHTS);
        std::fs::write(&path, (MOST_HEADER + 1).to_le_bytes()).expect("it is written");
        let file = File::options().write(true).open(&path).expect("it opens");
        file.set_len(MOST_HEADER + 9).expect("it is as long");
        let error = WeightFile::open(&path).map(|_| ()).expect_err("it is refused").to_string();
        let expected = "its header is 100000001 bytes, expected 100000000 at most";
        assert!(error.starts_with(&format!("{}: {expected} (hint: ", path.display())), "{error}");
    }

    #[test]
    fn parts_that_do_not_fit_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        bundle(dir.path());
        let error = |name: &str| load(dir.path(), name, &[4, 2]).expect_err("it does not fit").to_string();
        assert!(error("a+c").contains("no tensor `c`"), "{}", error("a+c"));
        assert!(error("a[0:1:3]").contains("no rows a[0:1:3]"), "{}", error("a[0:1:3]"));
        assert!(error("a+b").contains("is [5, 2]"), "{}", error("a+b"));
        assert!(error("a[2:1:4]").contains("no tensor `a[2:1:4]`"), "{}", error("a[2:1:4]"));
    }
}
