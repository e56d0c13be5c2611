//! What `generate` runs, on the device that it will run on, against the plain form on the CPU.

use super::decoding::{AS_GENERATED, BOUND};
use super::{Verifier, VerifyError};
use dijiang_format::files;

impl Verifier<'_> {
    /// Nothing where no device was named. `reference` holds the logits that the form `plain` gives in ONNX Runtime on the CPU.
    pub(super) fn on_device(
        &mut self,
        name: &str,
        plain: &str,
        reference: &[f32],
    ) -> Result<(), VerifyError> {
        let Some(device) = self.device else { return Ok(()) };
        let on = format!("{name} on {device}");
        self.stage(&format!("decoding in {on}"));
        let names = [on.as_str(), name];
        self.as_generated(&AS_GENERATED.on(device), names, plain, reference)?;
        if !self.has_bound_graphs() {
            return Ok(());
        }
        match [files::PREFILL, files::DECODE].iter().find(|file| !self.is_there(file)) {
            Some(missing) => self.skip(format!("bound memory in {on}"), format!("{missing} is missing")),
            None => self.bound(&BOUND.on(device), names, plain, reference)?,
        }
        Ok(())
    }

    /// Says that a device was named for nothing, where nothing runs there.
    pub(super) fn skip_device(&mut self, reason: &str) {
        if let Some(device) = self.device {
            self.skip(format!("everything on {device}"), reason);
        }
    }
}
