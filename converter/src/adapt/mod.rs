//! One route from a model to a bundle worth serving: converted, calibrated, fine-tuned, proved and measured.
//!
//! Every part is that of the command of its name, with what it does by default. What is done stands in a
//! [record](record::Record) in the bundle, so that the same call goes on after it.

mod budget;
mod error;
mod record;
mod speed;

pub use budget::Budget;
pub use error::AdaptError;
pub use record::{Figure, Record, Trained};

use crate::bundle::described;
use crate::convert::source;
use crate::convert::{ConvertOptions, convert, estimate};
use crate::eval::answers::Answered;
use crate::eval::tasks::Asked;
use crate::eval::{EvalOptions, Evaluator};
use crate::recipes;
use crate::report::progress::{Progress, Say};
use crate::train::calibrate::{self, CalibrateOptions, calibrate};
use crate::train::finetune::{FinetuneOptions, RATE, Scope, Sources, WARM_UP, finetune};
use crate::train::metrics::Line;
use crate::train::schedule::{Schedule, Shape};
use crate::train::teacher::{TeacherOptions, Wanted};
use crate::train::trainer::TrainerOptions;
use crate::verify::{Verification, VerifyOptions, verify};
use budget::{Pace, Steps};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::recipe::Rule;
use dijiang_format::words::counted;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::training::optimizer::AdamW;
use dijiang_runtime::LoadOptions;
use dijiang_runtime::temporary::{Temporary, note_route};
use indicatif::DecimalBytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Fine-tuning is validated, and kept, so many times.
const PAUSES: usize = 8;
/// Bytes of a weight in the directory `train`: itself and its two moments in f32, and what the graphs hold.
const TRAINING_BYTES: u64 = 14;

/// How to adapt.
#[derive(Debug, Clone)]
pub struct AdaptOptions<'a> {
    /// Without a proof: that of the adapted bundle counts.
    pub convert: ConvertOptions,
    pub sources: Sources,
    pub trainer: TrainerOptions,
    pub budget: Budget,
    pub seed: u64,
    /// `None` leaves the proof out.
    pub verify: Option<VerifyOptions>,
    /// Questions to ask before and after.
    pub tasks: &'a [Asked],
}

/// What came of it.
#[derive(Debug)]
pub struct Adapted {
    pub record: Record,
    /// Where this call made it.
    pub verification: Option<Verification>,
}

impl Adapted {
    /// Whether no check failed.
    pub fn is_ok(&self) -> bool {
        self.record.verified != Some(false)
    }
}

/// Adapts the model at `path` into the bundle `out`.
pub fn adapt(
    path: &Path,
    out: &Path,
    options: &AdaptOptions<'_>,
    progress: &mut dyn Progress,
) -> Result<Adapted, AdaptError> {
    let mut run = Run::begin(path, out, options, progress)?;
    note_route(out, "has the parts that are done, and the same call goes on after them");
    run.softmax()?;
    run.calibrate()?;
    run.finetune()?;
    run.measure()?;
    let verification = run.verify()?;
    run.progress.done();
    Ok(Adapted { record: run.record, verification })
}

struct Run<'a> {
    path: &'a Path,
    out: &'a Path,
    options: AdaptOptions<'a>,
    steps: Steps,
    /// Not where the source's attention is linear already.
    came_with_softmax: bool,
    record: Record,
    progress: &'a mut dyn Progress,
}

