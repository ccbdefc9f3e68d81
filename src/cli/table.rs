//! Columns that stand under each other.

/// A column's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells, aligned when shown. Not for cells with line breaks.
#[derive(Debug, Clone)]
pub struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Table {
            align: columns.iter().map(|(_, align)| *align).collect(),
            rows: vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()],
        }
    }

    /// Adds a row, one cell a column.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The table as lines, each behind `indent` spaces, without blanks at their ends.
    pub fn show(&self, indent: usize) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.align.len()).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for ((cell, width), align) in row.iter().zip(&widths).zip(&self.align) {
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Pairs of a word and what it is, the second ones under each other.
pub fn pairs(indent: usize, pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(word, _)| word.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (word, what) in pairs {
        out.push_str(&format!("{:indent$}{word:<width$}  {what}\n", ""));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let mut table = Table::new(&[("name", Align::Left), ("size", Align::Right)]);
        table.row(["a".into(), "1.0 KiB".into()]);
        table.row(["longer name".into(), "12 B".into()]);
        insta::assert_snapshot!(table.show(2), @r"
          name            size
          a            1.0 KiB
          longer name     12 B
        ");
        insta::assert_snapshot!(pairs(2, &[("LSN", "0/1".into()), ("from", "here".into())]), @r"
          LSN   0/1
          from  here
        ");
    }
}
