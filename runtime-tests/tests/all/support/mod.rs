//! What the tests share: fixtures and their references, bundles, runtimes, and comparisons.

mod bundle;
mod compare;
mod engine;
mod exports;
mod oracle;
mod reference;

pub(crate) use bundle::{
    Bundle, FIXTURES, convert_to, options, recipe, recipe_in_chunks, recipe_with_positions,
};
pub(crate) use compare::{Comparisons, tolerance};
pub(crate) use engine::{Model, Side, engines, ort, prompt};
pub(crate) use exports::{DECODERS, exports};
pub(crate) use oracle::exact;
pub(crate) use reference::Reference;
