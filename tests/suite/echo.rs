//! No echo: a stream holds what its own node's applications committed, and nothing else, ever.

use anyhow::Result;
use duplex_lab::{Lab, Node};

/// One session's storm on rows that all sessions of both nodes write; returns its commits. Each transaction writes a row
/// of its own as well, so that each is captured whatever it finds.
async fn storm(node: &Node, seed: i32, rounds: i32) -> Result<usize> {
    let session = node.connect().await?;
    let mut commits = 0;
    for round in 0..rounds {
        let (id, key) = ((seed * 31 + round * 7) % 40, seed * 100_000 + round);
        let write = match round % 6 {
            0 => format!("insert into t values ({id}, 'put') on conflict (id) do update set v = 'put again'"),
            1 => format!("delete from t where id = {id}"),
            2 => format!("update t set v = v || '{seed}' where id = {id} and length(v) < 100"),
            3 => format!("update t set v = 'short' where id = {id}"),
            4 => format!("update mark set v = v + 1 where id = {}", key - 1),
            _ => format!("savepoint s; insert into t values ({id}, 'lost') on conflict do nothing; rollback to s"),
        };
        if session.exec(&format!("begin; insert into mark values ({key}, {round}); {write}; commit")).await.is_ok() {
            commits += 1;
        } else {
            // A deadlock with a peer's change that is being applied: the application's loss, and no commit.
            session.exec("rollback").await?;
        }
    }
    Ok(commits)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_storm_each_topic_holds_exactly_its_own_nodes_commits_and_stays_so() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let sql = "create table t (id int primary key, v text); create table mark (id int primary key, v int)";
    lab.create_everywhere(sql, &["t", "mark"]).await?;
    let storms = tokio::try_join!(
        storm(a, 1, 300),
        storm(a, 2, 300),
        storm(a, 3, 300),
        storm(b, 4, 300),
        storm(b, 5, 300),
        storm(b, 6, 300)
    )?;
    let (of_a, of_b) = (storms.0 + storms.1 + storms.2, storms.3 + storms.4 + storms.5);
    assert!(of_a > 450 && of_b > 450, "the storm was one: {of_a} and {of_b} commits");
    lab.converges(&["mark"]).await?;
    assert_eq!((lab.transactions(a).await?, lab.transactions(b).await?), (of_a, of_b));
    // Had anything been on its way back, it would be in the topics before these.
    a.exec("insert into mark values (-1, 0)").await?;
    b.exec("insert into mark values (-2, 0)").await?;
    lab.converges(&["mark"]).await?;
    assert_eq!((lab.transactions(a).await?, lab.transactions(b).await?), (of_a + 1, of_b + 1));
    lab.stop_relays()
}
