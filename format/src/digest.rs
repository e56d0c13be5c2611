//! Digests: SHA-256 in hexadecimal, of bytes and of the parts of a weight file.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};

/// A digest on its way.
#[derive(Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds all that there is to read, a block at a time.
    pub fn read(&mut self, from: &mut dyn Read) -> std::io::Result<()> {
        let mut block = vec![0; 1 << 20];
        loop {
            match from.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(n) => self.update(&block[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    pub fn finish(self) -> String {
        let mut text = String::new();
        for byte in self.0.finalize() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// The digest of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish()
}

/// SHA-256 in hexadecimal of the parts of a weight file. Weights that stay in the files of the source are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightDigests {
    /// Of the length of the header and the header, which name every tensor's type, shape and place.
    pub header: String,
    /// Of each tensor's bytes, by its name.
    pub tensors: BTreeMap<String, String>,
}

impl WeightDigests {
    /// The tensors that are in only one of the two, or have other bytes.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.tensors.keys().chain(other.tensors.keys()).collect();
        let differs = |name: &&&String| self.tensors.get(**name) != other.tensors.get(**name);
        names.iter().filter(differs).map(|name| (*name).clone()).collect()
    }
}
