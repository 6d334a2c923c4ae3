//! One transaction's entries, in their order.

use std::collections::HashMap;
use std::rc::Rc;

use duplex_protocol::entry::{Entry, Relation, Truncate};
use duplex_protocol::record::Position;
use duplex_protocol::stream::EntryReader;
use duplex_protocol::version::Version;
use pgrx::{PgSqlErrorCode, check_for_interrupts, pg_sys};

use crate::apply::careful;
use crate::apply::own::Identity;
use crate::apply::park;
use crate::apply::relation::Target;
use crate::apply::session::Session;
use crate::apply::table::Table;
use crate::apply::triggers::Deferrable;
use crate::apply::truncate::{has_sequences, truncate, with_partitions};
use crate::conflict::arrival::Arrival;
use crate::errors::{Failure, Result};

/// Where a transaction is in its stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    /// The offset of its first record.
    pub(crate) offset: u64,
    /// Its place in the order of its node.
    pub(crate) position: Position,
}

/// What is known of a transaction so far: all that lasts from chunk to chunk.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) source: Source,
    /// How many changes were met so far: the newest one's number.
    pub(crate) changes: u32,
    /// Numbers of the changes that an operator said to leave out; read once the transaction is applied with care.
    pub(crate) skipped: Option<Rc<[u32]>>,
    /// The nodes that changes refer to, in frames.
    pub(crate) origin_frames: Vec<u8>,
    /// The bytes of each descriptor, by the id that changes refer to it by.
    relations: HashMap<u32, Rc<[u8]>>,
    /// Constraints to be checked before the end.
    deferrable: Vec<Deferrable>,
    /// Truncates that followed each other: they may be of one statement, which is only over when another entry comes.
    truncates: Vec<Truncate>,
    /// The number of the first of them.
    pub(crate) first_truncate: u32,
    /// The nodes that replaced versions refer to by number.
    origins: HashMap<u32, String>,
}

impl Progress {
    /// Of a transaction of which nothing was read yet.
    pub(crate) fn of(source: Source) -> Self {
        Self {
            source,
            changes: 0,
            skipped: None,
            origin_frames: Vec::new(),
            relations: HashMap::new(),
            deferrable: Vec::new(),
            truncates: Vec::new(),
            first_truncate: 0,
            origins: HashMap::new(),
        }
    }

    /// The bytes of the descriptor that a change refers to.
    pub(crate) fn descriptor(&self, id: u32) -> Result<&Rc<[u8]>> {
        self.relations.get(&id).ok_or_else(|| {
            Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "change of a relation that was not described")
        })
    }

    /// The tables that wait to be emptied.
    pub(crate) fn truncates(&self) -> &[Truncate] {
        &self.truncates
    }
}

/// Writes entries of one transaction, for the time of one call.
pub(crate) struct Writer<'s> {
    pub(crate) session: &'s mut Session,
    pub(crate) progress: &'s mut Progress,
    pub(crate) version: Version,
    tables: Vec<Table>,
    by_id: HashMap<u32, usize>,
    identity: Identity,
    acting: Option<Acting>,
}

/// The owner that writes now, and the level of settings that began with that.
struct Acting {
    owner: pg_sys::Oid,
    settings: i32,
}

impl<'s> Writer<'s> {
    /// # Safety
    /// Inside a transaction. After an error the writer must only be dropped, and the transaction be aborted.
    pub(crate) unsafe fn begin(session: &'s mut Session, progress: &'s mut Progress, version: Version) -> Self {
        session.versions.begin();
        // SAFETY: inside a transaction; `finish` pops it. Checks, indexes and triggers may run queries.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        let identity = Identity::current();
        Self { session, progress, version, tables: Vec::new(), by_id: HashMap::new(), identity, acting: None }
    }

    /// Writes all whole entries that the reader has.
    pub(crate) fn apply(&mut self, reader: &mut EntryReader) -> Result<()> {
        while let Some(frame) = reader.next_frame() {
            check_for_interrupts!();
            if Entry::is_change(frame) {
                self.progress.changes += 1;
                if careful::is_due(self, frame)? {
                    careful::apply(self, frame)?;
                    continue;
                }
            }
            self.entry(frame)?;
        }
        Ok(())
    }

