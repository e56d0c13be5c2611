//! The hard questions of ARC, in files like those of the easy ones.

use super::{ACC_NORM, Task, arc_easy};

pub(super) const TASK: Task = Task {
    name: "arc_challenge",
    version: Some(1),
    metrics: ACC_NORM,
    format: arc_easy::FORMAT,
    files: &["ARC-Challenge-Test.jsonl", "arc_challenge_test_genmc.jsonl"],
    read: arc_easy::read,
};
