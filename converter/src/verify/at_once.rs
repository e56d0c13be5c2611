//! The checks of a bundle that keeps nothing from call to call: every prompt is run at once.

use super::plain::Plain;
use super::table::Comparison;
use super::{EXACT, Verifier, VerifyError, forms_alike};
use dijiang_format::files;
use dijiang_runtime::RuntimeError;

impl Verifier<'_> {
    /// Parallel = chunked = served, padded = alone, runtime = runtime.
    pub(super) fn forms_at_once(&mut self) -> Result<(), VerifyError> {
        let portions = "token by token, split and the size of the state";
        self.skip(portions, "the model keeps no state between calls");
        self.skip_device("the model keeps no state between calls, and is checked on the CPU alone");
        let mut first: Option<Vec<f32>> = None;
        let came = if self.runtimes.is_empty() { None } else { Some(self.softmax_of(0)?) };
        for i in 0..self.runtimes.len() {
            self.stage(&format!("comparing the forms in {}", self.runtimes[i].name()));
            let tried = self.forms_at_once_in(i, first.as_deref());
            let Some(reference) = self.tolerate(i, "the forms", tried)? else { continue };
            if let Some((numbers, gives_logits)) =
                came.as_ref().filter(|_| first.is_none() && !self.is_softmax())
            {
                self.drift(&reference, numbers, *gives_logits);
            }
            first.get_or_insert(reference);
        }
        Ok(())
    }

    /// What the model gives with its softmax, and whether that is logits. Where it does not run, nothing that was made of it does.
    fn softmax_of(&self, runtime: usize) -> Result<(Vec<f32>, bool), VerifyError> {
        let rows = self.prompts.rows();
        let mut model = self.plain(runtime, files::SOFTMAX)?;
        let gives_logits = model.gives_logits();
        let mut given = Vec::new();
        for row in &rows {
            let numbers = model.row(row).map_err(|error| with_sizes(error, &model.words(row.len())))?;
            given.extend(numbers);
        }
        Ok((given, gives_logits))
    }

    /// Returns what the plain form gives.
    fn forms_at_once_in(&mut self, i: usize, first: Option<&[f32]>) -> Result<Vec<f32>, VerifyError> {
        let name = self.runtimes[i].name();
        let rows = self.prompts.rows();
        let (plain, chunked) = self.plain_forms();
        let reference = self.plain(i, plain)?.alone(&rows)?;
        if chunked != plain {
            let numbers = self.plain(i, chunked)?.alone(&rows)?;
            self.push(forms_alike(name, chunked, plain).logits(EXACT, &numbers, &reference));
        }
        if let Some(first) = first {
            self.push(self.runtimes_alike(i, plain).logits(EXACT, &reference, first));
        }
        match self.serves(i) {
            Ok(()) => {
                let mut model = self.plain(i, files::MODEL)?;
                let limit = self.served_limit();
                let served = model.alone(&rows)?;
                self.push(forms_alike(name, files::MODEL, plain).logits(limit, &served, &reference));
                self.paddings(name, &mut model, files::MODEL)?;
            }
            Err(reason) => {
                let stand_in = format!("{reason}; {chunked} stands for it");
                self.skip(format!("the serving graph in {name}"), stand_in);
                let mut model = self.plain(i, chunked)?;
                self.paddings(name, &mut model, chunked)?;
            }
        }
        Ok(reference)
    }

    /// At the left only where that moves no token to another position.
    fn paddings(&mut self, name: &str, model: &mut Plain, file: &str) -> Result<(), VerifyError> {
        let limit = if file == files::MODEL { self.served_limit() } else { EXACT };
        let padded = |side: &str| {
            Comparison::new(
                format!("{name}: padded {side} = alone"),
                format!("{file} in {name}, padded {side}"),
                format!("{file} in {name}, alone"),
            )
        };
        if !model.takes_padding() {
            self.skip(format!("padding in {name}"), "the graph takes no attention_mask");
            return Ok(());
        }
        if let Some(reason) = self.prompts.why_even() {
            self.skip(format!("padding in {name}"), reason);
            return Ok(());
        }
        let rows = self.prompts.rows();
        let alone = model.alone(&rows)?;
        let right = model.padded(&rows, false)?;
        self.push(padded("right").logits(limit, &right, &alone));
        if model.needs_right() {
            self.skip(format!("padding at the left in {name}"), "the graph counts positions from the left");
            return Ok(());
        }
        let left = model.padded(&rows, true)?;
        self.push(padded("left").logits(limit, &left, &alone));
        Ok(())
    }
}

/// Where a model does not run as it came, what it was given.
fn with_sizes(error: VerifyError, given: &str) -> VerifyError {
    let VerifyError::Runtime(RuntimeError::Run { runtime, reason, .. }) = error else { return error };
    let reason = format!(
        "the model does not run in {runtime} with {given}, as it came: {reason} (hint: sizes may have been fixed when it was exported; export it with open ones, or write it without a proof, with --no-verify)"
    );
    VerifyError::Model { file: files::SOFTMAX.to_owned(), reason }
}
