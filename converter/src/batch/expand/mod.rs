//! A file of jobs to a plan: files that it includes, the matrix, defaults, steps, and what holds between jobs.

mod between;
mod draft;
mod job;
mod load;
mod matrix;
pub mod options;
mod outputs;
mod paths;
pub mod select;
mod steps;

use crate::batch::document::{Mistakes, Wrong};
use crate::batch::plan::Plan;
use crate::hub::HubModel;
use crate::report::outcome::Place;
use draft::{Draft, Drafts};
use options::Commands;
use std::path::{Path, PathBuf};

/// Jobs of a plan.
pub const MAX_JOBS: usize = 20_000;

/// Where the files of a model of the hub lie, or `None` where that shows only when the jobs run; or why they cannot be had.
pub type OnHub<'a> = &'a mut dyn FnMut(&HubModel) -> Result<Option<PathBuf>, String>;

/// The plan of a file, or all that is wrong with it, as far as that shows without weights. Nothing is written.
pub fn plan(file: &Path, commands: &Commands, hub: OnHub<'_>) -> Result<Plan, Mistakes> {
    let mut mistakes = Mistakes::default();
    let loaded = load::load(file, &mut mistakes);
    let Drafts { jobs: drafts, is_complete } = draft::drafts(&loaded, &mut mistakes);
    if drafts.is_empty() && mistakes.is_empty() {
        let hint = "`matrix: {model: [PATH]}`, then `dijiang batch FILE --check`";
        let start = Place { file: file.to_owned(), line: 1, column: 1 };
        mistakes.add(Wrong::other("no jobs", "`jobs` or a `matrix`", hint).at(start));
    }
    let root = paths::directory(file);
    let jobs = job::jobs(&drafts, commands, hub, &mut mistakes);
    // What is found from here on would not be told any more.
    if !mistakes.is_full() {
        outputs::check(&root, &jobs, &mut mistakes);
        between::check(&jobs, is_complete, &mut mistakes);
    }
    if mistakes.is_empty() {
        Ok(Plan { root, jobs: jobs.into_iter().map(|made| made.job).collect() })
    } else {
        Err(mistakes.sorted())
    }
}

/// No more jobs, where there are too many.
fn check_count(drafts: &[Draft], more: usize) -> Result<(), Wrong> {
    let jobs = drafts.len().saturating_add(more);
    if jobs <= MAX_JOBS {
        return Ok(());
    }
    let hint = "split the file, and run its parts one after the other";
    Err(Wrong::other(format!("{jobs} jobs"), format!("{MAX_JOBS} at most"), hint))
}
