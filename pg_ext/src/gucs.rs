//! Settings, all under the prefix `duplex`.

use std::ffi::CString;
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

#[unsafe(link_section = ".data.duplex_hot")]
static ORIGIN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static TRANSACTION_BUFFER: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
static QUEUE_SEGMENT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
#[unsafe(link_section = ".data.duplex_hot")]
static QUEUE_MAX_BYTES: GucSetting<i32> = GucSetting::<i32>::new(-1);
static QUEUE_FULL: GucSetting<QueueFull> = GucSetting::<QueueFull>::new(QueueFull::Warn);
static CONFLICT_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 60);
static MAX_CLOCK_SKEW: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static WRITE_BEFORE_CAUGHT_UP: GucSetting<bool> = GucSetting::<bool>::new(false);
static HEARTBEAT_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(5_000);

/// What happens to a transaction that finds the queue beyond its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, pgrx::PostgresGucEnum)]
pub(crate) enum QueueFull {
    /// It commits, with a warning.
    #[name = c"warn"]
    Warn,
    /// It fails.
    #[name = c"refuse"]
    Refuse,
}

/// Defines the settings; called from `_PG_init`.
pub(crate) fn init() {
    GucRegistry::define_string_guc(
        c"duplex.origin",
        c"Name of the node whose changes this session applies.",
        c"Not empty: this session is replication, and capture ignores what it writes. Set by duplex.apply_open.",
        &ORIGIN,
        GucContext::Suset,
        GucFlags::NO_RESET_ALL,
    );
    GucRegistry::define_int_guc(
        c"duplex.transaction_buffer",
        c"Captured changes of one transaction kept in memory before they spill to a temporary file.",
        c"Measured after compression.",
        &TRANSACTION_BUFFER,
        1024,
        1024 * 1024,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"duplex.queue_segment_size",
        c"Size at which the queue moves on to its next table, so that this one can be truncated.",
        c"",
        &QUEUE_SEGMENT_SIZE,
        64,
        1024 * 1024,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"duplex.queue_max_bytes",
        c"Size of the queue on disk beyond which duplex.queue_full applies.",
        c"-1 means no limit. The queue grows while Kafka or the relay is away.",
        &QUEUE_MAX_BYTES,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_enum_guc(
        c"duplex.queue_full",
        c"What happens to a transaction that finds the queue beyond duplex.queue_max_bytes.",
        c"warn: it commits with a warning; refuse: it fails.",
        &QUEUE_FULL,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"duplex.max_clock_skew",
        c"How far a peer's clock may run ahead before its stream stops.",
        c"Below this, applying waits until the local clock has passed the transaction's timestamp.",
        &MAX_CLOCK_SKEW,
        0,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"duplex.heartbeat_interval",
        c"How often this node publishes its watermarks.",
        c"Peers forget no deleted key before they have heard that nothing older will come.",
        &HEARTBEAT_INTERVAL,
        100,
        3_600_000,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"duplex.write_before_caught_up",
        c"Tables with counters or merged columns take writes while a promoted server lacks what it had applied.",
        c"What is written then may not become the same on all nodes.",
        &WRITE_BEFORE_CAUGHT_UP,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"duplex.conflict_retention",
        c"How long records of conflicts are kept in duplex.conflict_history.",
        c"Older ones are removed by and by; duplex.conflict_stats goes on counting them.",
        &CONFLICT_RETENTION,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    // SAFETY: a plain call with a string that lives forever.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"duplex".as_ptr()) };
}

/// Whether this session is replication. On the path of every row: no allocation, one load and one comparison.
#[inline]
pub(crate) fn is_replication() -> bool {
    // SAFETY: the GUC machinery owns the variable; it is null or a NUL-terminated string, and only this thread runs.
    unsafe {
        let value = *ORIGIN.as_ptr();
        !value.is_null() && *value != 0
    }
}

/// The peer whose changes this session applies, or `None` in an ordinary session.
pub(crate) fn origin() -> Option<String> {
    ORIGIN.get().map(|name| name.to_string_lossy().into_owned()).filter(|name| !name.is_empty())
}

/// Bytes of compressed changes that a transaction keeps in memory.
pub(crate) fn transaction_buffer() -> usize {
    TRANSACTION_BUFFER.get() as usize * 1024
}

/// Bytes at which the queue moves on to its next table: a part of its limit at most, or a queue that was full once
/// could never be truncated below it.
pub(crate) fn queue_segment_size() -> u64 {
    let segment = QUEUE_SEGMENT_SIZE.get() as u64 * 1024;
    queue_limit().map_or(segment, |(limit, _)| segment.min(limit / 4))
}

/// Bytes that the queue may have on disk, and what happens beyond; `None` without a limit. Every captured transaction asks.
#[inline]
pub(crate) fn queue_limit() -> Option<(u64, QueueFull)> {
    // SAFETY: the GUC machinery owns the variable, and only this thread runs, which `get` would make sure of first.
    let kilobytes = unsafe { *QUEUE_MAX_BYTES.as_ptr() };
    let kilobytes = u64::try_from(kilobytes).ok()?;
    Some((kilobytes << 10, QUEUE_FULL.get()))
}

/// The furthest that a peer's clock may run ahead, in microseconds.
pub(crate) fn max_clock_skew() -> i64 {
    i64::from(MAX_CLOCK_SKEW.get()) * 1000
}

/// Whether what a promoted server lacks keeps nobody from writing.
pub(crate) fn writes_before_caught_up() -> bool {
    WRITE_BEFORE_CAUGHT_UP.get()
}

/// How often this node publishes its watermarks.
pub(crate) fn heartbeat_interval() -> Duration {
    Duration::from_millis(HEARTBEAT_INTERVAL.get().unsigned_abs().into())
}
