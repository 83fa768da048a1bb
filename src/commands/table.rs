//! Rows for a terminal: columns as wide as what stands in them.

use std::fmt::Write as _;

/// Where a column's texts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// At the left edge of the column, as words stand.
    Left,
    /// At the right edge, as numbers stand.
    Right,
}

/// The rows below their heads, two blanks between columns.
pub(super) fn text<const N: usize>(heads: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        let head = heads.get(column).map_or("", |(head, _)| head);
        cells.chain([head]).map(|cell| cell.chars().count()).max().unwrap_or_default()
    });
    let mut text = line(heads.map(|(head, _)| head), heads, widths);
    for row in rows {
        text.push_str(&line(row.each_ref().map(String::as_str), heads, widths));
    }
    text
}

fn line<const N: usize>(cells: [&str; N], heads: [(&str, Align); N], widths: [usize; N]) -> String {
    let mut line = String::new();
    for ((cell, (_, align)), width) in cells.into_iter().zip(heads).zip(widths) {
        // Writing to a string never fails.
        let _ = match align {
            Align::Left => write!(line, "{cell:<width$}  "),
            Align::Right => write!(line, "{cell:>width$}  "),
        };
    }
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["results", "7"], ["s", "12345"]].map(|row| row.map(str::to_owned));
        let shown = text([("stream", Align::Left), ("lines", Align::Right)], &rows);
        assert_eq!(shown, "stream   lines\nresults      7\ns        12345\n");
    }
}
