//! A file that holds the digest of itself, so that no byte of it changes unnoticed: SHA-256 in hexadecimal, of the file
//! with zeros in place of the digest.

use crate::digest::{Hasher, digest};

/// What stands in a file until it is sealed.
pub const UNSEALED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Puts the digest into the bytes of a file that has [`UNSEALED`] at the beginning of the string of that key.
pub fn seal(file: &mut [u8], key: &str) {
    if let Some(at) = place(file, key) {
        let own = digest(file);
        file[at..at + UNSEALED.len()].copy_from_slice(own.as_bytes());
    }
}

/// Whether the file is what was sealed. `None` where it has no such key.
pub fn holds(file: &[u8], key: &str) -> Option<bool> {
    let at = place(file, key)?;
    let end = at + UNSEALED.len();
    let Some(found) = file.get(at..end) else { return Some(false) };
    let mut hasher = Hasher::default();
    [&file[..at], UNSEALED.as_bytes(), &file[end..]].into_iter().for_each(|part| hasher.update(part));
    Some(hasher.finish().as_bytes() == found)
}

/// Where the string of a key begins. A quote inside a string has a backslash before it, so this is a key of JSON.
fn place(file: &[u8], key: &str) -> Option<usize> {
    [format!("\"{key}\":\""), format!("\"{key}\": \"")].iter().find_map(|head| {
        let at = file.windows(head.len()).position(|window| window == head.as_bytes())?;
        Some(at + head.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_and_every_cut_byte_breaks_the_seal() {
        let mut file = format!("{{\"a\": 1, \"own\": \"{UNSEALED}\", \"b\": \"own\"}}").into_bytes();
        assert_eq!(holds(&file, "own"), Some(false), "it is not sealed yet");
        seal(&mut file, "own");
        assert_eq!(holds(&file, "own"), Some(true));
        assert_eq!(holds(&file, "other"), None);
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert_ne!(holds(&changed, "own"), Some(true), "{at}");
            assert_ne!(holds(&file[..at], "own"), Some(true), "{at}");
        }
    }

    #[test]
    fn a_key_inside_a_string_is_none() {
        assert_eq!(holds(br#"{"a": "\"own\": \"00"}"#, "own"), None);
    }
}
