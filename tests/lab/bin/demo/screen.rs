//! Text for a person: paragraphs, and tables whose columns stand under each other whatever the script.

use std::io::IsTerminal;

use unicode_width::UnicodeWidthStr;

/// Columns of a line of prose.
const WIDTH: usize = 100;

/// Standard output, with colours if it is a terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    coloured: bool,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Look {
    /// Headings and what matters.
    Bold,
    /// What is there for completeness.
    Dim,
    /// As it should be.
    Good,
    /// Not so yet.
    Pending,
}

impl Screen {
    /// Colours unless the output goes to a file or `NO_COLOR` is set.
    pub(crate) fn new() -> Self {
        let wished = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { coloured: wished && std::io::stdout().is_terminal() }
    }

    /// A piece of text with a look.
    pub(crate) fn look(&self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Bold => "1",
            Look::Dim => "2",
            Look::Good => "32",
            Look::Pending => "33",
        };
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The first line of all.
    pub(crate) fn title(&self, text: &str) {
        println!("\n{}\n{}", self.look(Look::Bold, text), self.look(Look::Dim, &"━".repeat(text.width())));
    }

    /// The heading of a part.
    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}\n", self.look(Look::Bold, &format!("▌ {text}")));
    }

    /// A paragraph.
    pub(crate) fn text(&self, text: &str) {
        for line in wrapped(text, WIDTH) {
            println!("{line}");
        }
    }

    /// A line that one may pass over.
    pub(crate) fn note(&self, text: &str) {
        println!("{}", self.look(Look::Dim, text));
    }

    /// A line that says that something is as it must be.
    pub(crate) fn good(&self, text: &str) {
        println!("  {}", self.look(Look::Good, &format!("✓ {text}")));
    }

    /// A line as it is, a little to the right.
    pub(crate) fn line(&self, text: &str) {
        println!("{}", format!("  {text}").trim_end());
    }
}

/// Text in lines of at most so many columns, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Text with spaces behind it, so that it takes so many columns of a terminal.
pub(crate) fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// How many columns each column of a table needs.
pub(crate) fn widths<'a>(rows: impl IntoIterator<Item = &'a [String]>) -> Vec<usize> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    widths
}

/// A row of a table.
pub(crate) fn row(cells: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = cells.iter().zip(widths).map(|(cell, &width)| padded(cell, width)).collect();
    cells.join(" │ ")
}

/// The line below a table's heading.
pub(crate) fn rule(widths: &[usize]) -> String {
    let pieces: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
    pieces.join("─┼─")
}

/// How many columns a row takes.
pub(crate) fn row_width(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + 3 * widths.len().saturating_sub(1)
}

/// A table with a heading, its lines a little to the right. Columns of numbers stand to the right.
pub(crate) fn table(screen: &Screen, heading: &[&str], rows: &[Vec<String>]) {
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    let widths = widths(std::iter::once(heading.as_slice()).chain(rows.iter().map(Vec::as_slice)));
    screen.line(&screen.look(Look::Bold, row(&heading, &widths).trim_end()));
    screen.line(&screen.look(Look::Dim, &rule(&widths)));
    let numbers = |column: usize| rows.iter().all(|row| row[column].starts_with(|first: char| first.is_ascii_digit()));
    let right: Vec<bool> = (0..widths.len()).map(numbers).collect();
    for cells in rows {
        let aligned = cells.iter().zip(&widths).zip(&right).map(|((cell, &width), &right)| match right {
            true => format!("{}{cell}", " ".repeat(width.saturating_sub(cell.width()))),
            false => cell.clone(),
        });
        screen.line(&row(&aligned.collect::<Vec<_>>(), &widths));
    }
}
