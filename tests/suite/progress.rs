//! How far a peer's stream is applied is what was committed of it: whatever else becomes of a transaction that applied a
//! record, the offset stays, and the record is taken when it comes again.

use anyhow::{Context, Result, ensure};
use duplex_lab::{Lab, Node, PATIENCE, Session, until};
use duplex_protocol::record::{Kind, Record};

/// Two nodes, and the record of a row that was written on the first one.
async fn one_record() -> Result<(Lab, Vec<u8>)> {
    let lab = Lab::builder().without_relays().start().await?;
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    lab.node(0).exec("insert into t values (1, 'x')").await?;
    let relay = lab.node(0).connect_as("relay").await?;
    relay.exec("select duplex.drain_open(0)").await?;
    let rows = relay.client().query("select duplex.drain(0, 1000000)", &[]).await?;
    let is_transaction = |bytes: &Vec<u8>| Record::decode(bytes).is_ok_and(|r| r.header.kind == Kind::Transaction);
    let record = rows.iter().map(|row| row.get(0)).find(is_transaction).context("a transaction in the queue")?;
    Ok((lab, record))
}

/// Where the record is in the first node's topic.
const OFFSET: i64 = 7;

/// A session of the relay's role that applies the first node's stream on the second. An origin that another session
/// has not given back yet is waited for.
async fn open(lab: &Lab) -> Result<Session> {
    let [a, b] = lab.pair();
    until("the stream to be free", PATIENCE, async || {
        let session = b.connect_as("relay").await?;
        let opened = session.exec(&format!("select duplex.apply_open('{}')", a.name())).await;
        Ok(opened.map(|()| session).map_err(|err| format!("{err:#}")))
    })
    .await
}

async fn chunk(session: &Session, record: &[u8]) -> Result<()> {
    session.exec("begin").await?;
    session.client().execute("select duplex.apply_chunk($1, $2)", &[&record, &OFFSET]).await?;
    Ok(())
}

/// The record was not applied, and is still to come.
async fn untouched(session: &Session, b: &Node) -> Result<()> {
    ensure!(session.number("select duplex.apply_position()").await? <= OFFSET, "the record counts as applied");
    assert_eq!(b.number("select count(*) from t").await?, 0);
    Ok(())
}

/// The record is taken.
async fn taken(session: &Session, b: &Node, record: &[u8]) -> Result<()> {
    session.client().execute("call duplex.apply_batch($1, $2)", &[&vec![record], &vec![OFFSET]]).await?;
    assert_eq!(session.number("select duplex.apply_position()").await?, OFFSET + 1);
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | v=x"]);
    Ok(())
}

#[tokio::test]
async fn a_record_that_was_rolled_back_comes_again() -> Result<()> {
    let (lab, record) = one_record().await?;
    let b = lab.node(1);
    let session = open(&lab).await?;
    chunk(&session, &record).await?;
    session.exec("rollback").await?;
    untouched(&session, b).await?;
    chunk(&session, &record).await?;
    session.refuses("22012", "select 1 / 0").await?;
    session.exec("commit").await?;
    untouched(&session, b).await?;
    taken(&session, b, &record).await
}

#[tokio::test]
async fn a_record_whose_commit_failed_comes_again() -> Result<()> {
    let (lab, record) = one_record().await?;
    let b = lab.node(1);
    b.exec(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'refused'; end $$;
         create constraint trigger refuse after insert on t deferrable initially deferred
           for each row execute function refuse();
         alter table t enable always trigger refuse",
    )
    .await?;
    let session = open(&lab).await?;
    let batch = "call duplex.apply_batch($1, $2)";
    let err = session.client().execute(batch, &[&vec![&record[..]], &vec![OFFSET]]).await.err();
    assert_eq!(err.as_ref().and_then(|err| err.code()).map(|state| state.code()), Some("P0001"), "{err:?}");
    untouched(&session, b).await?;
    b.exec("drop trigger refuse on t").await?;
    taken(&session, b, &record).await
}

/// What fails when code of users does not run any more, and extensions have had their last word.
#[tokio::test]
async fn a_record_whose_commit_failed_at_the_very_end_comes_again() -> Result<()> {
    let (lab, record) = one_record().await?;
    let b = lab.node(1);
    let session = open(&lab).await?;
    for _ in 0..2 {
        chunk(&session, &record).await?;
        session
            .exec(
                "create temp table parent (id int primary key) on commit delete rows;
                 create temp table child (id int references parent)",
            )
            .await?;
        let err = session.refuses("0A000", "commit").await?;
        ensure!(err.message().contains("ON COMMIT"), "{err:?}");
        untouched(&session, b).await?;
    }
    // Nothing of the record is left for the session's next transaction.
    session.exec("create temp table other ()").await?;
    untouched(&session, b).await?;
    taken(&session, b, &record).await
}

#[tokio::test]
async fn a_record_whose_session_was_ended_comes_again() -> Result<()> {
    let (lab, record) = one_record().await?;
    let b = lab.node(1);
    let session = open(&lab).await?;
    chunk(&session, &record).await?;
    let pid = session.number("select pg_backend_pid()").await?;
    b.exec(&format!("select pg_terminate_backend({pid})")).await?;
    let session = open(&lab).await?;
    untouched(&session, b).await?;
    chunk(&session, &record).await?;
    drop(session);
    let session = open(&lab).await?;
    untouched(&session, b).await?;
    taken(&session, b, &record).await
}

#[tokio::test]
async fn a_record_is_not_prepared() -> Result<()> {
    let (lab, record) = one_record().await?;
    let b = lab.node(1);
    let session = open(&lab).await?;
    chunk(&session, &record).await?;
    session.refuses("0A000", "prepare transaction 'p'").await?;
    untouched(&session, b).await?;
    // Another transaction of such a session may be.
    session.each(&["begin", "select txid_current()", "prepare transaction 'q'", "rollback prepared 'q'"]).await?;
    untouched(&session, b).await?;
    taken(&session, b, &record).await
}
