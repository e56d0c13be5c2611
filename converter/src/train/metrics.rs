//! What a run measured, as JSON lines: one per step.

use crate::bundle::replace::replace_file;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The file, in the bundle's directory `train`.
pub const FILE: &str = "metrics.jsonl";

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub step: usize,
    /// Seen since the beginning.
    pub tokens: usize,
    /// With a teacher, cross-entropy and the weighted divergence from it.
    pub loss: f64,
    /// KL(teacher ‖ model), where there is a teacher.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl: Option<f64>,
    pub grad_norm: f64,
    pub lr: f64,
    pub tokens_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub valid_perplexity: Option<f64>,
}

/// Metrics cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("{}: {source} (hint: expected the metrics.jsonl that calibrate and finetune write)", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: line {line}: {reason} (hint: expected the metrics.jsonl of a run)", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("{}: it holds no steps (hint: expected the metrics.jsonl of a run)", path.display())]
    Empty { path: PathBuf },
}

/// The lines of a run's file. A last line that is cut short, as that of a killed run may be, is left out.
pub fn read(path: &Path) -> Result<Vec<Line>, MetricsError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| MetricsError::Io { path: path.to_owned(), source })?;
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| MetricsError::Line {
            path: path.to_owned(),
            line: i + 1,
            reason: e.to_string(),
        })
    };
    let lines = whole.enumerate().map(parse).collect::<Result<Vec<Line>, _>>()?;
    match lines.is_empty() {
        true => Err(MetricsError::Empty { path: path.to_owned() }),
        false => Ok(lines),
    }
}

/// The open file, and what is in it.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    pub lines: Vec<Line>,
}

impl Metrics {
    /// Opens the file in `dir`, with the lines up to `step`: those after it belong to a run that was killed.
    pub fn open(dir: &Path, step: usize) -> std::io::Result<Self> {
        let path = dir.join(FILE);
        let text = if step > 0 { std::fs::read_to_string(&path)? } else { String::new() };
        // The last line of a killed run may be cut short.
        let lines: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let lines = lines.into_iter().filter(|line| line.step <= step).collect::<Vec<_>>();
        let kept = lines.iter().map(text_of).collect::<Result<String, _>>()?;
        replace_file(&path, kept.as_bytes())?;
        Ok(Self { file: OpenOptions::new().append(true).open(path)?, lines })
    }

    pub fn add(&mut self, line: Line) -> std::io::Result<()> {
        self.file.write_all(text_of(&line)?.as_bytes())?;
        self.lines.push(line);
        Ok(())
    }
}

fn text_of(line: &Line) -> serde_json::Result<String> {
    Ok(serde_json::to_string(line)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize) -> Line {
        Line {
            step,
            tokens: 8,
            loss: 1.5,
            kl: None,
            grad_norm: 0.5,
            lr: 0.1,
            tokens_per_second: 9.0,
            valid_perplexity: None,
        }
    }

    #[test]
    fn a_resumed_run_goes_on_after_its_checkpoint() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut metrics = Metrics::open(dir.path(), 0).expect("it opens");
        for step in 1..=3 {
            metrics.add(line(step)).expect("it is written");
        }
        drop(metrics);
        let path = dir.path().join(FILE);
        let cut = std::fs::read_to_string(&path).expect("it is there") + "{\"step\": 4, \"tok";
        std::fs::write(&path, &cut).expect("it is written");
        let before = dir.path().join("before");
        std::fs::hard_link(&path, &before).expect("a link");
        let mut metrics = Metrics::open(dir.path(), 2).expect("it opens");
        metrics.add(line(3)).expect("it is written");
        let steps: Vec<usize> = metrics.lines.iter().map(|l| l.step).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert_eq!(std::fs::read_to_string(&path).expect("it is there").lines().count(), 3);
        // A run that is killed while it opens the file leaves it as it was.
        assert_eq!(std::fs::read_to_string(before).expect("it is there"), cut);
    }
}
