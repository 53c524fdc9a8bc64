//! Aligned columns.

use std::io::{self, Write};

use super::output::Style;

const GAP: &str = "  ";

/// Rows below a header; every row has as many cells as the header.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    header: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty table.
    pub fn new(header: [&'static str; N]) -> Self {
        Self { header, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)));
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes it, columns as wide as their widest cell.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let mut widths = self.header.map(width);
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        writeln!(out, "{}", style.bold(&line(&self.header, &widths)))?;
        self.rows.iter().try_for_each(|row| writeln!(out, "{}", line(row, &widths)))
    }
}

fn line(cells: &[impl AsRef<str>], widths: &[usize]) -> String {
    let padded: Vec<_> = cells
        .iter()
        .map(AsRef::as_ref)
        .zip(widths)
        .map(|(cell, widest)| format!("{cell}{}", " ".repeat(widest.saturating_sub(width(cell)))))
        .collect();
    padded.join(GAP).trim_end().to_owned()
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// Text without anything that a terminal obeys.
pub fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(style: Style) -> String {
        let mut table = Table::new(["ID", "IFACE", "STATE"]);
        table.row(["longer-id".to_owned(), "a".to_owned(), "on".to_owned()]);
        table.row(["b".to_owned(), "\u{1b}[2Jx".to_owned(), String::new()]);
        let mut out = Vec::new();
        table.write(&mut out, style).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_nothing_reaches_the_terminal_raw() {
        assert_eq!(
            written(Style::Plain),
            "ID         IFACE  STATE\nlonger-id  a      on\nb          \u{fffd}[2Jx\n"
        );
        assert!(written(Style::Coloured).starts_with("\u{1b}[1mID"));
    }
}
