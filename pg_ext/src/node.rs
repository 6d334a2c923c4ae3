//! Who this node and its peers are, as the tables of schema `duplex` say.

use pgrx::{PgSqlErrorCode, Spi, pg_sys};

use crate::errors::{Failure, Result};

/// This node's row in `duplex.node`.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The node's name, which is also the name of its stream.
    pub(crate) name: String,
    /// The node's identity, made at random when it was created.
    pub(crate) id: [u8; 16],
}

impl Node {
    /// Reads who this node is. Uses SPI: not for the path of a row.
    ///
    /// # Errors
    /// 55000 if `duplex.create_node` was never called here.
    pub(crate) fn load() -> Result<Self> {
        let row = Spi::get_two::<String, pgrx::Uuid>("select name, node_id from duplex.node")
            .ok()
            .and_then(|(name, id)| Some(Self { name: name?, id: *id?.as_bytes() }));
        row.ok_or_else(|| {
            Failure::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "this database is not a pg_duplex node yet",
            )
            .hint("Call duplex.create_node('a name') first.")
        })
    }
}

/// Makes sure that this server takes writes: on a standby what follows would fail in the middle, by other names.
///
/// # Errors
/// 25006 on a standby.
pub(crate) fn refuse_standby() -> Result<()> {
    // SAFETY: reads shared memory.
    if !unsafe { pg_sys::RecoveryInProgress() } {
        return Ok(());
    }
    Err(Failure::new(PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION, "this server is a standby and takes no writes")
        .hint("Give the relay the address of the primary, or promote this server."))
}

/// The replication origin under which a peer's changes are applied in this database.
///
/// Replication origins belong to the whole cluster, so the name holds the database's oid: two databases of one cluster
/// may have the same peer.
pub(crate) fn origin_name(peer: &str) -> String {
    format!("{}{peer}", origin_prefix())
}

/// The peer whose changes a replication origin of this database stands for; `None` for an origin of somebody else's.
pub(crate) fn peer_of_origin(origin: &str) -> Option<&str> {
    origin.strip_prefix(&origin_prefix())
}

fn origin_prefix() -> String {
    // SAFETY: a global that the backend sets before any extension code runs.
    let database = unsafe { pg_sys::MyDatabaseId };
    format!("duplex_{}_", database.to_u32())
}
