//! What long work shows on a terminal: what it will take, then stages, bytes, their rate and the time left.

use super::show;
use crate::bundle::room;
use crate::report::progress::{Estimate, Progress, Say};
use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// What is shown of a stage that counts bytes.
const BYTES: &str =
    "{spinner} {msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";

/// What is shown of a stage that counts steps.
const ITEMS: &str = "{spinner} {msg} {wide_bar} {pos}/{len} {eta} left";

fn needs(estimate: &Estimate) -> String {
    let Estimate { disk, memory } = estimate;
    format!("up to {} of disk and about {} of memory are needed", DecimalBytes(*disk), DecimalBytes(*memory))
}

/// What is said where less memory is free than will be needed.
fn shortage(estimate: &Estimate, free: Option<u64>) -> Option<String> {
    let free = free.filter(|free| *free < estimate.memory)?;
    Some(format!(
        "about {} of memory are needed, and {} are free (hint: --no-verify takes far less)",
        DecimalBytes(estimate.memory),
        DecimalBytes(free)
    ))
}

/// Where bars are drawn.
pub(super) fn target() -> ProgressDrawTarget {
    match show::is_quiet() {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr_with_hz(8),
    }
}

/// How often a line says how far it is where no bar can be drawn, as in a log.
const SILENCE: Duration = Duration::from_mins(1);

/// Lines in the place of a bar.
#[derive(Debug)]
pub(super) struct Lines {
    /// When the last one was written, where any is.
    last: Option<Instant>,
}

impl Lines {
    /// Only where stderr is no terminal, and the call is not quiet.
    pub(super) fn new() -> Self {
        Self { last: (!show::is_quiet() && !std::io::stderr().is_terminal()).then(Instant::now) }
    }

    const NONE: Self = Self { last: None };

    /// Writes a line, if none was written for long.
    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.is_due(Instant::now()) {
            show::note(&line());
            self.last = Some(Instant::now());
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) >= SILENCE)
    }
}

/// A bar on stderr, which appears once something takes long.
#[derive(Debug)]
pub(super) struct Bar {
    drawn: ProgressBar,
    lines: Lines,
}

impl Bar {
    /// Where stderr is no terminal, a line now and then takes its place. Where the call is quiet, nothing does.
    pub(super) fn new() -> Self {
        Self { lines: Lines::new(), ..Self::on(target()) }
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(None, target);
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { drawn: bar, lines: Lines::NONE }
    }

    fn tell(&mut self) {
        let drawn = &self.drawn;
        self.lines.tell(|| {
            let far = |of: u64| format!(" ({} %)", drawn.position() * 100 / of.max(1));
            format!("{}{}", drawn.message(), drawn.length().map_or_else(String::new, far))
        });
    }

    fn begin(&mut self, what: &str, total: u64, template: &str) {
        tracing::info!("{what}");
        self.drawn.set_length(total);
        self.drawn.set_position(0);
        self.drawn.reset_eta();
        self.style(template);
        self.drawn.set_message(what.to_owned());
        self.tell();
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.drawn.set_style(style);
        }
    }
}

impl Progress for Bar {
    fn estimate(&mut self, estimate: &Estimate) {
        let line = needs(estimate);
        tracing::info!("{line}");
        self.drawn.println(line);
        if let Some(short) = shortage(estimate, room::free_memory()) {
            self.drawn.suspend(|| show::warning(&short));
        }
    }

    fn stage(&mut self, what: &str) {
        tracing::info!("{what}");
        self.drawn.unset_length();
        self.style("{spinner} {msg} ({elapsed})");
        self.drawn.set_message(what.to_owned());
        self.tell();
    }

    fn bytes(&mut self, what: &str, total: u64) {
        self.begin(what, total, BYTES);
    }

    fn items(&mut self, what: &str, total: u64) {
        self.begin(what, total, ITEMS);
    }

    fn advance(&mut self, more: u64) {
        self.drawn.inc(more);
        self.tell();
    }

    fn say(&mut self, what: Say, line: &str) {
        self.drawn.suspend(|| match what {
            Say::Note => show::note(line),
            Say::Warning => show::warning(line),
            Say::Error => show::error(line),
        });
    }

    fn done(&mut self) {
        self.drawn.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::io;
    use std::sync::{Arc, Mutex};

    /// Keeps all that is drawn, in order.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn bar(&self) -> Bar {
            Bar::on(ProgressDrawTarget::term_like(Box::new(self.clone())))
        }

        fn drawn(&self) -> String {
            self.0.lock().expect("nothing panicked").clone()
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().expect("nothing panicked").push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_are_shown_with_their_rate_and_the_time_left() {
        let screen = Screen::default();
        let mut bar = screen.bar();
        bar.stage("reading the source");
        assert!(screen.drawn().contains("reading the source (0s)"), "{}", screen.drawn());
        bar.bytes("writing the weights", 4_000_000_000);
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(50));
            bar.advance(1_000_000);
        }
        // It is drawn anew four times a second.
        let waits = 200;
        for _ in 0..waits {
            if screen.drawn().contains("4.00 MB/") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let drawn = screen.drawn();
        let last = drawn.rsplit("writing the weights").next().expect("a part");
        assert!(last.contains(" 4.00 MB/4.00 GB "), "{last}");
        // 1 MB in 50 ms, or longer on a busy machine: some MB/s, and for 4 GB minutes or hours.
        assert!(last.contains("MB/s ") || last.contains("kB/s "), "{last}");
        let left = last.trim_end().strip_suffix(" left").and_then(|text| text.split(' ').next_back());
        assert!(left.is_some_and(|left| left.ends_with(['m', 'h'])), "{last}");
    }

    #[test]
    fn a_log_hears_once_in_a_while() {
        let begun = Instant::now();
        let lines = Lines { last: Some(begun) };
        assert!(!lines.is_due(begun + SILENCE / 2) && lines.is_due(begun + SILENCE));
        assert!(!Lines::NONE.is_due(begun + 2 * SILENCE), "a bar is drawn");
    }

    #[test]
    fn what_will_be_needed_is_told_first() {
        let screen = Screen::default();
        let mut bar = screen.bar();
        bar.estimate(&Estimate { disk: 2_260_000_000, memory: 140_000_000 });
        let line = "up to 2.26 GB of disk and about 140.00 MB of memory are needed";
        assert!(screen.drawn().contains(line), "{}", screen.drawn());
    }

    #[test]
    fn too_little_memory_is_told() {
        let estimate = Estimate { disk: 1, memory: 18_000_000_000 };
        assert_eq!(
            shortage(&estimate, Some(9_000_000_000)).as_deref(),
            Some(
                "about 18.00 GB of memory are needed, and 9.00 GB are free (hint: --no-verify takes far less)"
            )
        );
        assert_eq!(shortage(&estimate, Some(18_000_000_000)), None);
        assert_eq!(shortage(&estimate, None), None);
    }
}
