//! The keys of a file of jobs: one table, which the reader checks files by and the JSON schema is written from.

mod check;
mod json;

pub(crate) use check::{check, is_name};
pub use json::json_schema;

use crate::batch::plan::Quantity;

/// A file that shows every part, for people and for the tests.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// The map of a place.
#[derive(Debug)]
pub struct Table {
    /// What messages call it.
    pub owner: &'static str,
    pub keys: &'static [Key],
    /// Beside its keys, those that begin so, with anything in them.
    pub free_prefix: Option<&'static str>,
}

/// A key of a map.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// One line for people.
    pub doc: &'static str,
}

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// The number 1.
    Version,
    /// A path relative to the file that it stands in.
    Path,
    /// A name that may be a file's.
    Name,
    /// A preset, or the path of a YAML file.
    Recipe,
    Target,
    DType,
    /// A finite number from here on, or null.
    Number(f64),
    List(&'static Kind),
    /// A list of one item at least.
    Axis(&'static Kind),
    Map(&'static Table),
    /// A path, or a map.
    PathOr(&'static Table),
    Steps,
}

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, required: false, doc }
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, required: true, doc }
}

pub static FILE: Table = Table {
    owner: "the file",
    free_prefix: Some("x-"),
    keys: &[
        required("version", Kind::Version, "The version of this format: 1."),
        key(
            "include",
            Kind::List(&Kind::Path),
            "Other files of jobs: their defaults stand below those of this file, their jobs before its own.",
        ),
        key("defaults", Kind::Map(&DEFAULTS), "What holds for every job that does not say otherwise."),
        key("matrix", Kind::Map(&MATRIX), "Jobs of every model with every recipe, target and dtype."),
        key("jobs", Kind::List(&Kind::Map(&JOB)), "Jobs one by one."),
    ],
};

static DEFAULTS: Table = Table {
    owner: "`defaults`",
    free_prefix: None,
    keys: &[
        key(
            "out",
            Kind::Path,
            "The directory of bundles; each is called as its job. `bundles` where not given.",
        ),
        RECIPE,
        TARGET,
        DTYPE,
        STEPS,
        REQUIRE,
    ],
};

const RECIPE: Key = key("recipe", Kind::Recipe, "A recipe's name, or the path of a YAML file.");
const TARGET: Key = key("target", Kind::Target, "What runs the serving graph.");
const DTYPE: Key = key("dtype", Kind::DType, "The element type; the checkpoint's where not given.");
const STEPS: Key = key(
    "steps",
    Kind::Steps,
    "Commands in their order. `convert` is the first, whether it is written or not.",
);
const REQUIRE: Key =
    key("require", Kind::Map(&LIMITS), "Limits that fail a job. `null` takes one of the defaults away.");
const BASELINE: Key = key("baseline", Kind::Name, "The job whose bundle limits compare with. It runs first.");
const OUT: Key = key("out", Kind::Path, "The bundle; NAME in the directory of `defaults` where not given.");

static MATRIX: Table = Table {
    owner: "`matrix`",
    free_prefix: None,
    keys: &[
        required("model", Kind::Axis(&Kind::PathOr(&MODEL)), "Sources."),
        key("recipe", Kind::Axis(&Kind::Recipe), "Recipes."),
        key("target", Kind::Axis(&Kind::Target), "Targets."),
        key("dtype", Kind::Axis(&Kind::DType), "Element types."),
        key(
            "include",
            Kind::List(&Kind::Map(&INCLUDED)),
            "More of the jobs that it fits, or one more job where it fits none.",
        ),
        key("exclude", Kind::List(&Kind::Map(&EXCLUDED)), "The jobs that it fits are left out."),
    ],
};

static MODEL: Table = Table {
    owner: "a model",
    free_prefix: None,
    keys: &[
        required("name", Kind::Name, "What jobs are named after."),
        required(
            "path",
            Kind::Path,
            "A checkpoint's directory, an .onnx file, or a directory that holds one.",
        ),
    ],
};

const MODEL_KEY: Key = key("model", Kind::PathOr(&MODEL), "A source, or the name of one of the matrix.");

static INCLUDED: Table = Table {
    owner: "an entry of `include`",
    free_prefix: None,
    keys: &[MODEL_KEY, RECIPE, TARGET, DTYPE, OUT, STEPS, REQUIRE, BASELINE],
};

static EXCLUDED: Table =
    Table { owner: "an entry of `exclude`", free_prefix: None, keys: &[MODEL_KEY, RECIPE, TARGET, DTYPE] };

static JOB: Table = Table {
    owner: "a job",
    free_prefix: None,
    keys: &[
        required("name", Kind::Name, "Unlike that of any other job."),
        required("model", Kind::PathOr(&MODEL), "The source."),
        RECIPE,
        TARGET,
        DTYPE,
        OUT,
        STEPS,
        REQUIRE,
        BASELINE,
    ],
};

static LIMITS: Table = Table {
    owner: "`require`",
    free_prefix: None,
    keys: &[
        limit(
            Quantity::CheckError,
            0.0,
            "The largest relative error among the checks of convert and verify, at most.",
        ),
        limit(
            Quantity::PerplexityRatio,
            0.0,
            "Perplexity over that of the baseline, at most. Needs a step eval in both.",
        ),
        limit(
            Quantity::AccuracyDifference,
            f64::NEG_INFINITY,
            "Accuracy less that of the baseline, at least: a negative number. Needs a step eval in both.",
        ),
        limit(
            Quantity::SpeedRatio,
            0.0,
            "Decoded tokens per second over those of the baseline in the same run, at least. Needs a step bench.",
        ),
        limit(Quantity::StateBytes, 0.0, "Bytes of state of one sequence, at most."),
        limit(Quantity::BundleBytes, 0.0, "Bytes of the bundle, at most."),
        limit(Quantity::SoftmaxSites, 0.0, "Attentions that stay softmax, at most."),
    ],
};

const fn limit(quantity: Quantity, least: f64, doc: &'static str) -> Key {
    key(quantity.name(), Kind::Number(least), doc)
}

impl Table {
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    fn is_free(&self, name: &str) -> bool {
        self.free_prefix.is_some_and(|prefix| name.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quantity_is_a_key() {
        let keys: Vec<&str> = LIMITS.keys.iter().map(|key| key.name).collect();
        assert_eq!(keys, Quantity::ALL.map(Quantity::name));
    }
}
