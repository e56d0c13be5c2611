//! The forms of a model that keeps a state: one against the other, and one graph fed in different portions.

use super::run::Model;
use super::table::{Comparison, Measure};
use super::{EXACT, ORT, Verifier, VerifyError, forms_alike};
use dijiang_format::files;
use dijiang_format::serving::Device;

impl Verifier<'_> {
    /// Parallel = chunked = served, all at once = token by token = split = padded, runtime = runtime.
    pub(super) fn forms(&mut self) -> Result<(), VerifyError> {
        let mut first: Option<Vec<f32>> = None;
        for i in 0..self.runtimes.len() {
            self.stage(&format!("comparing the forms in {}", self.runtimes[i].name()));
            let tried = self.forms_in(i, first.as_deref());
            let Some(reference) = self.tolerate(i, "the forms", tried)? else { continue };
            if first.is_none() && !self.is_softmax() {
                match self.is_exact() {
                    true => self.as_it_came(i, &reference)?,
                    false => self.drift_in(i, &reference)?,
                }
            }
            first.get_or_insert(reference);
        }
        Ok(())
    }

    /// What is rewritten without a change of what it computes gives what the source gives.
    fn as_it_came(&mut self, i: usize, reference: &[f32]) -> Result<(), VerifyError> {
        let (plain, _) = self.plain_forms();
        let mut softmax = self.plain(i, files::SOFTMAX)?;
        let left = !softmax.needs_right();
        let logits = softmax.padded(&self.prompts.rows(), left)?;
        let name = self.runtimes[i].name();
        self.push(forms_alike(name, plain, files::SOFTMAX).logits(EXACT, reference, &logits));
        Ok(())
    }

    /// Returns what the plain form gives.
    fn forms_in(&mut self, i: usize, first: Option<&[f32]>) -> Result<Vec<f32>, VerifyError> {
        let name = self.runtimes[i].name();
        let (plain, stateful) = self.plain_forms();
        let prompts = self.prompts.clone();
        let reference = self.model(i, plain)?.whole(&prompts)?;
        if stateful != plain {
            let chunked = self.model(i, stateful)?.whole(&prompts)?;
            self.push(forms_alike(name, stateful, plain).logits(EXACT, &chunked, &reference));
        }
        if let Some(first) = first {
            self.push(self.runtimes_alike(i, plain).logits(EXACT, &reference, first));
        }
        match self.serves(i) {
            Ok(()) => {
                let mut model = self.model(i, files::MODEL)?;
                let served = model.whole(&prompts)?;
                let limit = self.served_limit();
                self.push(forms_alike(name, files::MODEL, plain).logits(limit, &served, &reference));
                self.stepwise(i, &mut model, files::MODEL)?;
                self.beyond_windows(i, &mut model)?;
                if name == ORT {
                    self.as_generated(Device::Cpu, [name; 2], plain, &reference)?;
                    self.bound_graphs(Device::Cpu, [name; 2], plain, &reference)?;
                }
            }
            Err(reason) => {
                let stand_in = format!("{reason}; {stateful} stands for it");
                self.skip(format!("the serving graph in {name}"), stand_in);
                if name == ORT {
                    self.skip_bound_graphs(name, reason);
                }
                let mut model = self.model(i, stateful)?;
                self.stepwise(i, &mut model, stateful)?;
            }
        }
        if name == ORT {
            self.on_device(name, plain, &reference)?;
        }
        Ok(reference)
    }

    /// One graph in this runtime and in the first.
    pub(super) fn runtimes_alike(&self, i: usize, file: &str) -> Comparison {
        let [own, first] = [i, 0].map(|i| self.runtimes[i].name());
        Comparison::new(format!("{own} = {first}"), format!("{file} in {own}"), format!("{file} in {first}"))
    }

    /// One graph fed in other portions: token by token, split, and with rows padded to the same length.
    /// A second runtime does a few tokens only: that its forms agree with the first one's is known by now.
    fn stepwise(&mut self, runtime: usize, model: &mut Model, file: &str) -> Result<(), VerifyError> {
        let name = self.runtimes[runtime].name();
        let limit = if file == files::MODEL { self.served_limit() } else { EXACT };
        let fed = |how: &str, otherwise: &str| {
            Comparison::new(
                format!("{name}: {how} = {otherwise}"),
                format!("{file} in {name}, {how}"),
                format!("{file} in {name}, {otherwise}"),
            )
        };
        self.stage(&format!("feeding token by token in {name}"));
        let row = if runtime == 0 { self.prompts.longest() } else { self.prompts.short() };
        let whole = model.row(&row)?;
        let steps = model.in_portions(&row, &vec![1; row.len()])?;
        self.push(fed("token by token", "all at once").logits(limit, &steps, &whole));
        self.constant_state(name, &row, model, file)?;
        if runtime > 0 {
            return Ok(());
        }
        for cut in self.prompts.splits() {
            let parts = model.in_portions(&row, &[cut, row.len() - cut])?;
            self.push(fed(&format!("split at {cut}"), "all at once").logits(limit, &parts, &whole));
        }
        if let Some(reason) = self.prompts.why_even() {
            self.skip(format!("padding in {name}"), reason);
            return Ok(());
        }
        let alone = self.prompts.rows().iter().map(|r| model.row(r)).collect::<Result<Vec<_>, _>>()?.concat();
        if !model.sides().contains(&true) {
            self.skip(
                format!("{name}: padded left = alone"),
                "the serving graph counts the tokens of a row from its beginning, and is wrong for rows that are padded there (hint: convert the model anew)",
            );
        }
        for &left in model.sides() {
            let padded = model.padded(&self.prompts.rows(), left)?;
            let side = if left { "padded left" } else { "padded right" };
            self.push(fed(side, "alone").logits(limit, &padded, &alone));
        }
        Ok(())
    }

    /// A model without softmax layers holds as much after many tokens as after one.
    fn constant_state(
        &mut self,
        name: &str,
        row: &[i64],
        model: &mut Model,
        file: &str,
    ) -> Result<(), VerifyError> {
        if model.grows() {
            return Ok(());
        }
        let bytes = model.state_bytes();
        model.row(&row[..1])?;
        let grown = bytes.abs_diff(model.state_bytes()) as f64;
        let tokens = row.len();
        let comparison = Comparison::new(
            format!("{name}: state bytes after {tokens} tokens less those after 1"),
            format!("{file} in {name}, {tokens} tokens"),
            format!("{file} in {name}, 1 token"),
        );
        self.push(comparison.by(Measure::Count).within(grown, 0.0));
        Ok(())
    }
}
