//! Names and reasons of a foreign file, made fit for one line.

const MAX_NAME: usize = 120;
const MAX_LINE: usize = 1000;
const MAX_TOLD: usize = 20_000;

/// A name as messages show it: control characters escaped, and not longer than a line can hold.
pub(crate) fn shown(name: &str) -> String {
    clipped(&escaped(name, MAX_NAME), MAX_NAME)
}

/// A message on one line, however the names in it are spelled.
pub(crate) fn one_line(message: &str) -> String {
    clipped(&escaped(message, MAX_LINE), MAX_LINE)
}

/// A line for a terminal, whatever a path or a library put into it: the paths of a file system fit whole.
pub(crate) fn told(line: &str) -> String {
    clipped(&escaped(&line.replace('\n', " "), MAX_TOLD), MAX_TOLD)
}

/// A number as a person reads it.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    match value {
        _ if value.fract() == 0.0 && size < 1e15 => format!("{value}"),
        _ if (1e-3..1e6).contains(&size) => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

fn escaped(text: &str, most: usize) -> String {
    let mut line = String::new();
    for c in text.chars().take(most + 1) {
        if c.is_control() || c == '\u{2028}' || c == '\u{2029}' {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 12.0, 1.5e9, 0.123_456, 1.5e-7, f64::NAN, f64::INFINITY].map(number);
        assert_eq!(shown, ["0", "12", "1500000000", "0.1235", "1.50e-7", "NaN", "inf"]);
    }

    #[test]
    fn long_names_are_cut_and_lines_stay_one() {
        assert_eq!(shown("a\nb\0"), "a\\nb\\u{0}");
        assert_eq!(shown(&"ä".repeat(500)), format!("{}…", "ä".repeat(MAX_NAME)));
        assert_eq!(one_line("an error"), "an error");
        assert_eq!(told("a\nb\r\u{1b}[31m\u{2028}"), "a b\\r\\u{1b}[31m\\u{2028}");
        assert_eq!(told(&"a".repeat(4096)), "a".repeat(4096));
    }
}
