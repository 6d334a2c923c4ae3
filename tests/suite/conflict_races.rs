//! A peer's change that comes in the middle of a local transaction is decided on what that transaction leaves behind.

use anyhow::Result;
use duplex_lab::wait::when;
use duplex_lab::{Lab, PATIENCE, until};

/// A value that a local transaction gives up while a peer's older row with that value waits for it: that the value had
/// been held later is known to all who come by it afterwards, and so it must be here.
async fn given_up_meanwhile(constraint: &str, open: &str) -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(&format!("create table t (id int primary key, v text, {constraint})"), &["t"]).await?;
    lab.running().await?;
    a.hold(b.name(), false).await?;
    b.exec("insert into t values (1, 'value')").await?;
    a.exec("insert into t values (2, 'value')").await?;
    let local = a.connect().await?;
    local.exec(&format!("begin; {open}")).await?;
    a.resume(b.name()).await?;
    until("the older row to wait for the transaction", PATIENCE, async || {
        let sessions = a.applying(b.name()).await?;
        Ok(when(sessions == ["transactionid"], format!("{sessions:?}")))
    })
    .await?;
    local.exec("commit").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.number("select count(*) from t where id = 1").await?, 0);
    lab.stop_relays()
}

#[tokio::test]
async fn an_older_row_waits_for_a_value_that_is_given_up() -> Result<()> {
    given_up_meanwhile("unique (v)", "update t set v = 'other' where id = 2").await
}

#[tokio::test]
async fn an_older_row_waits_for_a_value_under_a_deferred_constraint() -> Result<()> {
    given_up_meanwhile("unique (v) deferrable initially deferred", "update t set v = 'other' where id = 2").await
}

#[tokio::test]
async fn an_older_row_waits_for_a_row_that_is_deleted() -> Result<()> {
    given_up_meanwhile("unique (v)", "delete from t where id = 2").await
}

#[tokio::test]
async fn an_older_row_waits_for_a_value_that_was_held_within_one_transaction() -> Result<()> {
    let open = "delete from t where id = 2; insert into t values (3, 'value'); update t set v = 'other' where id = 3";
    given_up_meanwhile("unique (v)", open).await
}

#[tokio::test]
async fn an_older_truncate_waits_for_a_later_one() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    // From now on the session that applies knows the table.
    b.exec("insert into t values (1)").await?;
    lab.converges(&["t"]).await?;
    let local = a.connect().await?;
    local.exec("begin; truncate t").await?;
    b.exec("truncate t").await?;
    b.exec("insert into t values (2)").await?;
    until("the older one to wait for the transaction", PATIENCE, async || {
        let sessions = a.applying(b.name()).await?;
        Ok(when(sessions == ["relation"], format!("{sessions:?}")))
    })
    .await?;
    local.exec("commit").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.number("select count(*) from t").await?, 0);
    lab.stop_relays()
}
