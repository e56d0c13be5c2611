//! Chooses the next token from a row of logits.

use crate::decode::greedy::greedy;
use crate::session::error::RuntimeError;

/// Chooses tokens greedily or at random, the same for the same seed on every machine.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    top_p: f32,
    random: SplitMix64,
}

impl Sampler {
    /// `temperature` 0 always takes the likeliest token; above, logits are divided by it. `top_p` keeps the likeliest
    /// tokens until their probabilities add up to it; 1 keeps all.
    ///
    /// An error when `temperature` is negative or not a number, or `top_p` is not in (0, 1].
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Result<Self, RuntimeError> {
        let bad = |place, reason| Err(RuntimeError::BadCall { place, reason });
        if !temperature.is_finite() || temperature < 0.0 {
            return bad("temperature", format!("it is {temperature}, expected 0 or more"));
        }
        // Written so that NaN is refused too.
        if !(top_p > 0.0 && top_p <= 1.0) {
            return bad("top_p", format!("it is {top_p}, expected more than 0 and at most 1"));
        }
        Ok(Self { temperature, top_p, random: SplitMix64(seed) })
    }

    /// The next token id of one row of logits; ties go to the lowest id.
    ///
    /// An error when the row is empty or holds NaN or positive infinity, or nothing but negative infinity.
    pub fn pick(&mut self, logits: &[f32]) -> Result<usize, RuntimeError> {
        let best = greedy(logits)?;
        if self.temperature == 0.0 {
            return Ok(best);
        }
        let candidates = self.candidates(logits, logits[best]);
        let total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
        let mut left = self.random.unit() * total;
        for &(id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Ok(id);
            }
        }
        // Rounding may leave a crumb of the total after the last candidate.
        Ok(candidates.last().map_or(best, |&(id, _)| id))
    }

    /// Token ids and unnormalised probabilities, likeliest first, cut at `top_p`; never empty.
    fn candidates(&self, logits: &[f32], highest: f32) -> Vec<(usize, f64)> {
        let weight =
            |&logit: &f32| ((f64::from(logit) - f64::from(highest)) / f64::from(self.temperature)).exp();
        let mut weights: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let wanted = f64::from(self.top_p) * weights.iter().map(|&(_, weight)| weight).sum::<f64>();
        let mut reached = 0.0;
        let short = |&&(_, weight): &&(usize, f64)| {
            let keep = reached < wanted;
            reached += weight;
            keep
        };
        let kept = weights.iter().take_while(short).count();
        weights.truncate(kept.max(1));
        weights
    }
}

/// Steele, Lea and Flood's generator: one multiplication chain, every seed good.
// Its twin is `random.rs` of the passes, on which this crate must not depend: dependencies run one way.
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), from the 53 bits that an f64 holds exactly.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_an_error() {
        for row in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY], &[]] {
            assert!(greedy(row).is_err(), "{row:?}");
            assert!(Sampler::new(1.0, 0.9, 0).unwrap().pick(row).is_err(), "{row:?}");
        }
        let message = greedy(&[0.0, f32::NAN]).unwrap_err().to_string();
        assert!(message.starts_with("logits hold NaN at token id 1; "), "{message}");
    }

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix64(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn samples_follow_the_softmax() {
        let mut sampler = Sampler::new(2.0, 1.0, 7).unwrap();
        let logits = [2.0 * 0.6_f32.ln(), 2.0 * 0.3_f32.ln(), 2.0 * 0.1_f32.ln()];
        let mut counts = [0_i32; 3];
        for _ in 0..10_000 {
            counts[sampler.pick(&logits).unwrap()] += 1;
        }
        // Three standard deviations of a binomial count are at most 150.
        for (count, expected) in counts.into_iter().zip([6000, 3000, 1000]) {
            assert!((count - expected).abs() < 150, "{counts:?}");
        }
    }

    #[test]
    fn top_p_cuts_the_tail_and_keeps_one() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let kept = |top_p| Sampler::new(1.0, top_p, 0).unwrap().candidates(&logits, logits[0]).len();
        assert_eq!([kept(0.01), kept(0.6), kept(0.9), kept(1.0)], [1, 2, 3, 3]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(0.8, 0.95, seed).unwrap();
            (0..20).map(|_| sampler.pick(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn bad_settings_are_refused() {
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, f32::NAN)] {
            assert!(Sampler::new(temperature, top_p, 0).is_err());
        }
    }
}
