//! Whether there is an ONNX Runtime, for tests that run in it.
#![expect(clippy::print_stderr, reason = "it says why a test is left out")]

use dijiang_runtime::OrtRuntime;

/// It may be missing, with a word, unless `DIJIANG_REQUIRE_ORT` is set.
pub(crate) fn has_ort() -> bool {
    match OrtRuntime::new() {
        Ok(_) => true,
        Err(error) if std::env::var_os("DIJIANG_REQUIRE_ORT").is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("left out: {error}");
            false
        }
    }
}
