//! Which faults strike, and when: drawn from a seed alone, whatever happens.
//!
//! "When" is counted in committed transactions, not in seconds, so that a slow machine and a fast one go through the
//! same steps.

use std::fmt;
use std::time::Duration;

use crate::dice::Dice;

/// Places at which a relay built with failpoints may die; its `failpoints.rs` says what each is.
const PLACES: [&str; 7] = [
    "outbound-after-drain",
    "outbound-within-transaction",
    "outbound-after-publish",
    "outbound-after-confirm",
    "inbound-before-apply",
    "inbound-before-commit",
    "inbound-after-apply",
];

/// What can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A node's PostgreSQL.
    Server(usize),
    /// A node's relay.
    Relay(usize),
    /// The broker.
    Kafka,
    /// The connections between a node's relay and its database.
    DatabaseLink(usize),
    /// The connections between a node's relay and Kafka.
    KafkaLink(usize),
}

/// Whose backend is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// An application's.
    Load,
    /// The one that drains the queue.
    Outbound,
    /// The one that applies the peer's stream.
    Inbound,
}

/// How something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// SIGKILL to one backend, after which the postmaster restarts all.
    KillBackend(Whose),
    /// `pg_terminate_backend` on the relay's session.
    Terminate(Whose),
    /// Immediate stop.
    Crash,
    /// SIGKILL: to the relay, the broker, or the postmaster.
    Kill,
    /// SIGTERM, and started again.
    Stop,
    /// SIGSTOP for so long.
    Pause(Duration),
    /// All connections end at once.
    Cut,
    /// Nothing passes for so long; connections stay.
    Stall(Duration),
    /// Everything takes so much longer, for so long.
    Slow(Duration, Duration),
    /// Dies when it has passed a place so many times.
    DieAt(&'static str, u32),
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What fails.
    pub part: Part,
    /// How.
    pub how: How,
}

/// Faults that strike together, and after how many more transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Transactions committed on all nodes together since the last step was over.
    pub after: u64,
    /// One fault, or two in different parts.
    pub faults: Vec<Fault>,
}

/// The schedule of a seed on so many nodes; it has no end.
pub fn draw(seed: u64, nodes: usize) -> impl Iterator<Item = Step> {
    let mut dice = Dice::of(seed, 0);
    std::iter::repeat_with(move || {
        let after = dice.between(5, 120);
        let mut together = vec![fault(&mut dice, nodes)];
        if dice.percent(25) {
            let mut second = fault(&mut dice, nodes);
            while second.part == together[0].part {
                second = fault(&mut dice, nodes);
            }
            together.push(second);
        }
        Step { after, faults: together }
    })
}

fn fault(dice: &mut Dice, nodes: usize) -> Fault {
    let node = dice.below(nodes as u64) as usize;
    let (part, how) = match dice.below(100) {
        0..8 => (Part::Server(node), How::KillBackend(dice.pick(&[Whose::Load, Whose::Outbound, Whose::Inbound]))),
        8..14 => (Part::Server(node), How::Terminate(dice.pick(&[Whose::Outbound, Whose::Inbound]))),
        14..22 => (Part::Server(node), How::Crash),
        22..27 => (Part::Server(node), How::Kill),
        27..31 => (Part::Server(node), How::Pause(dice.millis(50, 1200))),
        31..43 => (Part::Relay(node), How::Kill),
        43..46 => (Part::Relay(node), How::Stop),
        46..51 => (Part::Relay(node), How::Pause(dice.millis(50, 1500))),
        51..71 => (Part::Relay(node), How::DieAt(dice.pick(&PLACES), dice.below(6) as u32)),
        71..75 => (Part::Kafka, How::Kill),
        75..79 => (Part::Kafka, How::Pause(dice.millis(50, 1500))),
        79..84 => (Part::DatabaseLink(node), How::Cut),
        84..87 => (Part::DatabaseLink(node), How::Stall(dice.millis(50, 1500))),
        87..89 => (Part::DatabaseLink(node), How::Slow(dice.millis(2, 60), dice.millis(100, 1200))),
        89..94 => (Part::KafkaLink(node), How::Cut),
        94..98 => (Part::KafkaLink(node), How::Stall(dice.millis(50, 1500))),
        _ => (Part::KafkaLink(node), How::Slow(dice.millis(2, 60), dice.millis(100, 1200))),
    };
    Fault { part, how }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Server(node) => write!(out, "PostgreSQL {}", node + 1)?,
            Part::Relay(node) => write!(out, "relay {}", node + 1)?,
            Part::Kafka => write!(out, "Kafka")?,
            Part::DatabaseLink(node) => write!(out, "relay {} to its database", node + 1)?,
            Part::KafkaLink(node) => write!(out, "relay {} to Kafka", node + 1)?,
        }
        match self.how {
            How::KillBackend(whose) => write!(out, ": kill -9 of a backend ({whose:?})"),
            How::Terminate(whose) => write!(out, ": session terminated ({whose:?})"),
            How::Crash => write!(out, ": immediate stop"),
            How::Kill => write!(out, ": kill -9"),
            How::Stop => write!(out, ": SIGTERM"),
            How::Pause(time) => write!(out, ": SIGSTOP for {time:?}"),
            How::Cut => write!(out, ": cut"),
            How::Stall(time) => write!(out, ": stalled for {time:?}"),
            How::Slow(by, time) => write!(out, ": slower by {by:?} for {time:?}"),
            How::DieAt(place, passes) => write!(out, ": dies at {place} after {passes} passes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(seed: u64) -> Vec<Step> {
        draw(seed, 2).take(240).collect()
    }

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn every_kind_of_fault_turns_up_in_a_long_run() {
        let shown: Vec<String> = steps(1).iter().flat_map(|step| &step.faults).map(|fault| fault.to_string()).collect();
        for part in ["kill -9 of a backend", "immediate stop", "Kafka: kill -9", "stalled", "cut", "SIGSTOP", "slower"]
        {
            assert!(shown.iter().any(|fault| fault.contains(part)), "{part}");
        }
        for place in PLACES {
            assert!(shown.iter().any(|fault| fault.contains(place)), "{place}");
        }
    }
}
