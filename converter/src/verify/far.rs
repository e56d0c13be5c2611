//! A text that is longer than every window: where a ring is full, its first slots are written again.

use super::run::Model;
use super::table::Comparison;
use super::{ORT, Verifier, VerifyError};
use dijiang_format::files;
use dijiang_format::recipe::Local;

/// The most slots of a ring that a proof fills.
const MOST: usize = 512;

impl Verifier<'_> {
    /// The serving graph against the plain form beyond the longest window, all at once and in two calls; nothing to do where
    /// the other prompts are beyond it.
    pub(super) fn beyond_windows(&mut self, runtime: usize, model: &mut Model) -> Result<(), VerifyError> {
        let name = self.runtimes[runtime].name();
        let Some(slots) = self.longest_ring().filter(|slots| *slots >= self.prompts.longest().len()) else {
            return Ok(());
        };
        let what = format!(
            "{name}: served = {} beyond a window of {slots} slots",
            super::word(self.plain_forms().0)
        );
        if name != ORT {
            return Ok(());
        }
        let Some(row) = self.prompts.beyond(slots).filter(|_| slots <= MOST) else {
            self.skip(
                what,
                "a prompt that is longer than the window would take too long, or has too many positions",
            );
            return Ok(());
        };
        self.stage("feeding more tokens than a window holds");
        let (plain, _) = self.plain_forms();
        let reference = self.model(runtime, plain)?.row(&row)?;
        let limit = self.served_limit();
        let whole = model.row(&row)?;
        let parts = model.in_portions(&row, &[slots - 1, row.len() + 1 - slots])?;
        for (how, logits) in [("", whole), (" in two calls", parts)] {
            let [served, plain] = [files::MODEL, plain].map(|file| format!("{file} in {name}"));
            let comparison = Comparison::new(format!("{what}{how}"), served, plain);
            self.push(comparison.logits(limit, &logits, &reference));
        }
        Ok(())
    }

    /// The slots of the longest ring of the bundle.
    fn longest_ring(&self) -> Option<usize> {
        let recipe = &self.manifest.recipe;
        let lowered = self.manifest.sites.iter().filter(|site| site.lowered);
        lowered
            .filter_map(|site| recipe.at(site.layer, true).local.as_ref().map(Local::slots))
            .max()
            .map(|n| n as usize)
    }
}
