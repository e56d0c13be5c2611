//! Bundles side by side, for people.

use super::statistics::Measured;

/// What a row is of: a text or a task, the metric, and the tokens of a row where there are such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub task: String,
    pub metric: String,
    pub context: Option<u64>,
}

/// A row of figures, one of each bundle that has it.
#[derive(Debug)]
struct Row {
    key: Key,
    n: usize,
    figures: Vec<String>,
}

/// A table with a column for each bundle.
#[derive(Debug)]
pub struct Table {
    bundles: Vec<String>,
    rows: Vec<Row>,
}

impl Table {
    pub fn new(bundles: Vec<String>) -> Self {
        Self { bundles, rows: Vec::new() }
    }

    /// Puts a figure of the bundle number `bundle` into its row.
    pub fn add(&mut self, bundle: usize, key: &Key, measured: &Measured) {
        let error = measured.standard_error.map_or_else(String::new, |error| format!(" ± {error:.4}"));
        let figure = format!("{:.4}{error}", measured.value);
        let at = self.rows.iter().position(|row| row.key == *key && row.figures[bundle].is_empty());
        let at = at.unwrap_or_else(|| {
            let figures = vec![String::new(); self.bundles.len()];
            self.rows.push(Row { key: key.clone(), n: measured.n, figures });
            self.rows.len() - 1
        });
        self.rows[at].figures[bundle] = figure;
    }

    /// Its lines, the names of the columns first.
    pub fn lines(&self) -> Vec<String> {
        let names = ["task", "metric", "context", "n"].map(str::to_owned).into_iter();
        let mut cells: Vec<Vec<String>> = vec![names.chain(self.bundles.iter().cloned()).collect()];
        for Row { key: Key { task, metric, context }, n, figures } in &self.rows {
            let context = context.map_or_else(String::new, |tokens| tokens.to_string());
            let own = [task.clone(), metric.clone(), context, n.to_string()];
            cells.push(own.into_iter().chain(figures.iter().cloned()).collect());
        }
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..4 + self.bundles.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let padded = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                2 | 3 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        cells.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_stand_side_by_side() {
        let mut table = Table::new(vec!["softmax".to_owned(), "out/adaptive".to_owned()]);
        let key = |task: &str, metric: &str, context| Key {
            task: task.to_owned(),
            metric: metric.to_owned(),
            context,
        };
        let acc = key("piqa", "acc", None);
        let perplexity = key("valid.txt", "perplexity", Some(2048));
        let measured = Measured::mean(vec![1.0, 0.0, 1.0, 1.0], 4);
        for bundle in 0..2 {
            table.add(bundle, &acc, &measured);
        }
        table.add(1, &perplexity, &Measured { value: 12.5, n: 2047, standard_error: None, each: vec![2.5] });
        assert_eq!(
            table.lines(),
            [
                "task       metric      context     n  softmax          out/adaptive",
                "piqa       acc                     4  0.7500 ± 0.2500  0.7500 ± 0.2500",
                "valid.txt  perplexity     2048  2047                   12.5000",
            ]
        );
    }
}
