//! What the commands print.

use crate::verify::Verification;
use dijiang_passes::attention::patterns::NearMiss;
use dijiang_passes::attention::rewrite::SiteReport;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write as _};

/// What a shell reports of a program that wrote to a pipe nobody reads: 128 and the number of SIGPIPE.
const BROKEN_PIPE: i32 = 141;

/// One line on stderr.
pub(super) fn error(message: &str) {
    note(&format!("error: {}", message.replace('\n', " ")));
}

/// Something that is likely wrong, on stderr.
pub(super) fn warning(message: &str) {
    note(&format!("warning: {}", message.replace('\n', " ")));
}

/// A remark on stderr.
pub(super) fn note(message: &str) {
    // Where stderr is closed, nobody is there to be told.
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// A line of the result.
pub(super) fn line(text: &str) {
    stream(&format!("{text}\n"));
}

/// Text as it comes, without a line's end. A reader that went away, as `head` does, ends the program quietly.
pub(super) fn stream(text: &str) {
    let mut out = std::io::stdout().lock();
    let Err(failure) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else { return };
    if failure.kind() == ErrorKind::BrokenPipe {
        std::process::exit(BROKEN_PIPE);
    }
    error(&format!("stdout: {failure}"));
    std::process::exit(2);
}

/// The one object of `--json`.
pub(super) fn object(value: &Value) {
    line(&value.to_string());
}

/// The checks as a table.
pub(super) fn verification(found: &Verification) {
    let made = || found.checks.iter().filter(|c| !c.is_skipped());
    let width = made().map(|c| c.name.len()).max().unwrap_or(0);
    for check in made() {
        let verdict = match (check.limit, check.ok) {
            (None, _) => "reported".to_owned(),
            (Some(limit), true) => format!("ok       within {limit:.0e}"),
            (Some(limit), false) => format!("FAILED   not within {limit:.0e}"),
        };
        let reason = check.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        line(&format!("  {:width$}  {:>9.2e}  {verdict}{reason}", check.name, check.measured));
    }
    for skipped in found.skipped() {
        line(&format!("  skipped {skipped}"));
    }
}

/// The checks as JSON: `[{name, subject, reference, measure, measured, limit, ok, status, reason}]`.
pub(super) fn checks(found: &Verification) -> Value {
    json!(found.checks)
}

pub(super) fn sites(sites: &[SiteReport]) -> Value {
    let one = |s: &SiteReport| {
        json!({
            "name": s.name, "layer": s.layer, "heads": s.heads, "kv_heads": s.kv_heads, "head_dim": s.head_dim,
            "scale": s.scale, "mask": s.mask, "rotary": s.rotary, "cache": s.cache, "kept": s.why_kept,
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
    line(&format!(
        "  {:width$}  heads  kv heads  head dim  scale     mask                  rotary  cache",
        "site"
    ));
    let yes = |b: bool| if b { "yes" } else { "no" };
    for s in sites {
        line(&format!(
            "  {:width$}  {:>5}  {:>8}  {:>8}  {:<8.5}  {:<20}  {:<6}  {}",
            s.name,
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.scale,
            s.mask,
            yes(s.rotary),
            yes(s.cache)
        ));
    }
}
