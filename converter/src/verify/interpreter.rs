//! The f64 interpreter, which rounds nothing: the serving graph against the first runtime on a short prompt, or against
//! another form of the model.

use super::oracle::{self, Rounding, Tables};
use super::table::Comparison;
use super::{EXACT, Verifier, VerifyError, read_back, word};
use dijiang_format::files;

const NAME: &str = "f64 interpreter";

impl Verifier<'_> {
    pub(super) fn interpreter(&mut self) -> Result<(), VerifyError> {
        self.stage("evaluating in f64");
        let row = self.prompts.short();
        let path = self.bundle.join(files::MODEL);
        let served = read_back(&path)?;
        let exact = match oracle::evaluate(&served, &path, &row, Rounding::Nothing)? {
            Ok(exact) => exact,
            Err(unknown) => {
                self.skip(format!("the {NAME}"), unknown);
                return Ok(());
            }
        };
        let (plain, stateful) = self.plain_forms();
        let tables = Tables::of(&served);
        let rounding = tables.as_ref().map_or(Rounding::Nothing, Rounding::Turns);
        if self.runtimes.is_empty() {
            return self.served_exactly(plain, rounding, &exact);
        }
        if self.serves(0).is_ok() {
            let limit = self.served_limit();
            return self.against_interpreter(files::MODEL, files::MODEL, limit, &exact);
        }
        // The form that stands for the serving graph computes what that reads from tables.
        if tables.is_none() {
            return self.against_interpreter(stateful, files::MODEL, EXACT, &exact);
        }
        self.served_exactly(stateful, rounding, &exact)?;
        match oracle::logits(&self.bundle.join(stateful), &row, Rounding::Nothing)? {
            Ok(exact) => self.against_interpreter(stateful, stateful, EXACT, &exact),
            Err(unknown) => {
                self.skip(format!("{stateful} in the {NAME}"), unknown);
                Ok(())
            }
        }
    }

    /// The serving graph against another form, both in the interpreter.
    fn served_exactly(
        &mut self,
        form: &str,
        rounding: Rounding<'_>,
        served: &[f32],
    ) -> Result<(), VerifyError> {
        let comparison = Comparison::new(
            format!("{NAME}: {} = {}", word(files::MODEL), word(form)),
            format!("{} in the {NAME}", files::MODEL),
            format!("{form} in the {NAME}"),
        );
        let form = oracle::logits(&self.bundle.join(form), &self.prompts.short(), rounding)?;
        self.push(match form {
            Ok(form) => comparison.logits(EXACT, served, &form),
            Err(unknown) => comparison.skipped(unknown),
        });
        Ok(())
    }

    /// A graph in the first runtime, against what the interpreter makes of `of`.
    fn against_interpreter(
        &mut self,
        file: &str,
        of: &str,
        limit: f64,
        exact: &[f32],
    ) -> Result<(), VerifyError> {
        let row = self.prompts.short();
        let measured = match self.stateless {
            true => self.plain(0, file)?.row(&row)?,
            false => self.model(0, file)?.row(&row)?,
        };
        let name = self.runtimes[0].name();
        let comparison = Comparison::new(
            format!("{name} = {NAME}"),
            format!("{file} in {name}"),
            format!("{of} in the {NAME}"),
        );
        self.push(comparison.logits(limit, &measured, exact));
        Ok(())
    }
}
