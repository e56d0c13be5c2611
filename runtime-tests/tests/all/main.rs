//! The graphs that are shipped, in the runtimes that run them: what must be equal is equal, what is reported is
//! snapshotted, and the proof of a conversion can fail.
#![allow(clippy::print_stderr)]

mod alike;
mod authors;
mod determinism;
mod foreign;
mod forms;
mod long;
mod proof;
mod quality;
mod second_decoder;
mod softmax;
mod support;
mod windows;