    /// Writes one entry.
    pub(crate) fn entry(&mut self, frame: &[u8]) -> Result<()> {
        if Entry::is_relation(frame) {
            return self.describe(frame);
        }
        let entry = Entry::decode(frame)?;
        if !matches!(entry, Entry::Truncate(_)) {
            self.truncate()?;
        }
        match entry {
            Entry::Put(put) => {
                let index = self.table(put.relation)?;
                let (tables, mut arrival) = self.arrival();
                // SAFETY: inside a transaction with a snapshot, and `table` acts as the owner.
                unsafe { tables[index].put(&put, &mut arrival)? };
            }
            Entry::Delete(delete) => {
                let index = self.table(delete.relation)?;
                let (tables, mut arrival) = self.arrival();
                // SAFETY: as above.
                unsafe { tables[index].delete(&delete, &mut arrival)? };
            }
            Entry::Truncate(truncate) => {
                if self.progress.truncates.is_empty() {
                    self.progress.first_truncate = self.progress.changes;
                }
                self.progress.truncates.push(truncate);
            }
            Entry::Origin(origin) => {
                park::keep_frame(frame, &mut self.progress.origin_frames);
                self.progress.origins.insert(origin.id, origin.name);
            }
            Entry::Relation(_) => {}
        }
        Ok(())
    }

    /// The end of what this call writes. With `last` the transaction is complete.
    pub(crate) fn finish(mut self, last: bool) -> Result<()> {
        if last {
            self.truncate()?;
        }
        self.close_tables()?;
        if last {
            self.check_deferred();
            careful::finish(&mut self)?;
        }
        self.act_as_oneself();
        // SAFETY: pushed by `begin`.
        unsafe { pg_sys::PopActiveSnapshot() };
        Ok(())
    }

    fn describe(&mut self, frame: &[u8]) -> Result<()> {
        // The id stands right behind the variant's number; the rest is looked at only if the bytes are new.
        let id = Relation::id_in_frame(frame)?;
        self.by_id.remove(&id);
        self.progress.relations.insert(id, self.session.targets.intern(frame));
        Ok(())
    }

    fn target(&mut self, id: u32) -> Result<Rc<Target>> {
        let frame = Rc::clone(self.progress.descriptor(id)?);
        self.act_as_oneself();
        // SAFETY: inside a transaction.
        unsafe { self.session.targets.get(&frame) }
    }

    /// From now on everything is done as `owner`, whose code may run: expressions of indexes, defaults and partition
    /// keys are evaluated as early as when a table is opened and they are planned.
    fn act_as(&mut self, owner: pg_sys::Oid) {
        if self.acting.as_ref().is_some_and(|acting| acting.owner == owner) {
            return;
        }
        self.act_as_oneself();
        self.identity.act_as(owner);
        // SAFETY: a plain call; the level ends in `act_as_oneself`, or with the transaction that an error aborts.
        let settings = unsafe { pg_sys::NewGUCNestLevel() };
        self.acting = Some(Acting { owner, settings });
    }

    /// The end of that. Settings that the owner's code has changed are put back: they are not for the next owner's rows.
    fn act_as_oneself(&mut self) {
        if let Some(acting) = self.acting.take() {
            // SAFETY: the level that `act_as` opened.
            unsafe { pg_sys::AtEOXact_GUC(false, acting.settings) };
            self.identity.restore();
        }
    }

    /// The table with that id, opened if it was not, with its owner being who acts.
    fn table(&mut self, id: u32) -> Result<usize> {
        let index = match self.by_id.get(&id) {
            Some(&index) => index,
            None => {
                let index = self.open(id)?;
                self.by_id.insert(id, index);
                index
            }
        };
        self.act_as(self.tables[index].target.owner);
        Ok(index)
    }

    fn open(&mut self, id: u32) -> Result<usize> {
        // A second look is enough: the first has locked the table, so nobody changes it any more.
        loop {
            let target = self.target(id)?;
            self.act_as(target.owner);
            let (tables, mut arrival) = self.arrival();
            // SAFETY: inside a transaction with a snapshot; closed by `finish`.
            if let Some(mut table) = unsafe { Table::open(target, &mut arrival)? } {
                let register = table.target.registers.tombstones;
                if let Some(other) = tables.iter().find(|other| other.tombstones.are_in(register)) {
                    table.tombstones = other.tombstones.clone();
                }
                tables.push(table);
                return Ok(self.tables.len() - 1);
            }
            check_for_interrupts!();
        }
    }

