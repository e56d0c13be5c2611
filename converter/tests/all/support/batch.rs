//! A directory with models, plans of jobs for them, and a program that notes what it is called for.

use dijiang::batch::plan::{Job, Plan, Quantity, Step, StepCommand, Threshold};
use dijiang::batch::run::{RunOptions, run};
use dijiang::report::outcome::{Case, CaseStatus, Place, Report};
use dijiang::report::progress::{Estimate, Progress, Say, Silent};
use dijiang_format::target::Target;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) struct Program;

impl Program {
    pub(crate) fn binary() -> &'static str {
        env!("CARGO_BIN_EXE_dijiang")
    }
}

/// The root of a plan. It is a directory in a temporary one, beside which calls are noted.
pub(crate) struct Home {
    /// Absent where another process made it.
    outer: Option<TempDir>,
    root: PathBuf,
}

impl Home {
    /// With copies of fixtures.
    pub(crate) fn new(fixtures: &[&str]) -> Self {
        let outer = tempfile::tempdir().expect("a directory");
        let root = outer.path().join("root");
        for fixture in fixtures {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture);
            std::fs::create_dir_all(root.join(fixture)).expect("it is made");
            for entry in std::fs::read_dir(source).expect("the fixture") {
                let entry = entry.expect("an entry");
                std::fs::copy(entry.path(), root.join(fixture).join(entry.file_name()))
                    .expect("it is copied");
            }
        }
        let home = Self { outer: Some(outer), root };
        home.program("program", "");
        home
    }

    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { outer: None, root: root.into() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The same directory under another name.
    pub(crate) fn moved(self) -> Self {
        let outer = self.outer.expect("its own");
        let root = outer.path().join("elsewhere");
        std::fs::rename(&self.root, &root).expect("it is moved");
        Self { outer: Some(outer), root }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.root.parent().expect("a parent").join(name)
    }

    pub(crate) fn plan(&self, jobs: Vec<Job>) -> Plan {
        Plan { root: self.root.clone(), jobs }
    }

    pub(crate) fn step(&self, command: StepCommand, job: &Job, options: &[&str]) -> Step {
        let bundle = job.bundle.to_str().expect("text");
        let words = [&[bundle], options, &["--json"]].concat();
        let arguments = words.into_iter().map(str::to_owned).collect();
        Step { command, arguments, reads: Vec::new(), writes: Vec::new(), place: self.place(2) }
    }

    pub(crate) fn threshold(&self, quantity: Quantity, limit: f64) -> Threshold {
        Threshold { quantity, limit, place: self.place(9) }
    }

    fn place(&self, line: usize) -> Place {
        Place { file: self.path("jobs.yaml"), line, column: 1 }
    }

    /// A program that notes its calls, runs some shell, and then is `dijiang`. It is written once: a file that was just
    /// written cannot always be run, as another test's child may still have it open.
    pub(crate) fn program(&self, name: &str, shell: &str) -> PathBuf {
        let path = self.beside(name);
        if path.exists() {
            return path;
        }
        let calls = self.beside("calls");
        let text = format!(
            "#!/bin/sh\necho \"$*\" >> '{}'\n{shell}\nexec '{}' \"$@\"\n",
            calls.display(),
            Program::binary()
        );
        std::fs::write(&path, text).expect("it is written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it can be run");
        path
    }

    /// A program that makes bundles without a model in them, runs some shell, and prints an empty object. Each conversion
    /// is said to take 1 GB.
    pub(crate) fn stand_in(&self, shell: &str) -> PathBuf {
        let estimate = r#"{"estimate":{"disk_bytes":1,"memory_bytes":1000000000}}"#;
        let text = format!(
            "case \"$*\" in *--estimate*) echo '{estimate}'; exit;; esac
if [ \"$1\" = convert ]; then mkdir -p \"$4\" && echo '{{}}' >\"$4/dijiang.json\"; fi
cd '{}'
{shell}
echo '{{}}'
exit",
            self.root.display()
        );
        self.program("stand-in", &text)
    }

    pub(crate) fn run(&self, plan: &Plan) -> Report {
        self.run_with(plan, &RunOptions::default())
    }

    pub(crate) fn run_with(&self, plan: &Plan, options: &RunOptions) -> Report {
        let options = RunOptions { program: Some(self.program("program", "")), ..options.clone() };
        run(plan, &options, &mut Silent).expect("it runs").report
    }

    /// The jobs that run.
    pub(crate) fn run_suites(&self, plan: &Plan) -> Vec<String> {
        ran(&self.run(plan))
    }

    pub(crate) fn forget_calls(&self) {
        let _ = std::fs::remove_file(self.beside("calls"));
    }

    /// The commands that were called since.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.beside("calls")).unwrap_or_default();
        text.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    }

    /// Until a command was called.
    pub(crate) fn wait_for_call(&self, command: &str) {
        self.wait(|| self.calls().iter().any(|call| call == command));
    }

    pub(crate) fn wait_for_any_call(&self) {
        self.wait(|| !self.calls().is_empty());
    }

    /// Until no process is there that was started for this directory.
    pub(crate) fn wait_until_nothing_writes(&self) {
        let name = self.root.to_str().expect("text").as_bytes();
        let has_name = |path: PathBuf| {
            let text = std::fs::read(path.join("cmdline")).unwrap_or_default();
            text.windows(name.len()).any(|part| part == name)
        };
        self.wait(|| {
            let processes = std::fs::read_dir("/proc").expect("it is there").flatten();
            !processes.map(|entry| entry.path()).any(has_name)
        });
    }

    fn wait(&self, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_mins(2), "it takes too long: {}", self.root.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is hidden below the root, but for the records.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut open = vec![self.root.clone()];
        let mut found = Vec::new();
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).expect("it is there").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') && name != ".dijiang-batch" {
                    found.push(name);
                }
                if entry.path().is_dir() {
                    open.push(entry.path());
                }
            }
        }
        found
    }

    /// Changes a byte of a number near the end of a file.
    pub(crate) fn flip(&self, name: &Path) {
        let mut bytes = std::fs::read(self.root.join(name)).expect("it is there");
        let at = bytes.len() - 2;
        bytes[at] ^= 1;
        std::fs::write(self.root.join(name), bytes).expect("it is written");
    }

    /// Takes the second half of a file away.
    pub(crate) fn cut(&self, name: &Path) {
        let bytes = std::fs::read(self.root.join(name)).expect("it is there");
        std::fs::write(self.root.join(name), &bytes[..bytes.len() / 2]).expect("it is written");
    }

    /// What the command measures of a bundle.
    pub(crate) fn perplexity(&self, job: &str, text: &str) -> f64 {
        let output = Command::new(Program::binary())
            .arg("eval")
            .arg(self.path("out").join(job))
            .args(["--perplexity", text, "--context", "64", "--max-tokens", "512", "--json"])
            .output()
            .expect("it runs");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        told["results"][0]["value"].as_f64().expect("a number")
    }
}

