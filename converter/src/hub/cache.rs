//! The cache of the hub's tools: `models--owner--model/` with `refs/REVISION`, which names a commit, `snapshots/COMMIT/`,
//! which has links of the files' names, and `blobs/`, which has the files by their digests.
//! <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>

use super::error::HubError;
use super::files;
use super::name::HubModel;
use dijiang_format::manifest::SourceFile;
use dijiang_runtime::temporary::goes_along;
use hf_hub::{Repo, RepoType};
use std::io;
use std::path::{Path, PathBuf};

/// What a part of a download is called that was broken off.
const PART: &str = "part";
const BLOBS: &str = "blobs";

/// A directory of models.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    /// Where a token lies that `hf auth login` left.
    token: PathBuf,
}

impl Cache {
    /// Where `huggingface_hub` has it: at HF_HUB_CACHE, or below HF_HOME, XDG_CACHE_HOME or the home directory.
    pub(super) fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let below = |name: &str| variable(name).map(PathBuf::from);
        let general = || {
            below("XDG_CACHE_HOME")
                .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
                .unwrap_or_default()
                .join("huggingface")
        };
        let home = below("HF_HOME").unwrap_or_else(general);
        Self {
            dir: below("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            token: below("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn token(&self) -> Option<String> {
        let token = std::fs::read_to_string(&self.token).ok()?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    }

    /// The same, as the client of the hub has it.
    pub(super) fn of_hub(&self) -> hf_hub::Cache {
        hf_hub::Cache::new(self.dir.clone())
    }

    fn folder(&self, model: &HubModel) -> PathBuf {
        let repo = Repo::new(model.id().to_owned(), RepoType::Model);
        self.dir.join(repo.folder_name())
    }

    pub(super) fn snapshot(&self, model: &HubModel, commit: &str) -> PathBuf {
        self.folder(model).join("snapshots").join(commit)
    }

    /// The commit of a model and its path, where all of its weights are there, and its tokenizer if that is wanted.
    pub(super) fn find(&self, model: &HubModel, wants_tokenizer: bool) -> Option<(String, PathBuf)> {
        let reference = self.folder(model).join("refs").join(model.revision());
        let commit = match std::fs::read_to_string(reference) {
            Ok(commit) => commit.trim().to_owned(),
            // A commit names itself.
            Err(_) => model.revision().to_owned(),
        };
        let snapshot = self.snapshot(model, &commit);
        files::are_all_in(&snapshot, model, wants_tokenizer).then(|| (commit, model.path_in(&snapshot)))
    }

    /// Says which commit a revision is.
    pub(super) fn refer(&self, model: &HubModel, commit: &str) -> Result<(), HubError> {
        let revision = model.revision().to_owned();
        let repo = Repo::with_revision(model.id().to_owned(), RepoType::Model, revision);
        let written = self.of_hub().repo(repo).create_ref(commit);
        written.map_err(|source| HubError::Cache { path: self.folder(model), source })
    }

    fn blob(&self, model: &HubModel, file: &Blob) -> PathBuf {
        self.folder(model).join(BLOBS).join(&file.etag)
    }

    /// Removes the part of a download that is as long as the whole, which nothing can be added to.
    pub(super) fn drop_part(&self, model: &HubModel, file: &Blob) -> Result<(), HubError> {
        let mut path = self.blob(model, file);
        path.set_extension(PART);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() >= file.bytes => {
                std::fs::remove_file(&path).map_err(|source| HubError::Cache { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Gives a file its name, where all of it is there: a download may have been broken off before it was checked, and two
    /// commits may have the same.
    pub(super) fn link(&self, model: &HubModel, file: &Blob, link: &Path) -> Result<bool, HubError> {
        let blob = self.blob(model, file);
        if !std::fs::metadata(&blob).is_ok_and(|found| found.is_file() && found.len() == file.bytes) {
            return Ok(false);
        }
        let fail = |source: io::Error| HubError::Cache { path: link.to_owned(), source };
        let parent = link.parent().unwrap_or(link);
        std::fs::create_dir_all(parent).map_err(fail)?;
        let depth = parent.strip_prefix(self.folder(model)).map_or(0, |inner| inner.components().count());
        let target: PathBuf = std::iter::repeat_n("..", depth).chain([BLOBS, &file.etag]).collect();
        std::os::unix::fs::symlink(target, link).map_err(fail)?;
        Ok(true)
    }
}

/// A file as the hub has it: the name of what is in it, and its length.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) etag: String,
    pub(super) bytes: u64,
}

/// The client cannot download what has no bytes.
pub(super) fn write_empty(path: &Path) -> Result<(), HubError> {
    let fail = |source: io::Error| HubError::Cache { path: path.to_owned(), source };
    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(fail)?;
    std::fs::write(path, "").map_err(fail)
}

/// Refuses a file that is not what its name in `blobs/` says, and removes it. The hub names large files by their
/// SHA-256; others, by another digest, are only read. A program that ends on the way takes the link along: what has one
/// was checked.
pub(super) fn check_digest(link: &Path) -> Result<(), HubError> {
    goes_along(link, true);
    let checked = checked(link);
    goes_along(link, false);
    checked
}

fn checked(link: &Path) -> Result<(), HubError> {
    let fail = |source: io::Error| HubError::Cache { path: link.to_owned(), source };
    let blob = std::fs::canonicalize(link).map_err(fail)?;
    let name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    if name.len() != 64 || !name.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(());
    }
    let found = SourceFile::describe_whole(&blob)?.sha256.unwrap_or_default();
    if found.eq_ignore_ascii_case(&name) {
        return Ok(());
    }
    std::fs::remove_file(&blob).map_err(fail)?;
    std::fs::remove_file(link).map_err(fail)?;
    Err(HubError::Damaged { path: link.to_owned(), expected: name, found })
}
