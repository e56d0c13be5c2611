//! Every byte of a bundle against what its manifest says of it.

use crate::bundle::checksums::checksums;
use crate::checkpoint::digests::{Compared, Difference, compare};
use crate::report::message::one_line;
use crate::report::outcome::{Case, CaseStatus};
use dijiang_format::files;
use dijiang_format::manifest::{BundleFile, Manifest, ManifestError, SourceFile};
use dijiang_format::regular;
use dijiang_runtime::temporary;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// How a file stands to the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileStatus {
    Same,
    Differs,
    Missing,
    /// It is in the bundle, and the manifest does not name it.
    Unlisted,
    /// An earlier version wrote the bundle, and recorded no digest of it.
    Unrecorded,
    /// A killed run wrote there, and the next one that writes to the bundle removes it.
    Abandoned,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileFound {
    pub name: String,
    pub status: FileStatus,
    /// What differs.
    pub reason: Option<String>,
}

impl FileFound {
    /// What is said of it, after its name.
    pub fn told(&self) -> String {
        let what = match self.status {
            FileStatus::Same => "is as written",
            FileStatus::Differs => "differs",
            FileStatus::Missing => "is missing",
            FileStatus::Unlisted => "is not listed in dijiang.json",
            FileStatus::Unrecorded => "has no recorded digest",
            FileStatus::Abandoned => "was left by a killed run, and goes with the next one",
        };
        self.reason.as_ref().map_or_else(|| what.to_owned(), |reason| format!("{what}: {reason}"))
    }

    fn case(&self, suite: &str) -> Case {
        Case {
            suite: suite.to_owned(),
            name: one_line(&self.name),
            status: match self.status {
                FileStatus::Same => CaseStatus::Passed,
                FileStatus::Unrecorded | FileStatus::Abandoned => CaseStatus::Skipped,
                FileStatus::Differs | FileStatus::Missing | FileStatus::Unlisted => CaseStatus::Failed,
            },
            seconds: 0.0,
            message: Some(one_line(&self.told())),
            place: None,
            numbers: BTreeMap::new(),
        }
    }
}

/// All files of a bundle, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FilesFound {
    pub files: Vec<FileFound>,
    /// Whether every file is there as it was written, and no other but what killed runs left.
    pub ok: bool,
}

/// The files cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: this bundle records no digests, and nothing could be compared (hint: `dijiang verify {}` proves it by its numbers; converted anew it has digests)",
        bundle.display(), bundle.display()
    )]
    NoDigests { bundle: PathBuf },
}

impl FilesFound {
    /// A case of a report for each file. `suite` is the bundle.
    pub fn cases(&self, suite: &str) -> Vec<Case> {
        self.files.iter().map(|file| file.case(suite)).collect()
    }

    /// How it ended, in one line.
    pub fn summary(&self) -> String {
        let count = |status: FileStatus| self.files.iter().filter(|file| file.status == status).count();
        let parts = [
            (FileStatus::Same, "as written"),
            (FileStatus::Differs, "differ"),
            (FileStatus::Missing, "missing"),
            (FileStatus::Unlisted, "not listed"),
            (FileStatus::Unrecorded, "without a recorded digest"),
            (FileStatus::Abandoned, "left by a killed run"),
        ];
        let parts = parts.map(|(status, what)| (count(status), what));
        let told: Vec<String> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        format!("files: {}", told.join(", "))
    }
}

/// Compares all files of a bundle. A manifest that is not what was written is an error, and so is one without a digest of
/// any file that is there: nothing can be said by it.
pub fn compare_files(bundle: &Path) -> Result<FilesFound, FilesError> {
    let manifest = Manifest::read(bundle)?;
    let io = |source| FilesError::Io { path: bundle.to_owned(), source };
    let mut found: Vec<FileFound> =
        listed(&manifest).par_iter().map(|file| compare_one(bundle, &manifest, file)).collect();
    let is_compared = found.iter().any(|file| file.status == FileStatus::Same);
    let named: BTreeSet<&str> = found.iter().map(|file| file.name.as_str()).collect();
    let mut others = Vec::new();
    for entry in std::fs::read_dir(bundle).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_known = named.contains(name.as_str()) || files::is_beside(&name);
        if !is_known {
            // Bundles of earlier versions list nothing.
            let status = match manifest.files.is_empty() {
                _ if temporary::is_abandoned(&entry.path()) => FileStatus::Abandoned,
                true => FileStatus::Unrecorded,
                false => FileStatus::Unlisted,
            };
            others.push(FileFound { name, status, reason: None });
        }
    }
    found.extend(others);
    found.extend(compare_checksums(bundle, &manifest)?);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let is_fine =
        |status| matches!(status, FileStatus::Same | FileStatus::Unrecorded | FileStatus::Abandoned);
    let ok = found.iter().all(|file| is_fine(file.status));
    if ok && !is_compared {
        return Err(FilesError::NoDigests { bundle: bundle.to_owned() });
    }
    Ok(FilesFound { files: found, ok })
}