impl<'a> Run<'a> {
    /// Converts, where no earlier call did, and says first what all will take.
    fn begin(
        path: &'a Path,
        out: &'a Path,
        options: &AdaptOptions<'a>,
        progress: &'a mut dyn Progress,
    ) -> Result<Self, AdaptError> {
        let mut options = options.clone();
        let asked = asked(path, &options)?;
        let found = if out.exists() && !options.convert.force { Record::read(out)? } else { None };
        if let Some(found) = &found
            && let Some((option, was, is)) = found.difference(&asked)
        {
            return Err(AdaptError::Other { bundle: out.to_owned(), option, was, is });
        }
        if found.is_none() && out.exists() && !options.convert.force {
            return Err(AdaptError::Exists { bundle: out.to_owned() });
        }
        progress.stage("reading the source");
        let opened = source::open(path, options.convert.dtype)?;
        if options.convert.dtype.is_none() && opened.dtype == DType::BF16 {
            progress.say(
                Say::Note,
                "the source is bf16, which no CPU serves: the bundle is f16 (hint: --dtype bf16 keeps it)",
            );
            options.convert.dtype = Some(DType::F16);
        }
        let context = options.trainer.size.sequence;
        if let Some(said) = described::beyond(opened.meta.max_positions, context) {
            progress.say(Say::Warning, &said);
        }
        let came_with_softmax = opened.own_attention.is_none();
        let pace = pace(&opened.graph, came_with_softmax, &options)?;
        drop(opened);
        let planned = pace.steps(options.budget);
        // Whatever else the machine does by now.
        let calibrate = found.as_ref().and_then(|found| found.calibrate_steps).unwrap_or(planned.calibrate);
        let steps = Steps { calibrate, ..planned };
        let is_new = found.is_none();
        let mut run = Self {
            path,
            out,
            options,
            steps,
            came_with_softmax,
            record: found.unwrap_or_default(),
            progress,
        };
        if is_new {
            run.tell(&pace)?;
            run.record = run.converted(asked)?;
        } else {
            run.tell_of_what_is_done();
        }
        Ok(run)
    }

    /// What the run will take.
    fn tell(&mut self, pace: &Pace) -> Result<(), AdaptError> {
        let Steps { calibrate, finetune } = self.steps;
        let disk = estimate(self.path, &self.options.convert)?.disk + TRAINING_BYTES * pace.weights;
        let line = format!(
            "{} to calibrate and {finetune} to fine-tune, of {} tokens each, {:.2}M in all: about {} of training on {}, and up to {} of disk",
            counted(calibrate, "step"),
            pace.tokens,
            ((calibrate + finetune) * pace.tokens) as f64 / 1e6,
            minutes(pace.time(self.steps)),
            self.options.trainer.device,
            DecimalBytes(disk)
        );
        self.progress.say(Say::Note, &line);
        let directory = self.out.ancestors().skip(1).find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
        match (self.options.convert.free_space)(directory).ok() {
            Some(free) if free < disk => {
                Err(AdaptError::Disk { bundle: self.out.to_owned(), needed: disk, free })
            }
            _ => Ok(()),
        }
    }

    fn tell_of_what_is_done(&mut self) {
        let done = [
            (true, "converted"),
            (self.record.softmax_perplexity.is_some(), "measured as it came"),
            (self.record.calibrated.is_some(), "calibrated"),
            (self.record.finetuned.is_some(), "fine-tuned"),
        ];
        let done: Vec<&str> = done.iter().filter(|(is_done, _)| *is_done).map(|(_, what)| *what).collect();
        let line = format!(
            "{}: going on with what an earlier call began: {}{}",
            self.out.display(),
            done.join(", "),
            if self.record.calibrated.is_none() && self.steps.calibrate > 0 {
                "; calibration begins anew"
            } else {
                ""
            }
        );
        self.progress.say(Say::Note, &line);
    }

    fn converted(&mut self, asked: BTreeMap<String, String>) -> Result<Record, AdaptError> {
        let converted = convert(self.path, self.out, &self.options.convert, self.progress)?;
        converted.warnings.iter().for_each(|warning| self.progress.say(Say::Warning, warning));
        let record = Record { asked, calibrate_steps: Some(self.steps.calibrate), ..Record::default() };
        record.write(self.out)?;
        Ok(record)
    }

    /// What the model gives as it came, on the same text and questions.
    fn softmax(&mut self) -> Result<(), AdaptError> {
        if self.record.softmax_perplexity.is_some() || !self.came_with_softmax {
            return Ok(());
        }
        let io = |source| AdaptError::Io { path: std::env::temp_dir(), source };
        let scratch = Temporary::scratch("dijiang-adapt").map_err(io)?;
        let bundle = scratch.path().join("softmax");
        let how = ConvertOptions {
            recipe: recipes::load(SOFTMAX)?,
            keep: None,
            layers: None,
            force: false,
            train: false,
            ..self.options.convert.clone()
        };
        self.progress.stage("measuring the model as it came");
        convert(self.path, &bundle, &how, self.progress)?;
        let measured = finetune(&bundle, &self.finetuning(0), &mut |_| ())?;
        self.record.softmax_tasks = self.figures(&bundle)?;
        self.record.softmax_perplexity = Some(measured.valid_perplexity_before);
        self.record.write(self.out)
    }

