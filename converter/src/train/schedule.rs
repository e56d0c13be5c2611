//! The learning rate over a run.

/// How the rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Half a cosine down to a tenth (Loshchilov and Hutter 2017)
    Cosine,
    /// A straight line down to zero
    Linear,
    /// As it is
    Constant,
}

/// A warm-up in a straight line, then a shape.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub shape: Shape,
    pub rate: f64,
    pub warm_up: usize,
    pub steps: usize,
}

/// What is left of the rate at the end of a cosine.
const FLOOR: f64 = 0.1;

impl Schedule {
    /// The rate of a step, the first of which is 1.
    pub fn rate(&self, step: usize) -> f64 {
        if step <= self.warm_up {
            return self.rate * step as f64 / self.warm_up as f64;
        }
        let rest = self.steps.saturating_sub(self.warm_up).max(1);
        let gone = ((step - self.warm_up) as f64 / rest as f64).min(1.0);
        self.rate
            * match self.shape {
                Shape::Cosine => FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (std::f64::consts::PI * gone).cos()),
                Shape::Linear => 1.0 - gone,
                Shape::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_and_falls() {
        let with = |shape| Schedule { shape, rate: 2.0, warm_up: 4, steps: 20 };
        let at = |shape, step| with(shape).rate(step);
        assert_eq!([1, 2, 4].map(|s| at(Shape::Cosine, s)), [0.5, 1.0, 2.0]);
        assert!((at(Shape::Cosine, 12) - 1.1).abs() < 1e-12);
        assert!((at(Shape::Cosine, 20) - 0.2).abs() < 1e-12);
        assert_eq!([4, 12, 20].map(|s| at(Shape::Linear, s)), [2.0, 1.0, 0.0]);
        assert_eq!(at(Shape::Constant, 20), 2.0);
        assert_eq!(Schedule { warm_up: 0, ..with(Shape::Constant) }.rate(1), 2.0);
    }
}
