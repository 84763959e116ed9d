//! Tables for people: columns as wide as they need to be.

use std::fmt;

/// A table of text.
#[derive(Debug)]
pub(crate) struct Columns<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Columns<N> {
    /// A table with these headings. Those that begin with `>` stand to the right, with their cells.
    pub(crate) fn new(headings: [&str; N]) -> Self {
        Self {
            rows: vec![headings.map(str::to_owned)],
        }
    }

    /// Appends a row.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Columns<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right: [bool; N] = std::array::from_fn(|column| self.rows[0][column].starts_with('>'));
        let bare = |cell: &str| cell.trim_start_matches('>').to_owned();
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| bare(&row[column]).chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let (cell, width) = (bare(cell), widths[column]);
                if right[column] {
                    line.push_str(&format!("  {cell:>width$}"));
                } else {
                    line.push_str(&format!("  {cell:<width$}"));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut columns = Columns::new(["name", ">objects"]);
        columns.row(["flights".to_owned(), "12".to_owned()]);
        assert_eq!(
            columns.to_string(),
            "  name     objects\n  flights       12\n"
        );
    }
}
