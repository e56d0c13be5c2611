//! A directory to run the binary in. Paths are relative to it, so that messages are the same everywhere.

use crate::support::schema;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

pub(crate) struct Home(pub(crate) TempDir);

impl Home {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command.current_dir(self.0.path()).args(arguments.split_whitespace()).env_remove("DIJIANG_LOG");
        let output = command.output().expect("it starts");
        let words: Vec<&str> = arguments.split_whitespace().collect();
        schema::check(&words, &String::from_utf8_lossy(&output.stdout));
        output
    }
}