/// Runs a plan by a program, and tells what was said.
pub(crate) fn heard(plan: &Plan, program: &Path) -> (Report, Vec<String>) {
    let options = RunOptions {
        program: Some(program.to_owned()),
        memory: Some(1_200_000_000),
        threads: Some(2),
        ..RunOptions::default()
    };
    let mut heard = Heard(Vec::new());
    let report = run(plan, &options, &mut heard).expect("it runs").report;
    (report, heard.0)
}

/// Hears warnings.
struct Heard(Vec<String>);

impl Progress for Heard {
    fn estimate(&mut self, _estimate: &Estimate) {}

    fn stage(&mut self, _what: &str) {}

    fn bytes(&mut self, _what: &str, _total: u64) {}

    fn advance(&mut self, _bytes: u64) {}

    fn say(&mut self, what: Say, line: &str) {
        self.0.extend((what == Say::Warning).then(|| line.to_owned()));
    }

    fn done(&mut self) {}
}

/// A job called `MODEL-RECIPE` that converts.
pub(crate) fn plan_job(home: &Home, model: &str, recipe: &str, options: &[&str]) -> Job {
    let stem = Path::new(recipe).file_stem().expect("a name").to_str().expect("text");
    let name = format!("{}-{stem}", model.replace('/', "-"));
    let (source, bundle) = (home.path(model), home.path("out").join(&name));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let mut arguments = vec![text(&source), "-o".to_owned(), text(&bundle)];
    arguments.extend(["--recipe", recipe, "--target", "ort"].map(str::to_owned));
    arguments.extend(options.iter().chain(&["--json"]).map(|word| (*word).to_owned()));
    let mut reads = vec![source.clone()];
    reads.extend(Path::new(recipe).extension().map(|_| recipe.into()));
    let step =
        Step { command: StepCommand::Convert, arguments, reads, writes: Vec::new(), place: home.place(2) };
    Job {
        name,
        source,
        bundle,
        recipe: recipe.to_owned(),
        target: Target::Ort,
        dtype: None,
        steps: vec![step],
        thresholds: Vec::new(),
        baseline: None,
        place: home.place(1),
    }
}

pub(crate) fn statuses(report: &Report) -> Vec<CaseStatus> {
    report.cases.iter().map(|case| case.status).collect()
}

/// The jobs of which something ran.
pub(crate) fn ran(report: &Report) -> Vec<String> {
    let cases = report.cases.iter().filter(|case| case.numbers.contains_key("started"));
    let names: BTreeSet<String> = cases.map(|case| case.suite.clone()).collect();
    names.into_iter().collect()
}

pub(crate) fn suites(report: &Report) -> BTreeSet<String> {
    report.cases.iter().map(|case| case.suite.clone()).collect()
}

pub(crate) fn case<'a>(report: &'a Report, job: &str, name: &str) -> &'a Case {
    let found = report.cases.iter().find(|case| case.suite == job && case.name == name);
    found.unwrap_or_else(|| panic!("{job}: {name}: {report:?}"))
}

/// What is said of a case, but for what its step warned of.
pub(crate) fn message<'a>(report: &'a Report, job: &str, name: &str) -> &'a str {
    let said = case(report, job, name).message.as_deref().unwrap_or_default();
    said.split("; warning: ").next().unwrap_or_default()
}
