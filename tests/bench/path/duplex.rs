//! pg_duplex: two relays and a broker.

use std::time::Duration;

use anyhow::Result;
use duplex_lab::Lab;

use crate::cpu;

/// What is remembered of relays that have ended.
#[derive(Debug, Default)]
pub(crate) struct Duplex {
    peak: u64,
    running: bool,
}

impl Duplex {
    pub(super) async fn open(lab: &Lab) -> Result<Self> {
        lab.enable(&["wide"]).await?;
        Ok(Self::default())
    }

    pub(super) fn go(&mut self, lab: &Lab) -> Result<()> {
        if !std::mem::replace(&mut self.running, true) {
            for node in lab.nodes() {
                node.relay().start()?;
            }
        }
        Ok(())
    }

    pub(super) fn rest(&mut self, lab: &Lab) -> Result<()> {
        self.peak(lab)?;
        if std::mem::replace(&mut self.running, false) {
            lab.stop_relays()?;
        }
        Ok(())
    }

    pub(super) fn peak(&mut self, lab: &Lab) -> Result<u64> {
        if self.running {
            for node in lab.nodes() {
                self.peak = self.peak.max(node.relay().process()?.memory()?.1);
            }
        }
        Ok(self.peak)
    }

    pub(super) async fn processors(&self, lab: &Lab) -> Result<Vec<(String, Duration)>> {
        let mut times = Vec::new();
        if let Some(broker) = lab.kafka().pid() {
            times.push(("Kafka".to_owned(), cpu::of_process(broker)?));
        }
        if !self.running {
            return Ok(times);
        }
        for (node, place) in lab.nodes().iter().zip(["source", "target"]) {
            times.push((format!("relay at the {place}"), cpu::of_process(node.relay().process()?.pid())?));
            let sessions = node
                .rows(
                    "select pid, application_name from pg_stat_activity \
                      where application_name like 'duplex-relay%' order by pid",
                )
                .await?;
            for session in sessions {
                let (pid, name) = (session[0].clone().unwrap_or_default(), session[1].clone().unwrap_or_default());
                let what = name.trim_start_matches("duplex-relay").split_whitespace().next().unwrap_or_default();
                times.push((format!("session {what} at the {place}"), cpu::of_backend(pid.parse()?)?));
            }
        }
        Ok(times)
    }
}
