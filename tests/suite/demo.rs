//! `make demo`: what a newcomer sees, to its end.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::Command;
use unicode_width::UnicodeWidthStr;

/// The whole of it: servers, the story, measuring, the end.
const LONGEST: Duration = Duration::from_secs(240);

#[tokio::test]
async fn the_demo_shows_two_equal_databases_and_leaves_nothing_behind() -> Result<()> {
    let temporary = super::lab_program::temporary()?;
    let demo = Command::new(env!("CARGO_BIN_EXE_duplex-lab"))
        .arg("demo")
        .env("TMPDIR", temporary.path())
        .env_remove("KAFKA_BOOTSTRAP_SERVERS")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LONGEST, demo).await.context("the demo does not end")??;
    let text = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(temporary.path())?.count(), 0, "something is left in the temporary folder");

    // The last picture of the users: changed by both sides, one of them gone from both.
    let last = text.rsplit_once("user_table in chat1").context("no picture")?.1;
    let rows: Vec<&str> = last.lines().skip(3).take_while(|line| !line.is_empty()).collect();
    assert_eq!(rows.len(), 3, "{last}");
    for row in rows {
        let (left, right) = row.split_once("  =  ").with_context(|| format!("not equal: {row}"))?;
        assert_eq!(left.trim(), right.trim());
    }
    assert!(last.contains("이서연 (서울)") && last.contains("away"), "{last}");

    for topic in ["duplex.chat1", "duplex.chat2"] {
        let line = text.lines().find(|line| line.trim_start().starts_with(topic)).context("no count of records")?;
        let numbers: Vec<u32> = line.split('│').skip(1).map(|cell| cell.trim().parse()).collect::<Result<_, _>>()?;
        let [records, hellos, heartbeats, transactions, committed] = numbers[..] else { panic!("{line}") };
        assert_eq!(transactions, committed, "{line}");
        assert_eq!(records, hellos + heartbeats + transactions, "{line}");
        // Three of the story, and the updates that were measured.
        assert!(hellos == 1 && committed > 40, "{line}");
    }
    for direction in ["chat1 → chat2", "chat2 → chat1"] {
        let line = text.lines().find(|line| line.trim_start().starts_with(direction)).context("no delay")?;
        let ms: Vec<f64> = line
            .split('│')
            .skip(1)
            .map(|cell| cell.trim().trim_end_matches(" ms").parse())
            .collect::<Result<_, _>>()?;
        assert!(ms.len() == 2 && ms[0] > 0.0 && ms[0] <= ms[1], "{line}");
    }
    aligned(&text);
    Ok(())
}

/// On a terminal, every column's edges stand under each other, whatever the script of what is between them.
fn aligned(text: &str) {
    let edges =
        |line: &str, edge: char| -> Vec<usize> { line.match_indices(edge).map(|(at, _)| line[..at].width()).collect() };
    let mut expected = Vec::new();
    let mut rows = 0;
    for line in text.lines() {
        if line.contains('┼') {
            expected = edges(line, '┼');
        } else if line.contains('│') && !expected.is_empty() {
            let found = edges(line, '│');
            // A row that one side lacks has the other's edges only; a heading comes before its rule.
            if found.iter().any(|edge| !expected.contains(edge)) {
                expected.clear();
                continue;
            }
            rows += 1;
        } else {
            expected.clear();
        }
    }
    assert!(rows > 40, "only {rows} rows stand in line");
}
