//! Fixtures converted into temporary directories.

use dijiang::convert::{ConvertOptions, Converted, convert};
use dijiang::recipes;
use dijiang::report::progress::Silent;
use dijiang_format::dtype::DType;
use dijiang_format::manifest::Manifest;
use dijiang_format::recipe::Recipe;
use dijiang_format::target::Target;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The checked-in models.
pub(crate) const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

/// A preset by its name.
pub(crate) fn recipe(name: &str) -> Recipe {
    recipes::load(name).unwrap_or_else(|e| panic!("{e}"))
}

/// A preset that tells so many positions apart, where it tells them apart: the fixtures have few.
pub(crate) fn recipe_with_positions(name: &str, positions: u64) -> Recipe {
    let mut recipe = recipe(name);
    recipe.map.positions = (name == "cosformer").then_some(positions);
    if let Some(slots) = &mut recipe.slots {
        slots.positions = Some(positions);
    }
    recipe
}

/// A preset with chunks of so many tokens.
pub(crate) fn recipe_in_chunks(name: &str, chunk: u32) -> Recipe {
    Recipe { chunk, ..recipe(name) }
}

/// A bundle that goes when it is dropped.
pub(crate) struct Bundle {
    home: TempDir,
    pub(crate) target: Target,
}

impl Bundle {
    /// Converts a fixture, without a proof: the tests are the proof.
    pub(crate) fn of_fixture(name: &str, recipe: &Recipe, target: Target, dtype: DType) -> Self {
        Self::of(&Path::new(FIXTURES).join(name), recipe, target, dtype)
    }

    /// Converts a checkpoint.
    pub(crate) fn of(source: &Path, recipe: &Recipe, target: Target, dtype: DType) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let bundle = Self { home, target };
        let options = ConvertOptions { target, dtype: Some(dtype), ..options(recipe) };
        convert_to(source, &bundle.path(), &options);
        bundle
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("bundle")
    }

    /// A file of the bundle.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn manifest(&self) -> Manifest {
        Manifest::read(&self.path()).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// A conversion with the defaults, without a proof.
pub(crate) fn options(recipe: &Recipe) -> ConvertOptions {
    ConvertOptions { dtype: Some(DType::F32), ..ConvertOptions::of(recipe.clone()) }
}

/// Converts, and expects that it works.
pub(crate) fn convert_to(source: &Path, target: &Path, options: &ConvertOptions) -> Converted {
    convert(source, target, options, &mut Silent).unwrap_or_else(|e| panic!("{}: {e}", source.display()))
}
