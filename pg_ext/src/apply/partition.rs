//! Writing to the right partition of a partitioned table.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use crate::apply::relation::Target;
use crate::apply::table::{Leaf, node};
use crate::apply::triggers::Deferrable;
use crate::errors::Result;

// Not among pgrx's bindings. The declarations are those of executor/execPartition.h, the same in PostgreSQL 15 to 18;
// the routing's own structure is private to the server and only passed on. Each call goes through `guarded`, which turns
// an ERROR inside into a panic.
unsafe extern "C-unwind" {
    fn ExecSetupPartitionTupleRouting(estate: *mut pg_sys::EState, rel: pg_sys::Relation) -> *mut c_void;
    fn ExecFindPartition(
        mtstate: *mut pg_sys::ModifyTableState,
        root: *mut pg_sys::ResultRelInfo,
        routing: *mut c_void,
        slot: *mut pg_sys::TupleTableSlot,
        estate: *mut pg_sys::EState,
    ) -> *mut pg_sys::ResultRelInfo;
    fn ExecCleanupTupleRouting(mtstate: *mut pg_sys::ModifyTableState, routing: *mut c_void);
    #[cfg(not(feature = "pg15"))]
    fn ExecGetRootToChildMap(
        info: *mut pg_sys::ResultRelInfo,
        estate: *mut pg_sys::EState,
    ) -> *mut pg_sys::TupleConversionMap;
}

/// Finds the partition of a row, and keeps those found open.
#[derive(Debug)]
pub(crate) struct Routing {
    root: *mut pg_sys::ResultRelInfo,
    state: *mut pg_sys::ModifyTableState,
    routing: *mut c_void,
    leaves: HashMap<*mut pg_sys::ResultRelInfo, Leaf>,
    /// The one found last.
    current: *mut pg_sys::ResultRelInfo,
}

impl Routing {
    /// # Safety
    /// The relation is open and partitioned; the current memory is the executor state's.
    pub(crate) unsafe fn new(
        estate: *mut pg_sys::EState,
        rel: pg_sys::Relation,
        root: *mut pg_sys::ResultRelInfo,
    ) -> Self {
        // SAFETY: as the caller promises; the server's own apply worker makes its state of a plan just so.
        unsafe {
            let state: *mut pg_sys::ModifyTableState = node(pg_sys::NodeTag::T_ModifyTableState);
            (*state).ps.state = estate;
            (*state).operation = pg_sys::CmdType::CMD_INSERT;
            (*state).resultRelInfo = root;
            (*state).rootResultRelInfo = root;
            let routing = guarded(|| ExecSetupPartitionTupleRouting(estate, rel));
            Self { root, state, routing, leaves: HashMap::new(), current: std::ptr::null_mut() }
        }
    }

    /// The partition found last, with the row as it was written there.
    pub(crate) fn current(&mut self) -> &mut Leaf {
        self.leaves.get_mut(&self.current).expect("a partition was found before")
    }

    /// The partition of the row in `remote`, with the row put into its layout.
    ///
    /// # Safety
    /// The table is open; `remote` has the key, which holds all that partitions are made by.
    pub(crate) unsafe fn leaf(
        &mut self,
        estate: *mut pg_sys::EState,
        remote: *mut pg_sys::TupleTableSlot,
        target: &Target,
        deferrable: &mut Vec<Deferrable>,
    ) -> Result<&mut Leaf> {
        // SAFETY: as the caller promises; the executor keeps each partition's info until `close`.
        unsafe {
            let (state, root, routing) = (self.state, self.root, self.routing);
            let info = guarded(|| ExecFindPartition(state, root, routing, remote, estate));
            self.current = info;
            #[cfg(feature = "pg15")]
            let map = (*info).ri_RootToPartitionMap;
            #[cfg(not(feature = "pg15"))]
            let map = guarded(|| ExecGetRootToChildMap(info, estate));
            let leaf = match self.leaves.entry(info) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let caller = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
                    let desc = (*(*info).ri_RelationDesc).rd_att;
                    let write = pg_sys::ExecInitExtraTupleSlot(estate, desc, &raw const pg_sys::TTSOpsVirtual);
                    let layout = (!map.is_null()).then(|| {
                        let map = &*(*map).attrMap;
                        std::slice::from_raw_parts(map.attnums, map.maplen as usize)
                    });
                    let leaf = Leaf::new(info, estate, target, layout, write, deferrable)?;
                    pg_sys::MemoryContextSwitchTo(caller);
                    place.insert(leaf)
                }
            };
            if map.is_null() {
                copy(remote, leaf.write);
            } else {
                pg_sys::execute_attr_map_slot((*map).attrMap, remote, leaf.write);
            }
            Ok(leaf)
        }
    }

    /// # Safety
    /// As `Table::close`.
    pub(crate) unsafe fn close(self) {
        // SAFETY: made by `new`; closes the partitions and their indexes.
        unsafe {
            self.leaves.into_values().for_each(|leaf| leaf.finder.close());
            guarded(|| ExecCleanupTupleRouting(self.state, self.routing));
        }
    }
}

/// Copies a row between virtual slots of one layout; what values point to is shared.
unsafe fn copy(from: *mut pg_sys::TupleTableSlot, to: *mut pg_sys::TupleTableSlot) {
    // SAFETY: both slots have the layout's number of attributes, and `from` is filled.
    unsafe {
        pg_sys::ExecStoreAllNullTuple(to);
        let count = (*(*to).tts_tupleDescriptor).natts as usize;
        std::ptr::copy_nonoverlapping((*from).tts_values, (*to).tts_values, count);
        std::ptr::copy_nonoverlapping((*from).tts_isnull, (*to).tts_isnull, count);
    }
}
