//! Manifests that a test changes, with the digest of themselves that they would have then.

use dijiang_format::seal::{UNSEALED, seal};
use serde_json::Value;

pub(crate) fn sealed(mut manifest: Value) -> Vec<u8> {
    manifest["manifest_sha256"] = UNSEALED.into();
    let mut text = manifest.to_string().into_bytes();
    seal(&mut text, "manifest_sha256");
    text
}
