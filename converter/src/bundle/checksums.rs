//! `SHA256SUMS`: the digests of a bundle's files in the format of `sha256sum`.

use dijiang_format::digest::digest;
use dijiang_format::files;
use dijiang_format::manifest::Manifest;

/// The text for a bundle whose manifest is that text.
pub fn checksums(manifest: &Manifest, text: &str) -> String {
    let own = (files::MANIFEST, digest(text.as_bytes()));
    let listed = manifest.files.iter().filter_map(|file| Some((file.name.as_str(), file.sha256.clone()?)));
    let mut all: Vec<(&str, String)> = listed.chain([own]).collect();
    all.sort();
    all.iter().map(|(name, digest)| line(name, digest)).collect()
}

/// As `sha256sum` writes it: what would break the line is escaped, which a backslash before the line tells.
fn line(name: &str, digest: &str) -> String {
    let escaped = name.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
    let mark = if escaped == name { "" } else { "\\" };
    format!("{mark}{digest}  {escaped}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_break_a_line_are_escaped() {
        assert_eq!(line("a b", "00"), "00  a b\n");
        assert_eq!(line("a\nb\\c", "00"), "\\00  a\\nb\\\\c\n");
    }
}
