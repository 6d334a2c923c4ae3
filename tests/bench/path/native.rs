//! PostgreSQL's own logical replication, one way, as it comes.

use std::time::Duration;

use anyhow::Result;
use duplex_lab::{Lab, until};

use super::PATIENCE;
use crate::cpu;

/// A publication and a subscription.
#[derive(Debug)]
pub(crate) struct Native;

impl Native {
    pub(super) async fn open(lab: &Lab) -> Result<Self> {
        let [source, target] = lab.pair();
        source.exec("create publication bench for table wide").await?;
        let from =
            format!("host=127.0.0.1 port={} user=postgres dbname={}", source.cluster().port(), source.database());
        let subscribe =
            format!("create subscription bench connection '{from}' publication bench with (copy_data = false)");
        target.exec(&subscribe).await?;
        Ok(Self)
    }

    pub(super) async fn go(&mut self, lab: &Lab) -> Result<()> {
        lab.node(1).exec("alter subscription bench enable").await
    }

    pub(super) async fn rest(&mut self, lab: &Lab) -> Result<()> {
        lab.node(1).exec("alter subscription bench disable").await?;
        let source = lab.node(0).connect().await?;
        until("the subscription to be at rest", PATIENCE, async || {
            let active = source.one("select active from pg_replication_slots where slot_name = 'bench'").await?;
            Ok(if active == "f" { Ok(()) } else { Err("its slot is active") })
        })
        .await
    }

    pub(super) async fn processors(&self, lab: &Lab) -> Result<Vec<(String, Duration)>> {
        let mut times = Vec::new();
        for (node, what) in lab.nodes().iter().zip(["walsender", "logical replication worker"]) {
            let sql = format!("select pid from pg_stat_activity where backend_type = '{what}'");
            for row in node.rows(&sql).await? {
                let pid = row.into_iter().next().flatten().unwrap_or_default();
                times.push((what.to_owned(), cpu::of_backend(pid.parse()?)?));
            }
        }
        Ok(times)
    }
}