/// The files beside the weights that are there and are not what the manifest says of them; `None` where it says nothing.
pub(crate) fn differing(bundle: &Path, manifest: &Manifest) -> Option<Vec<String>> {
    let listed = manifest.files.iter().filter(|file| file.name != files::WEIGHTS);
    let recorded: Vec<&BundleFile> = listed.filter(|file| file.sha256.is_some()).collect();
    let compared = recorded.par_iter().map(|file| compare_one(bundle, manifest, file));
    let differs = |found: FileFound| (found.status == FileStatus::Differs).then_some(found.name);
    (!recorded.is_empty()).then(|| compared.filter_map(differs).collect())
}

/// What the manifest lists; at least the weights, of which earlier versions recorded digests too.
fn listed(manifest: &Manifest) -> Vec<BundleFile> {
    let mut listed = manifest.files.clone();
    if manifest.file(files::WEIGHTS).is_none() {
        listed.push(BundleFile { name: files::WEIGHTS.to_owned(), bytes: None, sha256: None });
    }
    listed
}

fn compare_one(bundle: &Path, manifest: &Manifest, file: &BundleFile) -> FileFound {
    let path = bundle.join(&file.name);
    let (status, reason) = if path.symlink_metadata().is_err() {
        (FileStatus::Missing, None)
    } else {
        match difference(bundle, manifest, file, &path) {
            Ok(None) => (FileStatus::Unrecorded, None),
            Ok(Some(Ok(()))) => (FileStatus::Same, None),
            Ok(Some(Err(reason))) | Err(reason) => (FileStatus::Differs, Some(reason)),
        }
    };
    FileFound { name: file.name.clone(), status, reason }
}

/// Whether there is something to compare with, and then what differs. What cannot be read differs too.
fn difference(
    bundle: &Path,
    manifest: &Manifest,
    file: &BundleFile,
    path: &Path,
) -> Result<Option<Result<(), String>>, String> {
    let size = path.metadata().map_err(|e| e.to_string())?.len();
    if let Some(expected) = file.bytes.filter(|expected| *expected != size) {
        return Ok(Some(Err(format!("it has {size} bytes, expected {expected}"))));
    }
    // Tensor by tensor, so that what differs has a name.
    if file.name == files::WEIGHTS {
        return match compare(bundle, manifest).map_err(|e| e.to_string())? {
            Compared::NotRecorded => Ok(None),
            Compared::Matches => Ok(Some(Ok(()))),
            Compared::Differs(Difference::Tensors(names)) => Ok(Some(Err(names.join(", ")))),
            Compared::Differs(Difference::Header) => Ok(Some(Err("the header".to_owned()))),
            Compared::Differs(Difference::File) => Ok(Some(Err("its digest is another".to_owned()))),
        };
    }
    let Some(recorded) = &file.sha256 else { return Ok(None) };
    let described = SourceFile::describe_whole(path).map_err(|e| e.to_string())?;
    match described.sha256.as_ref() == Some(recorded) {
        true => Ok(Some(Ok(()))),
        false => Ok(Some(Err("its digest is another".to_owned()))),
    }
}

/// The digests that `sha256sum` reads, where the bundle has them, must be those of the manifest.
fn compare_checksums(bundle: &Path, manifest: &Manifest) -> Result<Option<FileFound>, FilesError> {
    let path = bundle.join(files::CHECKSUMS);
    if !path.exists() {
        return Ok(None);
    }
    let read =
        |path: PathBuf| regular::read_to_string(&path).map_err(|source| FilesError::Io { path, source });
    // As it stands there: another version may write the same manifest otherwise.
    let (found, text) = (read(path)?, read(bundle.join(files::MANIFEST))?);
    let (status, reason) = match found == checksums(manifest, &text) {
        true => (FileStatus::Same, None),
        false => (FileStatus::Differs, Some(format!("it is not what {} says", files::MANIFEST))),
    };
    Ok(Some(FileFound { name: files::CHECKSUMS.to_owned(), status, reason }))
}
