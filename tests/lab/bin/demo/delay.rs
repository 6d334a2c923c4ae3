//! How long a commit takes to be seen on the other side.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use duplex_lab::{Lab, Node, PATIENCE, Session};

use super::picture::sessions;
use super::screen::{Screen, table};
use super::story::Committed;

/// Updates in each direction.
const UPDATES: usize = 40;
/// How often the other side is asked.
const ASK: Duration = Duration::from_micros(200);

/// Measures in both directions, with a row of its own, and takes that row away again.
pub(crate) async fn measure(screen: &Screen, lab: &Lab, mut committed: Committed) -> Result<Committed> {
    screen.heading("How long does it take?");
    screen.text(&format!(
        "{UPDATES} updates in each direction, one after the other: from the moment the commit has returned to the writer, \
         flushed to disk, until a reader of the other database sees it. In between it is captured, published to Kafka, \
         fetched and applied."
    ));
    println!();
    let sessions = sessions(lab).await?;
    sessions[0].exec("insert into user_table values ('probe', 'probe', '0')").await?;
    committed[0] += 1;
    seen(&sessions[1], "0").await?;
    let mut rows = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        let mut delays = Vec::new();
        for number in 1..=UPDATES {
            let status = format!("{from}-{number}");
            let sql = format!("update user_table set user_status = '{status}' where user_id = 'probe'");
            sessions[from].exec(&sql).await?;
            let returned = Instant::now();
            committed[from] += 1;
            seen(&sessions[to], &status).await?;
            delays.push(returned.elapsed());
        }
        delays.sort_unstable();
        let databases = lab.pair().map(Node::database);
        let ms = |delay: Option<&Duration>| delay.map_or(String::new(), |d| format!("{:.1} ms", d.as_secs_f64() * 1e3));
        rows.push(vec![
            format!("{} → {}", databases[from], databases[to]),
            ms(delays.get(UPDATES / 2)),
            ms(delays.last()),
        ]);
    }
    table(screen, &["direction", "median", "worst"], &rows);
    sessions[0].exec("delete from user_table where user_id = 'probe'").await?;
    committed[0] += 1;
    Ok(committed)
}

/// Waits until a reader sees this status in the probe's row.
async fn seen(session: &Session, status: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let rows = session.rows("select user_status from user_table where user_id = 'probe'").await?;
        let found = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        if found.as_deref() == Some(status) {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "an update did not come over within {PATIENCE:?}");
        tokio::time::sleep(ASK).await;
    }
}
