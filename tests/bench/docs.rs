//! Puts what was measured into the documentation, between two marks; what people wrote around it stays.

use std::path::Path;

use anyhow::{Context, Result};

use crate::plot;
use crate::report::Report;

const BEGIN: &str = "<!-- measured: written by make bench -->";
const END: &str = "<!-- measured: end -->";

/// Writes `benchmarks.md` and `benchmarks.svg` in a folder.
pub(crate) fn write(folder: &Path, report: &Report) -> Result<()> {
    let page = folder.join("benchmarks.md");
    let text = std::fs::read_to_string(&page).with_context(|| format!("{}", page.display()))?;
    let text = replace(&text, &report.to_markdown()).with_context(|| format!("no marks in {}", page.display()))?;
    std::fs::write(&page, text)?;
    std::fs::write(folder.join("benchmarks.svg"), plot::draw(report))?;
    Ok(())
}

fn replace(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nwords\n");
        let once = replace(&page, "| new |\n").expect("has marks");
        assert_eq!(once, format!("# Title\n\n{BEGIN}\n\n| new |\n\n{END}\n\nwords\n"));
        assert_eq!(replace(&once, "| new |\n").as_deref(), Some(once.as_str()));
        assert!(replace("no marks", "x").is_none());
    }
}
