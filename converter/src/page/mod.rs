//! The page that `dijiang report` writes: what bundles are and how good they are, in one file.

mod bundles;
mod figure;
mod heat;
mod kernel;
pub mod maps;
mod pictures;
mod quality;
mod speed;
mod training;

use crate::provenance::info::{Info, InfoError, info};
use crate::report::chart::ChartError;
use crate::report::progress::Progress;
use crate::train::metrics::MetricsError;
use dijiang_format::manifest::{Manifest, ManifestError};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};

const STYLE: &str = include_str!("style.css");

/// What the maps are of, where nothing is given.
pub const TEXT: &str = "The little boat left the harbour at dawn. By noon the wind had turned, and the captain told her crew that the little boat would not reach the harbour again before night. Nobody was afraid: they had bread, they had water, and the captain knew every rock of that coast by its name.";

/// What to show.
#[derive(Debug, Clone)]
pub struct PageOptions {
    pub bundles: Vec<PathBuf>,
    /// What the maps are of; [`TEXT`] where it is left out.
    pub text: Option<String>,
    /// As many tokens of it.
    pub tokens: usize,
    /// What `dijiang bench --json` printed.
    pub bench: Vec<PathBuf>,
    /// What `dijiang eval --json` printed.
    pub eval: Vec<PathBuf>,
}

/// A page, and what is on it.
#[derive(Debug, Clone)]
pub struct Page {
    pub html: String,
    pub sections: Vec<SectionTold>,
}

/// Whether a section is on the page, or else why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionTold {
    pub section: &'static str,
    pub shown: bool,
    pub why: Option<String>,
}

/// There is no page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    #[error(transparent)]
    Info(#[from] InfoError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Chart(#[from] ChartError),
    #[error("a map cannot be made a picture: {0}")]
    Picture(#[from] png::EncodingError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {reason}, expected what `{command} --json` prints (hint: `{command} … --json > {}`)", path.display(), path.display())]
    Printed { path: PathBuf, reason: String, command: &'static str },
}

/// A bundle of the page.
struct Shown {
    path: PathBuf,
    /// What it is called on the page.
    name: String,
    manifest: Manifest,
    info: Info,
}

/// A part of the page: what it holds, or why it is left out.
struct Section {
    title: &'static str,
    id: &'static str,
    body: Result<Markup, String>,
}

/// Makes the page.
pub fn page(options: &PageOptions, progress: &mut dyn Progress) -> Result<Page, PageError> {
    let shown = options.bundles.iter().zip(names(&options.bundles)).map(|(path, name)| {
        let (info, manifest) = (info(path)?, Manifest::read(path)?);
        Ok(Shown { path: path.clone(), name, manifest, info })
    });
    let shown = shown.collect::<Result<Vec<_>, PageError>>()?;
    let section = |title, id, body| Section { title, id, body };
    let sections = [
        section("Bundles", "bundles", Ok(bundles::table(&shown))),
        section("Attention maps", "maps", pictures::maps(&shown, options, progress)?),
        section("Training", "training", training::curves(&shown)?),
        section("Speed and memory", "speed", speed::figures(&options.bench)?),
        section("Quality", "quality", quality::table(&options.eval)?),
        section("Error of the kernel", "kernel", Ok(kernel::section(progress)?)),
    ];
    progress.done();
    let told = |section: &Section| SectionTold {
        section: section.id,
        shown: section.body.is_ok(),
        why: section.body.as_ref().err().cloned(),
    };
    Ok(Page { html: whole(&shown, &sections).into_string(), sections: sections.iter().map(told).collect() })
}

/// The last part of each path, or all of it where others end so too.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = |path: &PathBuf| {
        let alike = paths.iter().filter(|other| last(other) == last(path)).count();
        last(path).filter(|_| alike == 1).unwrap_or_else(|| path.display().to_string())
    };
    paths.iter().map(name).collect()
}

fn whole(shown: &[Shown], sections: &[Section]) -> Markup {
    let named = shown.iter().map(|bundle| bundle.name.as_str()).collect::<Vec<_>>().join(", ");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "dijiang report: " (named) }
                // An address of its own, as a browser asks for /favicon.ico otherwise.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "dijiang report" }
                    p { (named) }
                    nav aria-label="Sections" {
                        ul { @for section in sections { li { a href={ "#" (section.id) } { (section.title) } } } }
                    }
                }
                main { @for section in sections { (of_section(section)) } }
                footer { p { "Written by dijiang " (env!("CARGO_PKG_VERSION")) "." } }
            }
        }
    }
}

fn of_section(section: &Section) -> Markup {
    html! {
        section id=(section.id) aria-labelledby={ (section.id) "-title" } {
            h2 id={ (section.id) "-title" } { (section.title) }
            @match &section.body {
                Ok(body) => (body),
                Err(why) => p.none { (why) },
            }
        }
    }
}

/// What a command printed with `--json`.
fn printed<T: DeserializeOwned>(path: &Path, command: &'static str) -> Result<T, PageError> {
    let bytes = std::fs::read(path).map_err(|source| PageError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|e| PageError::Printed {
        path: path.to_owned(),
        reason: e.to_string(),
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_called_by_the_last_part_that_tells_them_apart() {
        let paths = ["out/a", "b", "c/b"].map(PathBuf::from);
        assert_eq!(names(&paths), ["a", "b", "c/b"]);
    }
}
