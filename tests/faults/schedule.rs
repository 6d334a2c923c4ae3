//! Which faults strike, and when: drawn from a seed alone, whatever happens.
//!
//! "When" is counted in committed transactions, not in seconds, so that a slow machine and a fast one go through the
//! same steps. Faults are dealt from a shuffled deck that holds every kind, so that a run of some length has them all.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::Place;
use crate::dice::Dice;

/// What can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A node's PostgreSQL.
    Server(usize),
    /// One of a node's two relays.
    Relay(usize, Role),
    /// The broker.
    Kafka,
    /// The connections between a node's relays and its database.
    DatabaseLink(usize),
    /// The connections between a node's relays and Kafka.
    KafkaLink(usize),
}

/// What a relay does at the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It publishes.
    Active,
    /// It waits for the other's end.
    Standby,
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
    /// SIGKILL: to the relay, the broker, or the postmaster. Started again at once.
    Kill,
    /// SIGTERM, and started again.
    Stop,
    /// SIGKILL, and started again only when the other relay has taken over.
    TakeOver,
    /// SIGSTOP for so long.
    Pause(Duration),
    /// All connections end at once.
    Cut,
    /// Nothing passes for so long; connections stay.
    Stall(Duration),
    /// Everything takes so much longer, for so long.
    Slow(Duration, Duration),
    /// Dies when it has passed a place so many times.
    DieAt(Place, u32),
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
    let mut deck = Vec::new();
    std::iter::repeat_with(move || {
        let after = dice.between(5, 120);
        let first = deck.pop().unwrap_or_else(|| {
            deck = shuffled(&mut dice, nodes);
            deck.pop().expect("a deck holds something")
        });
        let mut faults = vec![first];
        if dice.percent(25)
            && let Some(beside) = deck.iter().rposition(|fault| fault.goes_with(first))
        {
            faults.push(deck.remove(beside));
        }
        Step { after, faults }
    })
}

/// All kinds of faults, by name: what a deck holds.
pub fn kinds() -> BTreeSet<String> {
    shuffled(&mut Dice::new(0), 1).iter().map(Fault::kind).collect()
}

/// Draws what is left to chance in a fault on this node.
type Card = fn(usize, &mut Dice) -> (Part, How);

/// How often which card is in a deck. The places where a relay dies come on top.
const CARDS: [(usize, Card); 23] = [
    (3, |node, _| (Part::Server(node), How::KillBackend(Whose::Load))),
    (3, |node, _| (Part::Server(node), How::KillBackend(Whose::Outbound))),
    (3, |node, _| (Part::Server(node), How::KillBackend(Whose::Inbound))),
    (3, |node, _| (Part::Server(node), How::Terminate(Whose::Outbound))),
    (3, |node, _| (Part::Server(node), How::Terminate(Whose::Inbound))),
    (7, |node, _| (Part::Server(node), How::Crash)),
    (5, |node, _| (Part::Server(node), How::Kill)),
    (4, |node, dice| (Part::Server(node), How::Pause(dice.millis(50, 1200)))),
    (5, |node, _| (Part::Relay(node, Role::Active), How::Kill)),
    (3, |node, _| (Part::Relay(node, Role::Standby), How::Kill)),
    (5, |node, _| (Part::Relay(node, Role::Active), How::TakeOver)),
    (2, |node, _| (Part::Relay(node, Role::Active), How::Stop)),
    (1, |node, _| (Part::Relay(node, Role::Standby), How::Stop)),
    (3, |node, dice| (Part::Relay(node, Role::Active), How::Pause(dice.millis(50, 1500)))),
    (1, |node, dice| (Part::Relay(node, Role::Standby), How::Pause(dice.millis(50, 1500)))),
    (3, |_, _| (Part::Kafka, How::Kill)),
    (3, |_, dice| (Part::Kafka, How::Pause(dice.millis(50, 1500)))),
    (4, |node, _| (Part::DatabaseLink(node), How::Cut)),
    (3, |node, dice| (Part::DatabaseLink(node), How::Stall(dice.millis(50, 1500)))),
    (2, |node, dice| (Part::DatabaseLink(node), slow(dice))),
    (4, |node, _| (Part::KafkaLink(node), How::Cut)),
    (3, |node, dice| (Part::KafkaLink(node), How::Stall(dice.millis(50, 1500)))),
    (2, |node, dice| (Part::KafkaLink(node), slow(dice))),
];

/// How often each place is in a deck.
const PLACES: usize = 2;

fn slow(dice: &mut Dice) -> How {
    How::Slow(dice.millis(2, 60), dice.millis(100, 1200))
}

