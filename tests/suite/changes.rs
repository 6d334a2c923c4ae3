//! A change made on one node is on the other, once, and never comes back.

use anyhow::Result;
use duplex_lab::Lab;

#[tokio::test]
async fn rows_go_over_in_both_directions_and_nothing_comes_back() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    a.exec("insert into t values (1, 'one'), (2, 'two')").await?;
    b.exec("insert into t values (3, '셋')").await?;
    lab.settled().await?;
    a.exec("update t set v = 'drei' where id = 3").await?;
    b.exec("delete from t where id = 1").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.dump("t", &[]).await?, ["id=2 | v=two", "id=3 | v=drei"]);
    assert_eq!(lab.transactions(a).await?, 2);
    assert_eq!(lab.transactions(b).await?, 2);
    lab.stop_relays()
}
