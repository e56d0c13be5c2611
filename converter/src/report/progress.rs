//! Progress of long work, told to whoever shows it.

/// What a conversion takes at most of the disk, and about of memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Of the new bundle; what it replaces is there until then.
    pub disk: u64,
    /// Anonymous memory. The source's weights are not in it: they stay in their files.
    pub memory: u64,
}

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Note,
    Warning,
    /// A part of the work failed, and the rest may go on.
    Error,
}

/// Hears what is going on.
pub trait Progress: Send {
    /// So much will be taken of the disk and of memory.
    fn estimate(&mut self, estimate: &Estimate);

    /// A new stage begins.
    fn stage(&mut self, what: &str);

    /// A stage of `total` bytes begins.
    fn bytes(&mut self, what: &str, total: u64);

    /// A stage of `total` steps begins.
    fn items(&mut self, what: &str, _total: u64) {
        self.stage(what);
    }

    /// So many more bytes or steps are done.
    fn advance(&mut self, more: u64);

    /// A line of its own, which stays.
    fn say(&mut self, what: Say, line: &str);

    /// The work has ended.
    fn done(&mut self);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn estimate(&mut self, _estimate: &Estimate) {}

    fn stage(&mut self, _what: &str) {}

    fn bytes(&mut self, _what: &str, _total: u64) {}

    fn advance(&mut self, _more: u64) {}

    fn say(&mut self, _what: Say, _line: &str) {}

    fn done(&mut self) {}
}
