//! Bringing back what the database has lost of its own stream.
//!
//! A standby that was promoted before it had received everything lacks transactions that are published already: the
//! peers have them, and this database never will, unless it takes them from its own topic. They are applied as a peer's
//! are, in a session marked with the node's own name: not captured again, with the version that they always had, each
//! together with its offset, so that it comes back once, however often this is cut off. One that cannot be applied is for a
//! person to decide, as in a peer's stream; nothing is published before.

use std::collections::HashMap;

use super::source::Source;
use super::tail::{Found, Identity, Judgement, Piece};
use crate::errors::Error;
use crate::inbound::apply::Applier;
use crate::inbound::batch::Batch;
use crate::inbound::consumer::Fetched;
use crate::node::Node;
use crate::suspicion::Suspicion;

/// Sorts what the tail of the topic holds: what the database has is remembered, what it lacks is applied.
#[derive(Debug)]
pub struct Replay<'s> {
    source: &'s Source,
    node: &'s Node,
    suspicion: &'s Suspicion,
    /// The node's name.
    own: &'s str,
    back: Option<Back>,
    /// Transactions of one record that the database was not asked about yet.
    batch: Batch,
    identities: Vec<Identity>,
    /// Where the longer transaction that is being read begins.
    open_since: i64,
    /// Whether the database lacks it.
    lacks_open: bool,
    published: HashMap<Identity, Found>,
    replayed: usize,
}

/// The session that applies, opened once there is something to apply.
#[derive(Debug)]
struct Back {
    applier: Applier,
    /// What is below has come back before.
    next_offset: i64,
    /// A person said to leave out the next transaction that would come back.
    skips: bool,
}

impl Back {
    /// Whether a transaction that ends at this offset is the one to leave out.
    fn skips(&mut self, offset: i64) -> bool {
        offset >= self.next_offset && std::mem::take(&mut self.skips)
    }
}

impl<'s> Replay<'s> {
    /// For the node of this name, which `source` drains; `suspicion` is of what failed here before.
    pub fn new(source: &'s Source, node: &'s Node, suspicion: &'s Suspicion, own: &'s str) -> Self {
        Self {
            source,
            node,
            suspicion,
            own,
            back: None,
            batch: Batch::default(),
            identities: Vec::new(),
            open_since: 0,
            lacks_open: false,
            published: HashMap::new(),
            replayed: 0,
        }
    }

    /// Whether a record of this node's belongs to the stream.
    pub fn is_for(&self, node: &str) -> bool {
        self.own == node
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Apply`].
    pub async fn take(&mut self, fetched: Fetched, identity: Identity, judgement: Judgement) -> Result<(), Error> {
        if judgement.voids {
            self.forget().await?;
        }
        match judgement.piece {
            Piece::Nothing => Ok(()),
            Piece::Whole => {
                self.batch.push(fetched);
                self.identities.push(identity);
                if self.batch.has_room() { Ok(()) } else { self.flush().await }
            }
            Piece::Chunk { first, last } => self.chunk(&fetched, identity, first, last).await,
            Piece::Abandons => {
                self.flush().await?;
                self.abandon().await
            }
        }
    }

    /// What has come so far is void.
    async fn forget(&mut self) -> Result<(), Error> {
        self.batch = Batch::default();
        self.identities.clear();
        self.published.clear();
        self.abandon().await
    }

    async fn abandon(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.lacks_open) {
            self.back().await?.applier.abandon().await?;
        }
        Ok(())
    }

    async fn chunk(&mut self, fetched: &Fetched, identity: Identity, first: bool, last: bool) -> Result<(), Error> {
        if first {
            self.flush().await?;
            self.open_since = fetched.offset;
            self.lacks_open = self.source.missing(&[identity]).await?.contains(&true);
        }
        if self.lacks_open {
            self.lacking_chunk(fetched, first, last).await?;
        } else if last {
            self.published.insert(identity, Found { first: self.open_since, last: fetched.offset });
        }
        if last && std::mem::take(&mut self.lacks_open) {
            self.replayed += 1;
        }
        Ok(())
    }

    async fn lacking_chunk(&mut self, fetched: &Fetched, first: bool, last: bool) -> Result<(), Error> {
        let back = self.back().await?;
        if !back.skips || fetched.offset < back.next_offset {
            return back.applier.chunk(fetched, first, last).await;
        }
        if last && back.skips(fetched.offset) { leave_out(back, fetched.offset).await } else { Ok(()) }
    }

    /// Asks the database about the records that have come together, and applies those that it lacks.
    async fn flush(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let missing = self.source.missing(&self.identities).await?;
        let Batch { records, offsets, .. } = std::mem::take(&mut self.batch);
        let mut lacking = Batch::default();
        for (((value, offset), identity), missing) in
            records.into_iter().zip(offsets).zip(self.identities.drain(..)).zip(missing)
        {
            if missing {
                lacking.push(Fetched { offset, before: 0, value });
            } else {
                self.published.insert(identity, Found { first: offset, last: offset });
            }
        }
        if !lacking.is_empty() {
            self.replayed += lacking.records.len();
            self.bring_back(&lacking).await?;
        }
        Ok(())
    }

    /// Applies transactions of one record each. The database passes over those that have come back before, or are left out.
    async fn bring_back(&mut self, lacking: &Batch) -> Result<(), Error> {
        let back = self.back().await?;
        if let Some(&offset) = lacking.offsets.iter().find(|&&offset| back.skips(offset)) {
            leave_out(back, offset).await?;
        }
        back.applier.batch(lacking).await
    }

    async fn back(&mut self) -> Result<&mut Back, Error> {
        if self.back.is_none() {
            let (applier, opening) = Applier::open(&self.node.settings, self.own).await?;
            let orders = self.node.control.orders(self.own, opening.next_offset).await?;
            if orders.careful || self.suspicion.is_ahead_of(opening.next_offset) {
                applier.careful().await?;
            }
            tracing::warn!(
                from = opening.next_offset,
                "this database lacks transactions of its own that are published, as one does that was promoted before it \
                 had all: bringing them back from the topic"
            );
            self.back = Some(Back { applier, next_offset: opening.next_offset, skips: orders.skip_next });
        }
        self.back.as_mut().ok_or(Error::Ending)
    }

    /// The end of the tail: what is published and will be drained again, and how many transactions were brought back.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub async fn finish(mut self) -> Result<(HashMap<Identity, Found>, usize), Error> {
        self.flush().await?;
        self.abandon().await?;
        Ok((self.published, self.replayed))
    }
}

/// Leaves out the transaction that ends at this offset.
async fn leave_out(back: &Back, offset: i64) -> Result<(), Error> {
    tracing::warn!(offset, "a transaction that was lost here does not come back, as an operator said");
    back.applier.skip(offset).await
}
