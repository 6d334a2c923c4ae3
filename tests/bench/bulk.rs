//! One INSERT … SELECT of many rows: what capture adds to a row when there is nothing else.

use std::time::Instant;

use anyhow::Result;

use crate::capture::{EMPTY_QUEUE, SYSTEMS, capture, server};
use crate::path::System;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::{cpu, wide};

pub(crate) async fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let lab = server("512MB").await?;
    let session = lab.node(0).connect().await?;
    session.exec(&wide::create("source")).await?;
    session.exec(&wide::fill("source", 1, scale.bulk_rows)).await?;
    session.exec("vacuum analyze source").await?;
    let pid = i32::try_from(session.number("select pg_backend_pid()").await?)?;
    let mut times = vec![Vec::new(); SYSTEMS.len()];
    let mut processor = vec![Vec::new(); SYSTEMS.len()];
    // One round to warm up: what comes first goes into memory that the machine never used.
    for round in 0..=scale.rounds {
        for (index, system) in SYSTEMS.into_iter().enumerate() {
            // A new table each time: a file that is there already would be faster.
            session.exec(&wide::create("wide")).await?;
            capture(&session, system, "wide").await?;
            session.exec("checkpoint").await?;
            let (started, before) = (Instant::now(), cpu::of_backend(pid)?);
            session.exec("insert into wide select * from source").await?;
            let (time, processor_time) = (started.elapsed(), cpu::of_backend(pid)? - before);
            if round > 0 {
                times[index].push(time.as_secs_f64());
                processor[index].push(processor_time.as_secs_f64());
            }
            if system == System::Duplex {
                session.exec("select duplex.disable('wide')").await?;
                session.exec(EMPTY_QUEUE).await?;
            }
            session
                .exec("drop table wide; drop table if exists outbox cascade; drop function if exists outbox_row")
                .await?;
        }
    }
    let ratio = |of: &[Vec<f64>], index: usize| {
        median(&of[index].iter().zip(&of[0]).map(|(time, bare)| time / bare).collect::<Vec<_>>())
    };
    for (index, system) in SYSTEMS.into_iter().enumerate() {
        report.less(&format!("bulk: INSERT of {} rows", scale.bulk_rows), "s", None, system, median(&times[index]));
    }
    for (index, system) in SYSTEMS.into_iter().enumerate().skip(1) {
        let bound = Some(Bound::AtMost(1.4));
        report.less("bulk: time, of that without capture", "×", bound, system, ratio(&times, index));
    }
    for (index, system) in SYSTEMS.into_iter().enumerate().skip(1) {
        report.less("bulk: processor time, of that without capture", "×", None, system, ratio(&processor, index));
    }
    Ok(())
}
