//! What was done for a job, kept beside the bundles: in `.dijiang-batch/job-NAME.json` below the plan's root. No path in it
//! leads out of the root, so that the directory may be moved.

use crate::batch::plan::Plan;
use dijiang_format::files::MANIFEST;
use dijiang_runtime::temporary;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Below the plan's root.
pub(super) const DIRECTORY: &str = ".dijiang-batch";

/// The version of the record that is written and read.
const FORMAT: u64 = 1;

/// Digests by the names of files.
pub(super) type Digests = BTreeMap<String, String>;

/// The steps of a job that are done, in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u64,
    /// Of the program that did them.
    pub(super) version: String,
    /// The digest of that program: builds of one version differ.
    #[serde(default)]
    pub(super) program: String,
    pub(super) job: String,
    /// The file that the job stands in, from the root; empty where it lies elsewhere.
    #[serde(default)]
    file: String,
    /// From the root.
    pub(super) bundle: String,
    /// The digest of the bundle's manifest as the last step that writes it left it.
    #[serde(default)]
    pub(super) manifest: Option<String>,
    /// Whether a step that writes the bundle has begun, and how it ended is not known.
    #[serde(default)]
    pub(super) writing: bool,
    pub(super) steps: Vec<StepRecord>,
}

/// A step that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StepRecord {
    pub(super) command: String,
    /// With names in place of paths.
    pub(super) arguments: Vec<String>,
    /// What it read besides the bundle.
    pub(super) reads: Digests,
    /// The files of the bundle afterwards, where it writes there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) bundle: Option<Digests>,
    pub(super) seconds: f64,
    /// Bytes of memory, with mapped files.
    pub(super) peak: u64,
    /// The object that it printed, with names in place of paths.
    pub(super) result: Value,
}

/// Who made a bundle.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Maker {
    /// The file that its job stands in, as records have it.
    pub(super) file: String,
    /// The digest of the manifest that it left.
    manifest: Option<String>,
    writing: bool,
}

impl Maker {
    /// Whether it left a bundle.
    pub(super) fn has_made(&self) -> bool {
        self.manifest.is_some()
    }

    /// Whether the bundle with a manifest of this digest is what it left, or what it was writing as it was killed.
    pub(super) fn made(&self, manifest: Option<&str>) -> bool {
        self.writing || (manifest.is_some() && self.manifest.as_deref() == manifest)
    }
}

impl Record {
    /// Nothing is done yet of a job, of this file, by the program with this digest.
    pub(super) fn begin(job: &str, file: String, bundle: String, program: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (job, program) = (job.to_owned(), program.to_owned());
        let (manifest, writing, steps) = (None, false, Vec::new());
        Self { format: FORMAT, version, program, job, file, bundle, manifest, writing, steps }
    }

    /// These steps are.
    pub(super) fn with(self, steps: Vec<StepRecord>) -> Self {
        Self { steps, ..self }
    }

    pub(super) fn maker(&self) -> Maker {
        let of_step = |step: &StepRecord| step.bundle.as_ref()?.get(MANIFEST).cloned();
        // Earlier versions noted it with the steps alone.
        let manifest = self.manifest.clone().or_else(|| self.steps.iter().rev().find_map(of_step));
        Maker { file: self.file.clone(), manifest, writing: self.writing }
    }
}

/// The records of a root.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    /// Who made the bundles that records name, from the root.
    bundles: BTreeMap<String, Vec<Maker>>,
}