    fn calibrate(&mut self) -> Result<(), AdaptError> {
        if self.record.calibrated.is_some() || self.steps.calibrate == 0 {
            return Ok(());
        }
        let options = CalibrateOptions {
            sources: self.options.sources.clone(),
            trainer: TrainerOptions {
                optimizer: AdamW { weight_decay: 0.0, new_rate: 1.0, ..self.options.trainer.optimizer },
                ..self.options.trainer.clone()
            },
            schedule: Schedule {
                shape: Shape::Constant,
                rate: calibrate::RATE,
                warm_up: 0,
                steps: self.steps.calibrate,
            },
            seed: self.options.seed,
            fit: true,
        };
        self.progress.items("calibrating", self.steps.calibrate as u64);
        let done = calibrate(self.out, &options, &mut |_| self.progress.advance(1))?;
        let trained = Trained::from(&done);
        self.record.calibrated = Some(trained);
        self.told("calibrated", &trained);
        self.record.write(self.out)
    }

    fn finetune(&mut self) -> Result<(), AdaptError> {
        if self.record.finetuned.is_some() {
            return Ok(());
        }
        let steps = match self.record.finetune_steps {
            Some(steps) => steps,
            None => self.settle_steps()?,
        };
        let checkpoint = self.out.join(files::RUNS).join(CHECKPOINT);
        let options = FinetuneOptions { resume: checkpoint.exists(), ..self.finetuning(steps) };
        self.progress.items("fine-tuning", steps as u64);
        let mut last = 0;
        let mut on_step = |line: &Line| {
            self.progress.advance((line.step - last) as u64);
            last = line.step;
            if let Some(perplexity) = line.valid_perplexity {
                let line = format!("step {} of {steps}: validation perplexity {perplexity:.2}", line.step);
                self.progress.say(Say::Note, &line);
            }
        };
        let done = finetune(self.out, &options, &mut on_step)?;
        let trained = Trained::from(&done);
        self.record.finetuned = Some(trained);
        self.told("fine-tuned", &trained);
        self.record.write(self.out)
    }

    /// How many steps fine-tuning has, written down, as a run is resumed with as many only.
    fn settle_steps(&mut self) -> Result<usize, AdaptError> {
        let steps = match (self.options.budget, &self.record.calibrated) {
            (Budget::Time(time), Some(done)) => {
                Pace::left(time, Duration::try_from_secs_f64(done.seconds).unwrap_or_default(), done.steps)
            }
            _ => self.steps.finetune,
        };
        self.record.finetune_steps = Some(steps);
        self.record.write(self.out)?;
        Ok(steps)
    }

    fn finetuning(&self, steps: usize) -> FinetuneOptions {
        let pause = steps.div_ceil(PAUSES).max(1);
        FinetuneOptions {
            sources: self.options.sources.clone(),
            scope: Scope::All,
            trainer: self.options.trainer.clone(),
            teacher: TeacherOptions { wanted: Wanted::Auto, weight: None },
            schedule: Schedule { shape: Shape::Linear, rate: RATE, warm_up: WARM_UP.min(steps), steps },
            seed: self.options.seed,
            redraw: None,
            checkpoint_every: pause,
            validate_every: pause,
            resume: false,
        }
    }

    fn told(&mut self, what: &str, trained: &Trained) {
        let line = format!(
            "{what} on {:.2}M tokens in {}: validation perplexity {:.2}, before {:.2}",
            trained.tokens as f64 / 1e6,
            minutes(Duration::try_from_secs_f64(trained.seconds).unwrap_or_default()),
            trained.perplexity,
            trained.perplexity_before
        );
        self.progress.say(Say::Note, &line);
    }

    /// Asks the questions of the tasks.
    fn measure(&mut self) -> Result<(), AdaptError> {
        if self.record.tasks.is_none() {
            self.record.tasks = self.figures(self.out)?;
            self.record.write(self.out)?;
        }
        Ok(())
    }

