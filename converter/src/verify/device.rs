//! What `generate` runs, on the device that it will run on, against the plain form on the CPU.

use super::{Verifier, VerifyError};

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
        let names = [on.as_str(), name];
        self.as_generated(device, names, plain, reference)?;
        self.bound_graphs(device, names, plain, reference)
    }

    /// Says that a device was named for nothing, where nothing runs there.
    pub(super) fn skip_device(&mut self, reason: &str) {
        if let Some(device) = self.device {
            self.skip(format!("everything on {device}"), reason);
        }
    }
}
