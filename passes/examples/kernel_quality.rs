//! Prints the table of `docs/kernel-quality.md`.
#![expect(clippy::print_stdout, reason = "an example prints")]

use dijiang_passes::feature_map::quality::{Cell, table};

fn main() {
    let (head_dim, multiples, seeds) = (16, [1, 2, 4, 8, 16], 48);
    for length in [0.5, 1.0, 2.0] {
        println!(
            "\nhead_dim {head_dim}, |q| = |k| = {length}: mean relative error ± standard error over {seeds} seeds (bias)\n"
        );
        let columns: Vec<String> = multiples.iter().map(|r| format!("m = {}", r * head_dim)).collect();
        println!("| map | {} |", columns.join(" | "));
        println!("|---|{}", "---|".repeat(multiples.len()));
        for row in table(head_dim, length, &multiples, seeds) {
            let cell = |cell: &Cell| {
                let Cell { error, spread } = cell;
                format!("{:.3} ± {spread:.3} ({:+.3})", error.mean, error.bias)
            };
            let cells: Vec<String> = row.errors.iter().map(cell).collect();
            println!("| {} | {} |", row.label, cells.join(" | "));
        }
    }
}
