//! What the topics hold: exactly what the applications committed, so nothing came back.

use anyhow::{Result, ensure};
use duplex_lab::{Lab, topic};
use duplex_protocol::record::Kind;

use super::screen::{Screen, table};
use super::story::Committed;

/// Counts, and compares with what was committed.
pub(crate) async fn count(screen: &Screen, lab: &Lab, committed: Committed) -> Result<()> {
    screen.heading("Does anything echo?");
    screen.text(
        "Every change was applied on the other side. If one were captured there again, it would stand in that side's \
         topic and go round for ever. So each topic must hold exactly as many transactions as the applications of its \
         own database have committed.",
    );
    println!();
    // Twice: what the first round might still have captured while it applied is published by the end of the second.
    lab.settled().await?;
    lab.settled().await?;
    for table in ["user_table", "message"] {
        lab.assert_equal(table).await?;
    }
    let mut rows = Vec::new();
    let mut all = true;
    for (node, committed) in lab.pair().into_iter().zip(committed) {
        let records = topic::read(lab.kafka(), node.name()).await?;
        let transactions = topic::transactions(&records)?.len();
        let mut others = [0, 0];
        for record in &records {
            match record.header()?.kind {
                Kind::Hello => others[0] += 1,
                Kind::Heartbeat => others[1] += 1,
                Kind::Transaction => {}
            }
        }
        all &= transactions == committed;
        let cells = [records.len(), others[0], others[1], transactions, committed];
        rows.push(std::iter::once(topic::name(node.name())).chain(cells.map(|cell| cell.to_string())).collect());
    }
    let heading = ["topic", "records", "hello of a relay", "heartbeats", "transactions", "committed by applications"];
    table(screen, &heading, &rows);
    println!();
    ensure!(all, "a topic does not hold what was committed on its node");
    screen.good("both databases are equal, every transaction went over once, and nothing came back");
    Ok(())
}
