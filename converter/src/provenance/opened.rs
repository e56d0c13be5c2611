//! What is looked at whenever a bundle is opened to be served: the digests of its graphs and its tokenizer, which are
//! small, and of its weights the size and the header. The elements of weights are not read for it: a byte that changed
//! among them is found by [`super::files`], and by whatever makes other weights of them.

use crate::checkpoint::all_listed;
use crate::checkpoint::digests::{Compared, Difference, DigestError, compare};
use dijiang_format::digest::Hasher;
use dijiang_format::files;
use dijiang_format::manifest::{BundleFile, Manifest, SourceFile};
use dijiang_format::weight_header::{LENGTH_BYTES, MOST_HEADER};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A file of a bundle is not what was written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: {reason} (hint: `dijiang verify --digests {bundle}` names every file that differs; convert the model anew, or take them from a copy of the bundle)",
    path.display()
)]
pub struct NotAsWritten {
    path: PathBuf,
    reason: String,
    bundle: String,
}

/// What is said of a file whose digest is another.
pub(crate) const OTHER: &str = "its bytes are not those that were written";

impl NotAsWritten {
    pub(crate) fn new(bundle: &Path, name: &str, reason: impl Into<String>) -> Self {
        let (path, bundle) = (bundle.join(name), bundle.display().to_string());
        Self { path, reason: reason.into(), bundle }
    }
}

/// Refuses a bundle of which a file is not what its manifest says. A file that is missing is told by whoever needs it.
pub fn check(bundle: &Path, manifest: &Manifest) -> Result<(), NotAsWritten> {
    check_files(bundle, manifest, is_served)
}

/// The same for what reads the model's description too.
pub fn check_described(bundle: &Path, manifest: &Manifest) -> Result<(), NotAsWritten> {
    check_files(bundle, manifest, |name| is_served(name) || name == files::CONFIG)
}

/// The same with the elements of the weights: for what makes other weights of them, whose digests would vouch for a byte
/// that changed.
pub fn check_whole(bundle: &Path, manifest: &Manifest) -> Result<(), NotAsWritten> {
    check_described(bundle, manifest)?;
    let path = bundle.join(files::WEIGHTS);
    let problem = path.exists().then(|| weights_problem(bundle, manifest)).flatten();
    problem.map_or(Ok(()), |reason| Err(NotAsWritten::new(bundle, files::WEIGHTS, reason)))
}

fn weights_problem(bundle: &Path, manifest: &Manifest) -> Option<String> {
    match compare(bundle, manifest) {
        Ok(Compared::Matches | Compared::NotRecorded) => None,
        Ok(Compared::Differs(Difference::Tensors(names))) => {
            Some(format!("{OTHER}, of {}", all_listed(&names)))
        }
        Ok(Compared::Differs(Difference::Header | Difference::File)) => Some(OTHER.to_owned()),
        Err(DigestError::Io { source, .. }) => Some(source.to_string()),
        Err(DigestError::Read(read)) => Some(read.reason),
        Err(error) => Some(error.to_string()),
    }
}

fn check_files(
    bundle: &Path,
    manifest: &Manifest,
    is_meant: impl Fn(&str) -> bool,
) -> Result<(), NotAsWritten> {
    for file in manifest.files.iter().filter(|file| is_meant(&file.name)) {
        let path = bundle.join(&file.name);
        if !path.exists() {
            continue;
        }
        let problem = problem(&path, file, manifest).unwrap_or_else(|e| Some(e.to_string()));
        if let Some(reason) = problem {
            return Err(NotAsWritten::new(bundle, &file.name, reason));
        }
    }
    Ok(())
}

fn is_served(name: &str) -> bool {
    name == files::TOKENIZER || is_weights(name) || files::is_graph(name)
}

fn is_weights(name: &str) -> bool {
    name == files::WEIGHTS || files::is_linked(name)
}

fn problem(path: &Path, file: &BundleFile, manifest: &Manifest) -> io::Result<Option<String>> {
    let found = path.metadata()?.len();
    if let Some(expected) = file.bytes.filter(|expected| *expected != found) {
        return Ok(Some(format!("it has {found} bytes, expected {expected}")));
    }
    if is_weights(&file.name) {
        let recorded = manifest.digests.as_ref().filter(|_| file.name == files::WEIGHTS);
        let is_other = match recorded {
            Some(recorded) => header(path)? != recorded.header,
            None => false,
        };
        return Ok(is_other.then(|| "its header is not what was written".to_owned()));
    }
    let Some(recorded) = &file.sha256 else { return Ok(None) };
    let described = SourceFile::describe_whole(path).map_err(io::Error::other)?;
    let is_other = described.sha256.as_ref() != Some(recorded);
    Ok(is_other.then(|| OTHER.to_owned()))
}

/// The digest of the length of the header and the header, as a manifest has it.
fn header(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut length = [0; LENGTH_BYTES];
    file.read_exact(&mut length)?;
    let mut hasher = Hasher::default();
    hasher.update(&length);
    hasher.read(&mut file.take(u64::from_le_bytes(length).min(MOST_HEADER)))?;
    Ok(hasher.finish())
}
