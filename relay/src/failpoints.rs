//! Places where a test makes the relay die as if by kill -9.
//!
//! Built with the feature `failpoints`, `FAILPOINTS="outbound-after-publish=3*off->return"` lets the process abort the
//! fourth time it comes by that place. Without the feature all of this is nothing.

/// The names of these places, in the order in which a change comes by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// Records were drained, none of them is published.
    OutboundAfterDrain,
    /// Kafka has been given a part of a transaction, and not its last chunk.
    OutboundWithinTransaction,
    /// Kafka has acknowledged records that are not confirmed.
    OutboundAfterPublish,
    /// The database knows that they are published.
    OutboundAfterConfirm,
    /// Records were fetched, none of them is applied.
    InboundBeforeApply,
    /// A transaction of several chunks is applied whole and not committed.
    InboundBeforeCommit,
    /// The database has committed them.
    InboundAfterApply,
}

/// Comes by a place.
pub(crate) fn pass(place: Place) {
    let name = match place {
        Place::OutboundAfterDrain => "outbound-after-drain",
        Place::OutboundWithinTransaction => "outbound-within-transaction",
        Place::OutboundAfterPublish => "outbound-after-publish",
        Place::OutboundAfterConfirm => "outbound-after-confirm",
        Place::InboundBeforeApply => "inbound-before-apply",
        Place::InboundBeforeCommit => "inbound-before-commit",
        Place::InboundAfterApply => "inbound-after-apply",
    };
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}

/// Reads `FAILPOINTS`; to be kept for as long as the places are to work.
#[cfg(feature = "failpoints")]
pub(crate) fn set_up() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}