    fn figures(&mut self, bundle: &Path) -> Result<Option<Vec<Figure>>, AdaptError> {
        if self.options.tasks.is_empty() {
            return Ok(None);
        }
        let how = EvalOptions {
            contexts: Vec::new(),
            max_tokens: None,
            device: self.options.trainer.device,
            threads: self.options.trainer.threads,
            no_branching: false,
        };
        let mut evaluator = Evaluator::new(bundle, &how)?;
        let mut figures = Vec::new();
        for asked in self.options.tasks {
            let likelihoods = evaluator.ask(&asked.name, &asked.questions, self.progress)?;
            let answers: Vec<Answered<'_>> = asked
                .questions
                .iter()
                .zip(&likelihoods)
                .map(|(question, choices)| Answered { question, choices })
                .collect();
            figures.extend(asked.metrics.iter().map(|metric| {
                let found = metric.of(&answers);
                Figure {
                    task: asked.name.clone(),
                    metric: metric.name().to_owned(),
                    value: found.value,
                    standard_error: found.standard_error,
                    n: found.n,
                }
            }));
        }
        Ok(Some(figures))
    }

    fn verify(&mut self) -> Result<Option<Verification>, AdaptError> {
        let Some(options) = &self.options.verify else { return Ok(None) };
        if self.record.verified == Some(true) {
            return Ok(None);
        }
        let found = verify(self.out, options, self.progress)?;
        self.record.verified = Some(found.ok);
        self.record.write(self.out)?;
        Ok(Some(found))
    }
}

/// How fast a model trains, as far as that shows beforehand.
fn pace(graph: &Graph, came_with_softmax: bool, options: &AdaptOptions<'_>) -> Result<Pace, AdaptError> {
    let AdaptOptions { convert, trainer, .. } = options;
    let weights = graph.consts().filter(|(id, ..)| graph.value(*id).is_weight);
    let load = LoadOptions { device: trainer.device, threads: trainer.threads, ..LoadOptions::default() };
    Ok(Pace {
        weights: weights.map(|(_, _, tensor)| tensor.len() as u64).sum(),
        products_a_second: speed::products_a_second(&load)?,
        tokens: (trainer.size.batch * trainer.size.sequence) as usize * trainer.accumulate,
        calibrates: convert.recipe.rule != Rule::None && came_with_softmax,
    })
}

/// The recipe of the model as it came.
const SOFTMAX: &str = "softmax";
/// Of an option that was not given.
const NONE: &str = "none";
const CHECKPOINT: &str = crate::train::checkpoint::FILE;

/// What of a call changes what comes of it, or what is told of it.
fn asked(path: &Path, options: &AdaptOptions<'_>) -> Result<BTreeMap<String, String>, AdaptError> {
    let AdaptOptions { convert, sources, trainer, budget, seed, tasks, .. } = options;
    let paths =
        |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
    let questions = |task: &Asked| format!("{} of {}", task.name, task.questions.len());
    let budget = match budget {
        Budget::Tokens(tokens) => ("--tokens", tokens.to_string()),
        Budget::Time(time) => ("--minutes", (time.as_secs_f64() / 60.0).to_string()),
    };
    let told = [
        ("the model", path.display().to_string()),
        ("--recipe", recipes::to_yaml(&convert.recipe)?),
        ("--dtype", convert.dtype.map_or_else(|| NONE.to_owned(), |dtype| dtype.name().to_owned())),
        ("--data", paths(&sources.data)),
        ("--valid", paths(&sources.valid)),
        ("--validation-windows", sources.validation_windows.to_string()),
        ("--batch", trainer.size.batch.to_string()),
        ("--accumulate", trainer.accumulate.to_string()),
        ("--context", trainer.size.sequence.to_string()),
        ("--clip", trainer.clip_norm.to_string()),
        ("--precision", format!("{:?}", trainer.precision).to_lowercase()),
        ("--seed", seed.to_string()),
        ("--task", tasks.iter().map(questions).collect::<Vec<_>>().join(", ")),
        budget,
    ];
    Ok(told.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A time in words.
pub fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}
