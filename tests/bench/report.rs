//! What was measured: one row a figure, one column a system.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use crate::path::{Path, System};

/// What a figure of ours has to keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// Not less than this.
    AtLeast(f64),
    /// Not more than this.
    AtMost(f64),
    /// Not less than native logical replication in the same run.
    AsNative,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// In what.
    pub(crate) unit: &'static str,
    /// Whether less is better.
    pub(crate) less_is_better: bool,
    /// What ours has to keep, if anything was demanded.
    pub(crate) bound: Option<Bound>,
    /// What each system did.
    pub(crate) values: BTreeMap<System, f64>,
}

impl Row {
    /// Whether ours keeps its bound; `None` without one, or if what it depends on was not measured.
    pub(crate) fn kept(&self) -> Option<bool> {
        let ours = *self.values.get(&System::Duplex)?;
        match self.bound? {
            Bound::AtLeast(least) => Some(ours >= least),
            Bound::AtMost(most) => Some(ours <= most),
            Bound::AsNative => self.values.get(&System::Native).map(|&native| ours >= native),
        }
    }

    fn bound_text(&self) -> String {
        match self.bound {
            None => String::new(),
            Some(Bound::AtLeast(least)) => format!("≥ {}", number(least)),
            Some(Bound::AtMost(most)) => format!("≤ {}", number(most)),
            Some(Bound::AsNative) => "≥ native".to_owned(),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.kept() {
            None => "",
            Some(true) => "kept",
            Some(false) => "**missed**",
        }
    }
}

/// All rows, in the order in which they were first mentioned.
#[derive(Debug)]
pub(crate) struct Report {
    /// The rows.
    pub(crate) rows: Vec<Row>,
    machine: String,
    took: String,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new(), machine: machine(), took: String::new() }
    }

    /// A figure of which more is better.
    pub(crate) fn more(&mut self, name: &str, unit: &'static str, bound: Option<Bound>, system: System, value: f64) {
        self.put(name, unit, false, bound, system, value);
    }

    /// A figure of which less is better.
    pub(crate) fn less(&mut self, name: &str, unit: &'static str, bound: Option<Bound>, system: System, value: f64) {
        self.put(name, unit, true, bound, system, value);
    }

    fn put(&mut self, name: &str, unit: &'static str, less: bool, bound: Option<Bound>, system: System, value: f64) {
        self.log(&format!("{:<14} {name}: {} {unit}", system.name(), number(value)));
        let row = match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row,
            None => {
                let values = BTreeMap::new();
                self.rows.push(Row { name: name.to_owned(), unit, less_is_better: less, bound, values });
                self.rows.last_mut().expect("just pushed")
            }
        };
        row.values.insert(system, value);
    }

    /// The most memory that a system's own processes had resident, as of now.
    pub(crate) async fn memory(&mut self, path: &mut Path) -> Result<()> {
        let peak = path.peak().await? as f64 / 1024.0;
        let bound = Some(Bound::AtMost(40.0));
        self.less(
            "memory: relay (older: Connect), most resident in all of the above",
            "MiB",
            bound,
            path.system(),
            peak,
        );
        Ok(())
    }

    /// Says something on the way that is no figure of the table.
    pub(crate) fn log(&self, line: &str) {
        println!("   {line}");
    }

    /// The run is over.
    pub(crate) fn took(&mut self, time: Duration, quick: bool) {
        let kind = if quick { "quick run (amounts too small to say how fast anything is)" } else { "full run" };
        self.took = format!("{kind}, {} s", time.as_secs());
    }

    fn systems(&self) -> Vec<System> {
        System::ALL.into_iter().filter(|system| self.rows.iter().any(|row| row.values.contains_key(system))).collect()
    }

    /// As a table of Markdown.
    pub(crate) fn to_markdown(&self) -> String {
        let systems = self.systems();
        let mut text = format!("{}; {}.\n\n| |", self.machine, self.took);
        for system in &systems {
            write!(text, " {} |", system.name()).expect("writing into memory");
        }
        text += " bound | |\n|---|";
        text += &"--:|".repeat(systems.len());
        text += "---|---|\n";
        for row in &self.rows {
            write!(text, "| {}, {} |", row.name, row.unit).expect("writing into memory");
            for system in &systems {
                let value = row.values.get(system).map(|&value| number(value)).unwrap_or_default();
                write!(text, " {value} |").expect("writing into memory");
            }
            writeln!(text, " {} | {} |", row.bound_text(), row.verdict()).expect("writing into memory");
        }
        text
    }

    /// The same for a terminal.
    pub(crate) fn to_text(&self) -> String {
        let systems = self.systems();
        let width = self.rows.iter().map(|row| row.name.len() + row.unit.len() + 2).max().unwrap_or(0);
        let mut text = format!("{}; {}\n\n{:width$}", self.machine, self.took, "");
        for system in &systems {
            write!(text, " {:>12}", system.name()).expect("writing into memory");
        }
        text += "   bound\n";
        for row in &self.rows {
            write!(text, "{:width$}", format!("{}, {}", row.name, row.unit)).expect("writing into memory");
            for system in &systems {
                let value = row.values.get(system).map(|&value| number(value)).unwrap_or_default();
                write!(text, " {value:>12}").expect("writing into memory");
            }
            let verdict = row.verdict().replace('*', "");
            writeln!(text, "   {} {verdict}", row.bound_text()).expect("writing into memory");
        }
        text
    }
}

/// A figure as people read it: three digits or so, thousands apart.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let digits = if value.abs() < 1.0 {
            3
        } else if value.abs() < 10.0 {
            2
        } else {
            1
        };
        return format!("{value:.digits$}");
    }
    let whole = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The mean, and its standard error.
pub(crate) fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0) / count).sqrt())
}

/// The value that so many hundredths are not above.
pub(crate) fn percentile(values: &[f64], hundredths: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let index = (sorted.len() * hundredths).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cores} cores of {}, {} GiB, Linux {}",
        model.unwrap_or("an unknown processor").trim(),
        (kib + (1 << 19)) >> 20,
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [0.951, 4.567, 12.34, 99.96, 1234.5, 1_000_000.0, -5.0].map(number),
            ["0.951", "4.57", "12.3", "100.0", "1,234", "1,000,000", "-5.00"]
        );
    }

    #[test]
    fn the_middle_and_the_end() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(median(&values), 50.5);
        assert_eq!(percentile(&values, 99), 99.0);
        assert_eq!(percentile(&[7.0], 50), 7.0);
    }
}