    /// The tables, and what all changes that arrive at them have in common.
    fn arrival(&mut self) -> (&mut Vec<Table>, Arrival<'_>) {
        let Self { session, progress, version, tables, .. } = self;
        (
            tables,
            Arrival {
                version,
                order: progress.changes.into(),
                versions: &mut session.versions,
                origins: &progress.origins,
            },
        )
    }

    /// Closes all tables, and acts as the session's own role again.
    pub(crate) fn close_tables(&mut self) -> Result<()> {
        self.by_id.clear();
        for index in 0..self.tables.len() {
            if self.tables[index].tombstones.is_unsettled() {
                self.act_as(self.tables[index].target.owner);
                // SAFETY: inside a transaction, and acting as the table's owner.
                unsafe { self.tables[index].tombstones.settle() };
            }
        }
        self.act_as_oneself();
        for mut table in self.tables.drain(..) {
            // SAFETY: the table is open.
            unsafe { table.tombstones.check()? };
            for deferrable in table.deferrable.drain(..) {
                if !self.progress.deferrable.contains(&deferrable) {
                    self.progress.deferrable.push(deferrable);
                }
            }
            // SAFETY: everything went well so far.
            unsafe { table.close() };
        }
        Ok(())
    }

    /// Empties the tables whose truncates have piled up.
    fn truncate(&mut self) -> Result<()> {
        if self.progress.truncates.is_empty() { Ok(()) } else { careful::truncate(self) }
    }

    /// Does so without care.
    pub(crate) fn empty_tables(&mut self) -> Result<()> {
        self.close_tables()?;
        let mut together: Vec<Rc<Target>> = Vec::new();
        let mut restart = None;
        for entry in std::mem::take(&mut self.progress.truncates) {
            let target = self.locked(entry.relation)?;
            // A table without sequences says nothing of its statement.
            // SAFETY: inside a transaction.
            let wanted = unsafe { has_sequences(&target) }.then_some(entry.restart_identity);
            if restart.is_some() && wanted.is_some() && restart != wanted {
                self.truncate_together(&together, restart)?;
                together.clear();
                restart = None;
            }
            restart = restart.or(wanted);
            together.push(target);
        }
        self.truncate_together(&together, restart)
    }

    /// The table that a TRUNCATE concerns, locked for it. Only then is it certain which TRUNCATE was the newest here: the
    /// lock may have been waited for because another was under way.
    fn locked(&mut self, id: u32) -> Result<Rc<Target>> {
        loop {
            let target = self.target(id)?;
            // SAFETY: inside a transaction; a table that was dropped is noticed below, as anything else that changed.
            unsafe { pg_sys::LockRelationOid(target.relid, pg_sys::AccessExclusiveLock.cast_signed()) };
            if !target.is_stale() {
                return Ok(target);
            }
            check_for_interrupts!();
        }
    }

    fn truncate_together(&mut self, targets: &[Rc<Target>], restart: Option<bool>) -> Result<()> {
        // SAFETY: inside a transaction; the tables are locked.
        let members =
            targets.iter().flat_map(|target| unsafe { with_partitions(target.relid, pg_sys::AccessExclusiveLock) });
        self.check_emptied(&members.collect::<Vec<_>>());
        self.act_as(targets[0].owner);
        let (version, versions) = (&self.version, &mut self.session.versions);
        // SAFETY: inside a transaction with a snapshot, with no table open.
        unsafe { truncate(targets, restart.unwrap_or(false), version, versions)? };
        self.act_as_oneself();
        Ok(())
    }

    /// Checks deferred constraints now, as each table's owner: at the commit their triggers would run as the relay.
    fn check_deferred(&mut self) {
        for deferrable in std::mem::take(&mut self.progress.deferrable) {
            self.act_as(deferrable.owner);
            // SAFETY: inside a transaction, acting as the owner.
            unsafe { deferrable.set(false) };
        }
    }

    /// Checks those of tables that are about to be emptied, whose rows could not be looked at any more. The peer had
    /// none to check there, or it would not have emptied them.
    fn check_emptied(&mut self, relids: &[pg_sys::Oid]) {
        let waiting = self.progress.deferrable.clone();
        for deferrable in waiting.iter().filter(|deferrable| relids.contains(&deferrable.relation)) {
            self.act_as(deferrable.owner);
            // SAFETY: inside a transaction, acting as the owner. What follows may wait again.
            unsafe {
                deferrable.set(false);
                deferrable.set(true);
            }
        }
    }
}