impl Records {
    /// Makes the directory where it is not there. What killed runs left in it goes.
    pub(super) fn open(plan: &Plan) -> io::Result<Self> {
        let directory = plan.root.join(DIRECTORY);
        std::fs::create_dir_all(&directory)?;
        temporary::clean(&directory)?;
        let mut bundles: BTreeMap<String, Vec<Maker>> = BTreeMap::new();
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                let Some(record) = read(&path) else { continue };
                let maker = record.maker();
                bundles.entry(record.bundle).or_default().push(maker);
            }
        }
        Ok(Self { directory, bundles })
    }

    /// Those that a bundle, named from the root, is known of.
    pub(super) fn makers(&self, bundle: &str) -> &[Maker] {
        self.bundles.get(bundle).map(Vec::as_slice).unwrap_or_default()
    }

    /// Without an ending. A lock lies beside it.
    pub(super) fn place(&self, job: &str) -> PathBuf {
        self.directory.join(file_name(job))
    }

    /// The job's record, where there is one that can be read.
    pub(super) fn read(&self, job: &str) -> Option<Record> {
        read(&self.path(job)).filter(|record| record.job == job)
    }

    /// Written whole or not at all.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_string_pretty(record)? + "\n";
        dijiang_runtime::write_file(&self.path(&record.job), text.as_bytes())
    }

    fn path(&self, job: &str) -> PathBuf {
        self.directory.join(file_name(job) + ".json")
    }
}

fn read(path: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (record.format == FORMAT).then_some(record)
}

/// The name of a job as one of a file: other letters by their numbers, and its digest in place of a long end.
fn file_name(job: &str) -> String {
    let mut name = String::from("job-");
    for byte in job.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(char::from(byte)),
            _ => {
                let _ = write!(name, "%{byte:02x}");
            }
        }
    }
    if name.len() > LONGEST {
        let digest = dijiang_format::digest::digest(job.as_bytes());
        name.truncate(LONGEST - digest.len());
        name.push_str(&digest);
    }
    name
}

/// So that the names made of it are no longer than a file system's.
const LONGEST: usize = 180;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_has_a_file_of_its_own() {
        assert_eq!(file_name("llama-adaptive"), "job-llama-adaptive");
        assert_eq!(file_name("../a/ü"), "job-..%2fa%2f%c3%bc");
        let long = ["x".repeat(400), "x".repeat(401)].map(|job| file_name(&job));
        assert!(long.iter().all(|name| name.len() == LONGEST) && long[0] != long[1]);
        assert_ne!(file_name("digests"), "digests");
    }

    #[test]
    fn what_a_kill_left_of_a_record_goes_with_the_next_run() {
        let home = tempfile::tempdir().expect("a directory");
        let plan = Plan { root: home.path().to_owned(), jobs: Vec::new() };
        let records = Records::open(&plan).expect("it is made");
        let begun = temporary::Temporary::beside(&records.path("a")).expect("it is begun");
        let place = begun.path().parent().map(Path::to_owned).expect("it has a directory");
        Records::open(&plan).expect("it is read");
        assert!(place.exists(), "its maker lives");
        begun.leave();
        Records::open(&plan).expect("it is read");
        assert!(!place.exists(), "its maker is gone");
    }

    #[test]
    fn what_is_no_record_is_none() {
        let home = tempfile::tempdir().expect("a directory");
        let plan = Plan { root: home.path().to_owned(), jobs: Vec::new() };
        let records = Records::open(&plan).expect("it is made");
        let mut record = Record::begin("a", "jobs.yaml".to_owned(), "out/a".to_owned(), "1");
        record.manifest = Some("2".to_owned());
        records.write(&record).expect("it is written");
        assert_eq!(records.read("a"), Some(record.clone()));
        assert_eq!(records.makers("out/a"), [], "it was not there before");
        let records = Records::open(&plan).expect("it is read");
        let [maker] = records.makers("out/a") else { panic!("{records:?}") };
        assert!(maker.made(Some("2")) && !maker.made(Some("3")) && !maker.made(None));
        let cut = serde_json::to_string(&record).expect("JSON");
        std::fs::write(records.path("a"), &cut[..cut.len() - 1]).expect("it is written");
        assert_eq!(records.read("a"), None);
        std::fs::write(records.path("a"), cut.replace("\"format\":1", "\"format\":2"))
            .expect("it is written");
        assert_eq!(records.read("a"), None);
    }
}
