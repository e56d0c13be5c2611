//! Many conversions and what follows them, from one file: what the file says is a [`plan::Plan`], which is run by child
//! processes of this program.
//!
//! [`document`] reads YAML with its places, [`schema`] is the one table of keys, [`expand`] makes the plan, and [`run`] runs
//! it.

pub mod document;
pub mod expand;
pub mod plan;
pub mod run;
pub mod schema;
