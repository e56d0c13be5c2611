//! The bundle: a directory with one weight file and graphs that point into it.

pub mod atomic;
pub mod checksums;
pub mod described;
pub(crate) mod finite;
pub mod link;
pub mod lock;
pub mod model_files;
pub mod replace;
pub mod room;
pub mod softmax_model;
pub(crate) mod states;
pub mod stored_file;
pub mod weights;
