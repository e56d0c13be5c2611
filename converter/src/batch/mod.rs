//! Many conversions and what follows them, from one file: what the file says is a [`plan::Plan`], which is run by child
//! processes of this program.

pub mod plan;
pub mod run;
