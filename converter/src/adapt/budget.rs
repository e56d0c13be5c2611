//! How many steps there is time for, and how long so many take.

use std::time::Duration;

/// What a run may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Tokens of calibration and fine-tuning together.
    Tokens(usize),
    /// Time of both together, about.
    Time(Duration),
}

/// The share of the tokens that calibration has: 1.29 of 3.39 million in the runs of docs/performance.md.
const CALIBRATION: f64 = 0.38;

/// Sums of products a token, per weight, that take as long as a step does: what a run took, by what the device does in one
/// large product of matrices. A step computes fewer, but in smaller products. SmolLM2 on an H200 took 9.3 and 29.7, and the
/// fixture `shakespeare` on two cores that other work shared 17 and 33 (docs/training.md).
const CALIBRATING: f64 = 10.0;
const FINETUNING: f64 = 28.0;

/// Seconds of such a sum that a step takes however small the model is: on an H200 a calibration step of the fixture took 5.7 ms,
/// which is what beginning its kernels takes.
const LEAST: f64 = 0.6e-3;

/// Steps of the two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) calibrate: usize,
    pub(super) finetune: usize,
}

/// A model on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) weights: u64,
    /// Of [`super::speed`].
    pub(super) products_a_second: f64,
    /// Tokens of a step.
    pub(super) tokens: usize,
    /// Whether there is something to calibrate.
    pub(super) calibrates: bool,
}

impl Pace {
    fn step(&self, products: f64) -> f64 {
        let computed = self.weights as f64 * products * self.tokens as f64 / self.products_a_second;
        computed.max(products * LEAST)
    }

    /// The steps that a budget is enough for, one of each at least.
    pub(super) fn steps(&self, budget: Budget) -> Steps {
        let share = if self.calibrates { CALIBRATION } else { 0.0 };
        let (calibrate, finetune) = match budget {
            Budget::Tokens(tokens) => {
                let steps = tokens as f64 / self.tokens as f64;
                (steps * share, steps * (1.0 - share))
            }
            Budget::Time(time) => {
                // The same share of tokens, each at its own pace.
                let mean = share * self.step(CALIBRATING) + (1.0 - share) * self.step(FINETUNING);
                let steps = time.as_secs_f64() / mean;
                (steps * share, steps * (1.0 - share))
            }
        };
        let whole = |steps: f64| (steps.round() as usize).max(1);
        Steps { calibrate: if self.calibrates { whole(calibrate) } else { 0 }, finetune: whole(finetune) }
    }

    /// How long they take, about.
    pub(super) fn time(&self, steps: Steps) -> Duration {
        let seconds =
            steps.calibrate as f64 * self.step(CALIBRATING) + steps.finetune as f64 * self.step(FINETUNING);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// The steps of fine-tuning that what is left of a time is enough for, by what calibration took.
    pub(super) fn left(time: Duration, calibration: Duration, steps: usize) -> usize {
        let step = calibration.as_secs_f64() / steps.max(1) as f64 * (FINETUNING / CALIBRATING);
        ((time.saturating_sub(calibration).as_secs_f64() / step).round() as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { weights: 1_000_000, products_a_second: 1e11, tokens: 8192, calibrates: true };

    #[test]
    fn tokens_are_shared_as_in_the_runs_that_were_measured() {
        assert_eq!(PACE.steps(Budget::Tokens(3_390_000)), Steps { calibrate: 157, finetune: 257 });
        assert_eq!(PACE.steps(Budget::Tokens(1)), Steps { calibrate: 1, finetune: 1 });
        let alone = Pace { calibrates: false, ..PACE };
        assert_eq!(alone.steps(Budget::Tokens(819_200)), Steps { calibrate: 0, finetune: 100 });
    }

    #[test]
    fn a_time_is_what_its_steps_take() {
        for seconds in [60, 600, 6000] {
            let time = Duration::from_secs(seconds);
            let taken = PACE.time(PACE.steps(Budget::Time(time))).as_secs_f64();
            assert!((taken / time.as_secs_f64() - 1.0).abs() < 0.05, "{taken}");
        }
        let beyond = Pace { products_a_second: 1e-300, ..PACE };
        assert_eq!(beyond.time(Steps { calibrate: 1, finetune: 1 }), Duration::MAX);
    }

    #[test]
    fn a_step_of_a_small_model_takes_time_too() {
        let tiny = Pace { products_a_second: 1e15, ..PACE };
        assert_eq!(
            tiny.steps(Budget::Time(Duration::from_mins(1))),
            Steps { calibrate: 1796, finetune: 2930 }
        );
    }

    #[test]
    fn fine_tuning_has_the_time_that_calibration_left() {
        let of = |left: u64| Pace::left(Duration::from_secs(100 + left), Duration::from_secs(100), 100);
        // A step of it takes 2.8 seconds.
        assert_eq!(of(140), 50);
        assert_eq!(of(0), 1);
        assert_eq!(Pace::left(Duration::from_secs(1), Duration::from_secs(100), 100), 1);
    }
}
