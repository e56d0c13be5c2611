//! What the commands print.

use crate::report::message;
use crate::verify::Verification;
use anstyle::{AnsiColor, Style};
use dijiang_passes::attention::patterns::NearMiss;
use dijiang_passes::attention::rewrite::SiteReport;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether nothing but errors goes to stderr.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether all is told that there is.
static VERBOSE: AtomicBool = AtomicBool::new(false);

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

pub(super) fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

pub(super) fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// One line on stderr.
pub(super) fn error(message: &str) {
    write(&format!("{ERROR}error:{ERROR:#} {}", message::told(message)));
}

/// Something that is likely wrong, on stderr.
pub(super) fn warning(message: &str) {
    if !is_quiet() {
        write(&format!("{WARNING}warning:{WARNING:#} {}", message::told(message)));
    }
}

/// A remark on stderr.
pub(super) fn note(message: &str) {
    if !is_quiet() {
        told(message);
    }
}

/// What is said whether or not the call is quiet.
pub(super) fn told(message: &str) {
    write(&message::told(message));
}

/// Colours are left out where stderr is no terminal, or `NO_COLOR` is set.
fn write(line: &str) {
    // Where stderr is closed, nobody is there to be told.
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// A line of the result. Where nobody reads on, the work goes on, and the exit code tells how it ended.
pub(super) fn line(text: &str) {
    put(&format!("{text}\n"), || ());
}

/// A whole text of several lines. Where nobody reads on, the work goes on too.
pub(super) fn text(text: &str) {
    put(text, || ());
}

/// Text as it comes, without a line's end. A reader that went away, as `head` does, has all it wants.
pub(super) fn stream(text: &str) {
    put(text, || std::process::exit(0));
}

fn put(text: &str, on_closed: fn()) {
    let mut out = std::io::stdout().lock();
    let Err(failure) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else { return };
    if failure.kind() == ErrorKind::BrokenPipe {
        return on_closed();
    }
    error(&format!("stdout: {failure}"));
    std::process::exit(2);
}

/// The one object of `--json`.
pub(super) fn object(value: &Value) {
    line(&value.to_string());
}

/// What the numbers of the table are.
const NUMBERS: &str = "checks (numbers are relative differences of logits, unless the row says otherwise)";

/// The checks in a line, with what was skipped in another; as a table where one failed, or the call is verbose.
pub(super) fn proof(found: &Verification) {
    if !found.ok || VERBOSE.load(Ordering::Relaxed) {
        return verification(found);
    }
    line(&format!("proof: {} (-v lists them)", found.summary()));
    if let Some(skipped) = found.skipped_by_reason() {
        line(&format!("  {skipped}"));
    }
}

/// The checks as a table, and a line of those that were skipped.
pub(super) fn verification(found: &Verification) {
    let made: Vec<[String; 3]> = found
        .checks
        .iter()
        .filter(|check| !check.is_skipped())
        .map(|check| [check.label(), check.number(), check.verdict()])
        .collect();
    let width = made.iter().map(|[label, ..]| label.len()).max().unwrap_or(0).min(WIDEST);
    line(NUMBERS);
    for [label, number, verdict] in made {
        line(&format!("  {label:width$}  {number:>9}  {verdict}"));
    }
    if let Some(skipped) = found.skipped_by_reason() {
        line(&format!("  {skipped}"));
    }
}

/// The widest first column; a longer label moves its own row only.
const WIDEST: usize = 72;

/// The checks as JSON: `[{name, subject, reference, measure, measured, limit, ok, status, reason}]`.
pub(super) fn checks(found: &Verification) -> Value {
    json!(found.checks)
}

pub(super) fn sites(sites: &[SiteReport]) -> Value {
    let one = |s: &SiteReport| {
        json!({
            "name": s.name, "layer": s.layer, "heads": s.heads, "kv_heads": s.kv_heads, "head_dim": s.head_dim,
            "scale": s.scale, "mask": s.mask, "window": s.window, "rotary": s.rotary, "cache": s.cache,
            "kept": s.why_kept,
        })
    };
    sites.iter().map(one).collect()
}

pub(super) fn misses(misses: &[NearMiss]) -> Value {
    let one = |m: &NearMiss| {
        json!({
            "node": m.node, "pattern": m.pattern, "stage": m.miss.stage.to_string(), "reason": m.miss.reason,
            "place": m.miss.place, "matched": m.miss.matched, "attention": m.is_attention,
        })
    };
    misses.iter().map(one).collect()
}

pub(super) fn site_table(sites: &[SiteReport]) {
    let width = sites.iter().map(|s| s.name.len()).max().unwrap_or(0).max("site".len());
    let windows = sites.iter().any(|s| s.window.is_some());
    line(&format!(
        "  {:width$}  heads  kv heads  head dim  scale     mask                  rotary  cache{}",
        "site",
        if windows { "  window" } else { "" }
    ));
    let yes = |b: bool| if b { "yes" } else { "no" };
    for s in sites {
        let window = s.window.map_or_else(String::new, |tokens| tokens.to_string());
        let row = format!(
            "  {:width$}  {:>5}  {:>8}  {:>8}  {:<8.5}  {:<20}  {:<6}  {:<5}  {window}",
            s.name,
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.scale,
            s.mask,
            yes(s.rotary),
            yes(s.cache)
        );
        line(row.trim_end());
    }
}
