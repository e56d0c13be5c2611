//! The machine that a batch runs on: how fast something is depends on it.

/// What it is called among the things that a step reads.
pub(super) const NAME: &str = "the machine";

/// Its processor, and how many threads are used of it.
pub(super) fn described(threads: usize) -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model(&told).unwrap_or(std::env::consts::ARCH);
    let threads = dijiang_format::words::counted(threads, "thread");
    format!("{model}, {threads}")
}

/// The first processor's name, where the system tells one.
fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_told_by_its_name() {
        assert_eq!(model("processor\t: 0\nmodel name\t: Some CPU @ 2.0 GHz\n"), Some("Some CPU @ 2.0 GHz"));
        assert_eq!(model("processor\t: 0\nmodel name\t:\n"), None);
        assert!(described(2).ends_with(", 2 threads"), "{}", described(2));
    }
}
