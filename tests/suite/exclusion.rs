//! Which of two rows that exclude each other is to go, no version can say: the stream stops, with advice.

use anyhow::{Result, ensure};
use duplex_lab::Lab;

#[tokio::test]
async fn rows_that_exclude_each_other_stop_the_stream_until_a_person_has_chosen() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let table = "create table booking (id int primary key, during int4range, exclude using gist (during with &&))";
    lab.create_everywhere(table, &["booking"]).await?;
    a.relay().stop()?;
    b.relay().stop()?;
    a.exec("insert into booking values (1, '[1, 5)')").await?;
    b.exec("insert into booking values (2, '[3, 8)')").await?;
    a.relay().start()?;
    b.relay().start()?;
    for (here, peer) in [(a, b), (b, a)] {
        let reason = here.stream_is(peer.name(), "stopped").await?;
        ensure!(reason.contains("booking_during_excl"), "{reason}");
        let told = here.one("select sqlstate || ' ' || hint from duplex.apply_errors where resolved_at is null").await?;
        ensure!(told.starts_with("23P01") && told.contains("duplex.skip_change"), "{told}");
    }
    // The second booking is moved on its own node. There the first one fits now; elsewhere it never comes as it was.
    b.exec("update booking set during = '[5, 8)' where id = 2").await?;
    b.exec(&format!("select duplex.retry_peer('{}')", a.name())).await?;
    a.exec(&format!("select duplex.skip_change('{}')", b.name())).await?;
    for (here, peer) in [(a, b), (b, a)] {
        here.stream_is(peer.name(), "running").await?;
    }
    lab.converges(&["booking"]).await?;
    assert_eq!(a.dump("booking", &[]).await?, ["during=[1,5) | id=1", "during=[5,8) | id=2"]);
    lab.stop_relays()
}
