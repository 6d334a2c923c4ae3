//! Large transactions, captured on one node, given to `duplex.apply_chunk` on another: what the inbound end can do at most.

use std::time::Instant;

use anyhow::Result;
use duplex_lab::{Lab, Node, Session};
use duplex_protocol::record::{Kind, Record};

use crate::path::System;
use crate::records::Drain;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::{cpu, wide};

pub(crate) async fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let lab = Lab::builder()
        .nodes(2)
        .durable()
        .without_relays()
        .setting("shared_buffers", "512MB")
        .setting("max_wal_size", "8GB")
        .start()
        .await?;
    let [source, target] = lab.pair();
    let marked = target.connect().await?;
    marked.exec(&format!("select duplex.apply_open('{}')", source.name())).await?;
    let writing = source.connect().await?;
    let insert = wide::fill("wide", 1, scale.large_rows);
    let update = format!("update wide set {}", wide::CHANGE);
    let cases = [
        ("apply: INSERT in a large transaction", insert.as_str(), Some(Bound::AtLeast(150_000.0))),
        ("apply: UPDATE in a large transaction", &update, Some(Bound::AtLeast(80_000.0))),
        ("apply: DELETE in a large transaction", "delete from wide", None),
        ("apply: INSERT of keys that were deleted before", insert.as_str(), None),
        ("apply: DELETE of keys that were deleted before", "delete from wide", None),
    ];
    let mut rates = vec![Vec::new(); cases.len()];
    let mut next_offset = 0;
    for _ in 0..scale.rounds {
        // What is remembered of deleted keys must not grow from round to round.
        lab.create_everywhere(&wide::create("wide"), &["wide"]).await?;
        for ((name, write, _), rates) in cases.iter().zip(&mut rates) {
            writing.exec(write).await?;
            let records = captured(source).await?;
            target.exec("checkpoint").await?;
            let pid = i32::try_from(marked.number("select pg_backend_pid()").await?)?;
            let (started, before) = (Instant::now(), cpu::of_backend(pid)?);
            apply(&marked, &records, next_offset).await?;
            let processor = (cpu::of_backend(pid)? - before).as_secs_f64();
            rates.push(f64::from(scale.large_rows) / started.elapsed().as_secs_f64());
            report.log(&format!(
                "{name}: {:.2} µs of processor time a row",
                processor * 1e6 / f64::from(scale.large_rows)
            ));
            next_offset += i64::try_from(records.len())?;
            wide::assert_equal(&writing, &target.connect().await?).await?;
            if write.starts_with("delete") {
                lab.exec_everywhere("vacuum wide").await?;
            }
        }
        lab.exec_everywhere("drop table wide").await?;
    }
    for ((name, _, bound), rates) in cases.into_iter().zip(rates) {
        report.more(name, "rows/s", bound, System::Duplex, median(&rates));
    }
    Ok(())
}

/// The records of the transactions that a node has captured since it was asked last.
pub(crate) async fn captured(source: &Node) -> Result<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    Drain::open(source)
        .await?
        .all(|record| {
            records.push(record.to_vec());
            Ok(())
        })
        .await?;
    records.retain(|record| Record::decode(record).is_ok_and(|record| record.header.kind == Kind::Transaction));
    Ok(records)
}

/// As the relay does it: chunk by chunk inside one transaction.
pub(crate) async fn apply(marked: &Session, records: &[Vec<u8>], first_offset: i64) -> Result<()> {
    let client = marked.client();
    let chunk = client.prepare("select duplex.apply_chunk($1, $2)").await?;
    client.batch_execute("begin").await?;
    for (offset, record) in (first_offset..).zip(records) {
        client.execute(&chunk, &[record, &offset]).await?;
    }
    client.batch_execute("commit").await?;
    Ok(())
}
