//! Carrying a fault out: when it returns, the part is up again and may not have recovered yet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::schedule::{Fault, How, Part, Role, Whose};
use crate::process::{died_of, tail};
use crate::proxy::Flow;
use crate::session::literal;
use crate::wait::when;
use crate::{Cluster, Lab, Node, PATIENCE, Place, Relay, relay, topic, until};

/// How long a relay may take to come by the place where it is to die; a place may be out of its way for the time being.
const LONGEST_WAY: Duration = Duration::from_secs(4);

/// How long the other relay may take: what "within seconds" means on a machine that has other things to do.
const TAKES_OVER: Duration = Duration::from_secs(15);

/// Lets a fault strike. `standbys` are the nodes' second relays. Says whether it did: a session may not be there, a place may not be passed.
///
/// # Errors
/// If a part does not come back.
pub async fn strike(lab: &Lab, standbys: &[Relay], fault: Fault) -> Result<bool> {
    let struck = match fault.part {
        Part::Server(node) => server(lab.node(node), fault.how).await,
        Part::Relay(node, role) => relays(lab, lab.node(node), &standbys[node], role, fault.how).await,
        Part::Kafka => kafka(lab, fault.how).await,
        Part::DatabaseLink(node) => link(&lab.node(node).doors().database, fault.how).await,
        Part::KafkaLink(node) => link(&lab.node(node).doors().kafka, fault.how).await,
    };
    struck.with_context(|| format!("after {fault}"))
}

async fn server(node: &Node, how: How) -> Result<bool> {
    let cluster = node.cluster();
    match how {
        How::KillBackend(whose) => {
            // It may have ended by itself meanwhile.
            Ok(backend(node, whose).await?.is_some_and(|pid| cluster.kill_backend(pid).is_ok()))
        }
        How::Terminate(whose) => {
            let Some(pid) = backend(node, whose).await? else { return Ok(false) };
            let terminated = node.one(&format!("select pg_terminate_backend({pid})")).await;
            Ok(terminated.is_ok_and(|done| done == "t"))
        }
        How::Crash => {
            cluster.crash()?;
            restart(cluster).await
        }
        How::Pause(time) => {
            cluster.pause()?;
            tokio::time::sleep(time).await;
            cluster.resume()?;
            Ok(true)
        }
        _ => {
            cluster.kill().await?;
            restart(cluster).await
        }
    }
}

/// A backend of that kind, of the relay that has the node's place if two could be meant: that one's holds a lock, or came
/// first. The server may still be recovering from the fault before.
async fn backend(node: &Node, whose: Whose) -> Result<Option<i32>> {
    let pattern = match whose {
        Whose::Load => "load %",
        Whose::Outbound => "duplex-relay outbound%",
        Whose::Inbound => "duplex-relay inbound%",
    };
    let sql = format!(
        "select pid from pg_stat_activity a where datname = current_database() and application_name like {} \
          order by exists (select from pg_locks l where l.pid = a.pid and locktype = 'advisory' and granted) desc, \
                   backend_start limit 1",
        literal(pattern)
    );
    let rows = until("PostgreSQL to take connections again", PATIENCE, async || {
        Ok(node.rows(&sql).await.map_err(|err| format!("{err:#}")))
    });
    let row = rows.await?.into_iter().next();
    Ok(row.and_then(|row| row.into_iter().next().flatten()).map(|pid| pid.parse()).transpose()?)
}

async fn restart(cluster: &Cluster) -> Result<bool> {
    let mut attempts = 0;
    while let Err(err) = cluster.start().await {
        // A backend that the dead postmaster had just begun may outlive it by a moment.
        ensure!(attempts < 5 && tail(cluster.log(), 10).contains("shared memory block"), "{err:#}");
        attempts += 1;
    }
    Ok(true)
}

/// Strikes one of a node's two relays, whichever of them has that role now.
async fn relays(lab: &Lab, node: &Node, standby: &Relay, role: Role, how: How) -> Result<bool> {
    let pair = [node.relay(), standby];
    let active = relay::latest(&pair)?;
    let struck = if role == Role::Active { active } else { 1 - active };
    let (relay, other) = (pair[struck], pair[1 - struck]);
    match how {
        How::Pause(time) => {
            relay.pause()?;
            tokio::time::sleep(time).await;
            relay.resume()?;
        }
        How::Stop => {
            // The strike before may have started it a moment ago.
            let process = relay.process()?;
            until("a relay to heed SIGTERM", PATIENCE, async || {
                Ok(when(process.heeds(Signal::SIGTERM)?, "it has only just started"))
            })
            .await?;
            let status = relay.stop()?;
            ensure!(status.success(), "a relay ended with {status} after SIGTERM:\n{}", relay.log_tail(20));
            relay.start()?;
        }
        How::TakeOver => {
            comes_on(lab, node).await?;
            take_over(node, &pair).await?;
        }
        How::DieAt(place, passes) => return die_at(relay, other, place, passes).await,
        _ => {
            relay.kill()?;
            relay.start()?;
        }
    }
    Ok(true)
}

/// Waits until a node publishes: what was struck before has recovered.
async fn comes_on(lab: &Lab, node: &Node) -> Result<()> {
    let before = topic::end(lab.kafka(), node.name()).await?;
    until(&format!("{} to publish again", node.name()), PATIENCE, async || {
        let end = topic::end(lab.kafka(), node.name()).await?;
        Ok(when(end > before, format!("its topic still ends at {end}")))
    })
    .await
}

/// Kills the active relay, which comes back only when the other one has taken over.
async fn take_over(node: &Node, pair: &[&Relay; 2]) -> Result<()> {
    let active = node.active(pair).await?;
    let (active, other) = (pair[active], pair[1 - active]);
    let before = active.generation()?;
    active.kill()?;
    until("the standby to take over", TAKES_OVER, async || {
        let now = other.generation()?;
        Ok(when(now > before, format!("generation {now} after {before}:\n{}", other.log_tail(10))))
    })
    .await?;
    active.start()
}

/// Lets a relay die at a place. The other one is away meanwhile: it would pass by there instead.
async fn die_at(relay: &Relay, other: &Relay, place: Place, passes: u32) -> Result<bool> {
    relay.kill()?;
    other.kill()?;
    relay.start_failing(place, passes)?;
    let process = relay.process()?;
    let died = until("a relay to die", LONGEST_WAY, async || Ok(when(process.ended().is_some(), "it lives"))).await;
    if let Some(status) = process.ended() {
        ensure!(died_of(status, Signal::SIGABRT), "a relay ended with {status}:\n{}", relay.log_tail(20));
    }
    relay.kill()?;
    relay.start()?;
    other.start()?;
    Ok(died.is_ok())
}

async fn kafka(lab: &Lab, how: How) -> Result<bool> {
    if let How::Pause(time) = how {
        lab.kafka().pause()?;
        tokio::time::sleep(time).await;
        lab.kafka().resume()?;
    } else {
        lab.kafka().kill()?;
        // Its Java takes more than a minute where too many others want the processors.
        if lab.kafka().start().await.is_err() {
            lab.kafka().ready().await?;
        }
    }
    Ok(true)
}

async fn link(door: &crate::Proxy, how: How) -> Result<bool> {
    let (flow, time) = match how {
        How::Stall(time) => (Flow::Stalled, time),
        How::Slow(by, time) => (Flow::Delayed(by), time),
        _ => {
            door.cut();
            return Ok(true);
        }
    };
    door.set(flow);
    tokio::time::sleep(time).await;
    door.set(Flow::Free);
    Ok(true)
}
