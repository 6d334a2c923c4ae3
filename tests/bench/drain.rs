//! Reading the queue and decoding every change: what the outbound end can do at most.

use std::time::Instant;

use anyhow::{Result, ensure};
use duplex_protocol::entry::Entry;
use duplex_protocol::record::Record;
use duplex_protocol::stream::EntryReader;

use crate::capture::server;
use crate::path::System;
use crate::records::Drain;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::wide;

pub(crate) async fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let lab = server("512MB").await?;
    let node = lab.node(0);
    node.exec(&wide::create("wide")).await?;
    node.exec("select duplex.enable('wide')").await?;
    let large = wide::fill("wide", 1, scale.bulk_rows);
    let small = format!(
        "do $$ begin for n in 1..{} loop update wide set {} where id = n; commit; end loop; end $$",
        scale.backlog,
        wide::CHANGE
    );
    let cases = [
        ("drain: one large transaction, read and decoded", large, scale.bulk_rows, Some(Bound::AtLeast(500_000.0))),
        ("drain: single-row transactions, read and decoded", small, scale.backlog, None),
    ];
    let mut rates = vec![Vec::new(); cases.len()];
    for _ in 0..scale.rounds {
        // Empties the queue of what the case before it and this one's preparation left.
        Drain::open(node).await?.all(|_| Ok(())).await?;
        for ((_, write, changes, _), rates) in cases.iter().zip(&mut rates) {
            let session = node.connect().await?;
            session.exec("set synchronous_commit = off").await?;
            session.exec(write).await?;
            let drain = Drain::open(node).await?;
            let started = Instant::now();
            let (mut reader, mut found) = (EntryReader::default(), 0);
            drain
                .all(|bytes| {
                    let record = Record::decode(bytes)?;
                    reader.feed(&record)?;
                    while let Some(entry) = reader.next()? {
                        found += u32::from(matches!(entry, Entry::Put(_) | Entry::Delete(_)));
                    }
                    if record.header.last {
                        reader.finish()?;
                    }
                    Ok(())
                })
                .await?;
            rates.push(f64::from(found) / started.elapsed().as_secs_f64());
            ensure!(found == *changes, "{found} changes were drained, {changes} were made");
        }
        node.exec("delete from wide").await?;
    }
    for ((name, _, _, bound), rates) in cases.into_iter().zip(rates) {
        report.more(name, "changes/s", bound, System::Duplex, median(&rates));
    }
    Ok(())
}
