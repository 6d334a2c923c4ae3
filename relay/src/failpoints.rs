//! Places where a test makes the relay die as if by kill -9.
//!
//! Built with the feature `failpoints`, `FAILPOINTS="outbound-after-publish=3*off->return"` lets the process abort the
//! fourth time it comes by that place. Without the feature all of this is nothing.

/// Makes the places and the list of them out of one table, so that no test has a list of its own to forget one in.
macro_rules! places {
    ($($(#[$what:meta])* $place:ident = $name:literal,)*) => {
        /// These places, in the order in which a change comes by.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Place {
            $($(#[$what])* $place,)*
        }

        impl Place {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$place,)*];

            /// The name that `FAILPOINTS` knows it by.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$place => $name,)*
                }
            }
        }
    };
}

places! {
    /// Take-over: the database has given the node's place and a generation, of which Kafka knows nothing.
    OutboundAfterOpen = "outbound-after-open",
    /// Take-over: the hello is in the topic, whose end was not read back.
    OutboundAfterHello = "outbound-after-hello",
    /// Take-over: the topic's end was read back and what the database lacked is brought back; nothing was drained.
    OutboundAfterTail = "outbound-after-tail",
    /// Records were drained, none of them is published.
    OutboundAfterDrain = "outbound-after-drain",
    /// Kafka has been given a part of a transaction, and not its last chunk.
    OutboundWithinTransaction = "outbound-within-transaction",
    /// Kafka has acknowledged records that are not confirmed.
    OutboundAfterPublish = "outbound-after-publish",
    /// The database knows that they are published.
    OutboundAfterConfirm = "outbound-after-confirm",
    /// Records were fetched, none of them is applied.
    InboundBeforeApply = "inbound-before-apply",
    /// A transaction of several chunks is applied whole and not committed.
    InboundBeforeCommit = "inbound-before-commit",
    /// The database has committed them.
    InboundAfterApply = "inbound-after-apply",
}

/// Comes by a place.
pub(crate) fn pass(place: Place) {
    let name = place.name();
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}

/// Reads `FAILPOINTS`; to be kept for as long as the places are to work.
#[cfg(feature = "failpoints")]
pub(crate) fn set_up() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}
