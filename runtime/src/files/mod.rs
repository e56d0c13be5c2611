//! Files that are written completely or not at all, and what killed runs left of them. What a bundle is made of is in
//! `dijiang-format`.

pub(crate) mod output_file;
pub mod temporary;
