//! Softmax attention: found, put into one canonical form, and replaced by a linear recurrence.

pub mod lower;
pub mod mask;
pub mod patterns;
pub mod rewrite;
pub mod site;

#[cfg(test)]
mod tests;
