//! Many writers at once on few keys: no stream ever stops, and all nodes are equal in the end. Short storms; `make storm`
//! is the long one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duplex_lab::dice::seed;
use duplex_lab::storm::tables::Policy;
use duplex_lab::storm::{Plan, run};

const SHORT: Duration = Duration::from_secs(8);

async fn storm(nodes: usize, policies: &[Policy], forgets: bool) -> Result<()> {
    let seed = seed()?;
    let plan = Plan { policies: policies.to_vec(), forgets, ..Plan::new(nodes, SHORT, seed) };
    let report = run(&plan).await.with_context(|| format!("DUPLEX_SEED={seed} draws the same statements"))?;
    println!("{report}");
    for node in &report.nodes {
        ensure!(node.transactions() > 100, "a node hardly wrote anything: {report}");
        ensure!(node.met() > 0, "a node met nobody: {report}");
    }
    Ok(())
}

#[tokio::test]
async fn two_nodes() -> Result<()> {
    storm(2, &[Policy::Rows, Policy::Counters], false).await
}

#[tokio::test]
async fn three_nodes() -> Result<()> {
    storm(3, &[Policy::Rows, Policy::Counters], false).await
}

#[tokio::test]
async fn three_nodes_that_forget_all_the_time() -> Result<()> {
    storm(3, &[Policy::Rows, Policy::Counters], true).await
}

#[tokio::test]
async fn two_nodes_that_merge_columns() -> Result<()> {
    storm(2, &[Policy::Columns], false).await
}

#[tokio::test]
async fn three_nodes_that_merge_columns() -> Result<()> {
    storm(3, &[Policy::Columns], false).await
}