fn shuffled(dice: &mut Dice, nodes: usize) -> Vec<Fault> {
    let mut deck = Vec::new();
    let cards = CARDS.iter().flat_map(|&(times, card)| std::iter::repeat_n(card, times));
    for card in cards {
        let (part, how) = card(dice.index(nodes), dice);
        deck.push(Fault { part, how });
    }
    for place in Place::ALL.iter().flat_map(|&place| std::iter::repeat_n(place, PLACES)) {
        let (part, how) = (Part::Relay(dice.index(nodes), Role::Active), How::DieAt(place, passes(place, dice)));
        deck.push(Fault { part, how });
    }
    dice.shuffle(&mut deck);
    deck
}

/// How often a relay lives through a place before it dies there.
fn passes(place: Place, dice: &mut Dice) -> u32 {
    match place {
        // Once a take-over, and it is started for that one.
        Place::OutboundAfterOpen | Place::OutboundAfterHello | Place::OutboundAfterTail => 0,
        // Large transactions are rare.
        Place::OutboundWithinTransaction => dice.below(3) as u32,
        Place::InboundBeforeCommit => dice.below(2) as u32,
        Place::OutboundAfterDrain
        | Place::OutboundAfterPublish
        | Place::OutboundAfterConfirm
        | Place::InboundBeforeApply
        | Place::InboundAfterApply => dice.below(6) as u32,
    }
}

impl Part {
    /// What is struck at a time: one of a node's relays means both.
    fn struck(self) -> Self {
        match self {
            Self::Relay(node, _) => Self::Relay(node, Role::Active),
            other => other,
        }
    }

    fn node(self) -> Option<usize> {
        match self {
            Self::Server(node) | Self::Relay(node, _) | Self::DatabaseLink(node) | Self::KafkaLink(node) => Some(node),
            Self::Kafka => None,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Server(_) => "PostgreSQL",
            Self::Relay(_, Role::Active) => "active relay",
            Self::Relay(_, Role::Standby) => "standby relay",
            Self::Kafka => "Kafka",
            Self::DatabaseLink(_) => "relay to its database",
            Self::KafkaLink(_) => "relay to Kafka",
        }
    }
}

impl How {
    fn kind(self) -> String {
        match self {
            Self::KillBackend(whose) => format!("kill -9 of a backend ({whose:?})"),
            Self::Terminate(whose) => format!("session terminated ({whose:?})"),
            Self::Crash => "immediate stop".into(),
            Self::Kill => "kill -9".into(),
            Self::Stop => "SIGTERM".into(),
            Self::TakeOver => "kill -9 until the other has taken over".into(),
            Self::Pause(_) => "SIGSTOP".into(),
            Self::Cut => "cut".into(),
            Self::Stall(_) => "stalled".into(),
            Self::Slow(..) => "slower".into(),
            Self::DieAt(place, _) => format!("dies at {}", place.name()),
        }
    }
}

impl Fault {
    /// What kind of fault it is: all but the node and what chance has added.
    pub fn kind(&self) -> String {
        format!("{}: {}", self.part.kind(), self.how.kind())
    }

    /// Whether both may strike at once. What waits for a take-over can tell how long it took only if nothing else is
    /// down.
    fn goes_with(self, other: Self) -> bool {
        let alone = |fault: Self| fault.how == How::TakeOver;
        self.part.struck() != other.part.struck() && !alone(self) && !alone(other)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = self.part.node() {
            write!(out, "{}: ", node + 1)?;
        }
        write!(out, "{}", self.kind())?;
        match self.how {
            How::Pause(time) | How::Stall(time) => write!(out, " for {time:?}"),
            How::Slow(by, time) => write!(out, " by {by:?} for {time:?}"),
            How::DieAt(_, passes) => write!(out, " after {passes} passes"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(seed: u64) -> impl Iterator<Item = Fault> {
        draw(seed, 2).flat_map(|step| step.faults)
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let steps = |seed| draw(seed, 2).take(240).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn every_kind_of_fault_turns_up_twice_in_a_long_run() {
        for seed in 1..20 {
            for kind in kinds() {
                let times = faults(seed).take(300).filter(|fault| fault.kind() == kind).count();
                assert!(times >= 2, "{kind}: {times} times with seed {seed}");
            }
        }
    }

    #[test]
    fn every_place_is_a_kind() {
        let kinds = kinds();
        for place in Place::ALL {
            assert!(kinds.iter().any(|kind| kind.ends_with(&format!("dies at {}", place.name()))), "{place:?}");
        }
    }

    #[test]
    fn two_faults_at_once_are_in_different_parts_and_a_take_over_comes_alone() {
        for step in draw(3, 2).take(2000) {
            let [first, second] = step.faults[..] else { continue };
            assert!(first.goes_with(second), "{first} + {second}");
            assert_ne!(first.part.struck(), second.part.struck());
            assert!(first.how != How::TakeOver && second.how != How::TakeOver);
        }
    }
}
