//! Digests of what a weight file holds: one of its header and one of each tensor's bytes, so that a byte that changed
//! since is found, and the tensor it lies in is named. They are computed while the file is written.

use crate::bundle::stored_file::StoredFile;
use crate::checkpoint::{self, CheckpointError};
use dijiang_format::digest::{WeightDigests, digest};
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError, SourceFile};
use dijiang_format::weight_header::LENGTH_BYTES;
use dijiang_passes::ir::tensor::{ReadError, SharedBytes, Tensor};
use rayon::prelude::*;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a weight file stands to what the manifest says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// Every tensor has the bytes that were written.
    Matches,
    /// Something has not.
    Differs(Difference),
    /// The manifest says nothing of it: the bundle was written by an earlier version.
    NotRecorded,
}

/// What of a weight file is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// These tensors, in the order of their names.
    Tensors(Vec<String>),
    /// The header, though all tensors are what they were.
    Header,
    /// Something of the whole file: an earlier version recorded no more than its one digest.
    File,
}

/// A weight file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    #[error(transparent)]
    File(#[from] ManifestError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Header(#[from] Box<CheckpointError>),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The digests of a weight file's bytes.
pub fn of_file(bytes: &[u8]) -> Result<WeightDigests, safetensors::SafeTensorError> {
    let file = SafeTensors::deserialize(bytes)?;
    let (header, _) = SafeTensors::read_metadata(bytes)?;
    let tensors = file.tensors();
    let tensors = tensors.par_iter().map(|(name, view)| (name.clone(), digest(view.data()))).collect();
    let head = bytes.get(..LENGTH_BYTES + header).unwrap_or(bytes);
    Ok(WeightDigests { header: digest(head), tensors })
}

/// Compares the weight file of a bundle with the digests in its manifest.
pub fn compare(bundle: &Path, manifest: &Manifest) -> Result<Compared, DigestError> {
    let path = bundle.join(files::WEIGHTS);
    let Some(recorded) = &manifest.digests else { return compare_whole(&path, manifest) };
    let io = |source| DigestError::Io { path: path.clone(), source };
    let file: SharedBytes = Arc::new(StoredFile::open(&path).map_err(io)?);
    let tensors = checkpoint::read_header(&file, &path).map_err(Box::new)?;
    let mut length = [0; LENGTH_BYTES];
    file.read(0, &mut length);
    let mut head = vec![0; LENGTH_BYTES + u64::from_le_bytes(length) as usize];
    file.read(0, &mut head);
    let of = |(name, tensor): (&String, &Result<Tensor, String>)| {
        Some((name.clone(), digest(&tensor.as_ref().ok()?.bytes())))
    };
    let found = WeightDigests { header: digest(&head), tensors: tensors.par_iter().filter_map(of).collect() };
    file.problem().map_or(Ok(()), Err)?;
    let tensors = recorded.differences(&found);
    Ok(match (tensors.is_empty(), recorded.header == found.header) {
        (false, _) => Compared::Differs(Difference::Tensors(tensors)),
        (true, false) => Compared::Differs(Difference::Header),
        (true, true) => Compared::Matches,
    })
}

/// An earlier version recorded one digest of the whole file, and only where it had been trained. Quantized, a bundle
/// has that of the bundle that it was made of.
fn compare_whole(path: &Path, manifest: &Manifest) -> Result<Compared, DigestError> {
    let Some(trained) = manifest.trained.as_ref().filter(|_| manifest.weights.is_none()) else {
        return Ok(Compared::NotRecorded);
    };
    match SourceFile::describe_whole(path)? == *trained {
        true => Ok(Compared::Matches),
        false => Ok(Compared::Differs(Difference::File)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::weights::WeightFile;
    use crate::recipes;
    use dijiang_format::dtype::DType;
    use dijiang_format::manifest::{Model, Source, SourceKind};
    use dijiang_format::target::Target;
    use std::fs::File;

    fn manifest() -> Manifest {
        let source = Source {
            kind: SourceKind::Checkpoint,
            dtype: DType::F32,
            files: Vec::new(),
            own_attention: false,
            hub: None,
        };
        let model = Model { family: "llama".to_owned(), vocab: 2, positions: None, eos: Vec::new() };
        let recipe = recipes::load(recipes::DEFAULT).expect("a recipe");
        Manifest::new(source, model, recipe, Target::Ort, DType::F32)
    }

    /// A bundle of a weight file with its manifest.
    fn bundle(dir: &Path) -> Manifest {
        let numbers = Tensor::from_f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let tensors = [("a", numbers.clone()), ("b", numbers.cast(DType::F16)), ("c", numbers)];
        let file = WeightFile::plan(tensors.iter().map(|(name, tensor)| (*name, tensor))).expect("a layout");
        let mut out = File::create(dir.join(files::WEIGHTS)).expect("a file");
        let written = file.write(&mut out, &mut |_| ()).expect("it is written");
        Manifest { digests: Some(written.digests), ..manifest() }
    }

    #[test]
    fn what_is_digested_while_it_is_written_is_what_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let manifest = bundle(dir.path());
        let bytes = std::fs::read(dir.path().join(files::WEIGHTS)).expect("it is there");
        assert_eq!(manifest.digests, Some(of_file(&bytes).expect("weights")));
        assert_eq!(compare(dir.path(), &manifest).expect("it is read"), Compared::Matches);
    }

    #[test]
    fn every_flipped_byte_is_found_and_its_tensor_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let manifest = bundle(dir.path());
        let path = dir.path().join(files::WEIGHTS);
        let whole = std::fs::read(&path).expect("it is there");
        let elements = whole.len() - 2 * 16 - 8;
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).expect("it is written");
            let found = compare(dir.path(), &manifest);
            if at < elements {
                assert!(!matches!(found, Ok(Compared::Matches | Compared::NotRecorded)), "{at}: {found:?}");
                continue;
            }
            let name = ["a", "c", "b"][((at - elements) / 16).min(2)].to_owned();
            let expected = Compared::Differs(Difference::Tensors(vec![name]));
            assert_eq!(found.expect("it is read"), expected, "{at}");
        }
    }

    #[test]
    fn bundles_of_earlier_versions_are_compared_by_what_they_recorded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(files::WEIGHTS);
        let old = Manifest { digests: None, ..bundle(dir.path()) };
        let compared = |manifest: &Manifest| compare(dir.path(), manifest).expect("it is read");
        assert_eq!(compared(&old), Compared::NotRecorded);
        let trained = SourceFile::describe_whole(&path).expect("it is described");
        let old = Manifest { trained: Some(trained), ..old };
        assert_eq!(compared(&old), Compared::Matches);
        let mut bytes = std::fs::read(&path).expect("it is there");
        *bytes.last_mut().expect("a byte") ^= 1;
        std::fs::write(&path, bytes).expect("it is written");
        assert_eq!(compared(&old), Compared::Differs(Difference::File));
    }
}
