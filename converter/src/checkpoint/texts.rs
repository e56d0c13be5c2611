//! The texts of a model: its config, its tokenizer and what else is copied into a bundle. Most lie beside the weights; those
//! of a GGUF file are made of what it says.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where the texts of a model are.
#[derive(Clone, Default)]
pub struct Texts {
    dir: PathBuf,
    /// What lies nowhere, by the name that it has in a bundle.
    made: Vec<(&'static str, Vec<u8>)>,
    /// Why there is no tokenizer, where more can be said than that none lies there.
    lack: Option<String>,
}

/// A text of a model.
#[derive(Debug, PartialEq, Eq)]
pub enum Text<'a> {
    At(PathBuf),
    Made(&'a [u8]),
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made: Vec<&str> = self.made.iter().map(|(name, _)| *name).collect();
        write!(f, "Texts({}, {made:?})", self.dir.display())
    }
}

impl Texts {
    /// Of a directory.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, ..Self::default() }
    }

    /// The directory that they lie in, as far as they lie anywhere.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds one that takes the place of a file of its name.
    pub(super) fn add(&mut self, name: &'static str, bytes: Vec<u8>) {
        self.made.push((name, bytes));
    }

    /// Says why there is no tokenizer.
    pub(super) fn set_lack(&mut self, why: String) {
        self.lack = Some(why);
    }

    /// Why there is no tokenizer, where it was said.
    pub fn lack(&self) -> Option<&str> {
        self.lack.as_deref()
    }

    /// The text of a name, where there is one.
    pub fn find(&self, name: &str) -> Option<Text<'_>> {
        let made = self.made.iter().find(|(made, _)| *made == name);
        let beside = || Some(self.dir.join(name)).filter(|path| path.exists()).map(Text::At);
        made.map(|(_, bytes)| Text::Made(bytes)).or_else(beside)
    }

    /// The file of a text, where it lies in one.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        match self.find(name)? {
            Text::At(path) => Some(path),
            Text::Made(_) => None,
        }
    }

    /// How many bytes the text of a name has.
    pub fn size(&self, name: &str) -> u64 {
        match self.find(name) {
            Some(Text::At(path)) => std::fs::metadata(path).map_or(0, |file| file.len()),
            Some(Text::Made(bytes)) => bytes.len() as u64,
            None => 0,
        }
    }

    /// The path of a text, which is written into `scratch` where it lies nowhere.
    pub fn path(&self, name: &str, scratch: &Path) -> std::io::Result<PathBuf> {
        match self.find(name) {
            Some(Text::Made(bytes)) => {
                let path = scratch.join(name);
                std::fs::write(&path, bytes)?;
                Ok(path)
            }
            Some(Text::At(path)) => Ok(path),
            None => Ok(self.dir.join(name)),
        }
    }
}
