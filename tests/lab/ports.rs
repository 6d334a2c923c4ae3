//! Free ports on the loopback interface.
//!
//! A server that is down for a moment must find its port free when it comes back. So they are not of those that the system
//! gives to outgoing connections, of which tests open thousands.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::Mutex;

use anyhow::{Result, bail};

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// Below are ports of services that a machine may start at any time.
const FIRST: u16 = 10_000;
/// Fewer are not enough to choose from.
const ENOUGH: u16 = 2_000;
const ATTEMPTS: u32 = 1_000;

/// A port that nobody listens on and that this process has not been given before.
///
/// Another process can still take it first; whoever uses it tries again with another then.
///
/// # Errors
/// If the system has none.
pub fn free() -> Result<u16> {
    let range = range();
    for _ in 0..ATTEMPTS {
        let random = RandomState::new().build_hasher().finish() % u64::from(range.end - range.start);
        let port = range.start + random as u16;
        let is_free = TcpListener::bind(("127.0.0.1", port)).is_ok();
        let mut given = GIVEN.lock().expect("no panic while it is held");
        if is_free && given.get_or_insert_default().insert(port) {
            return Ok(port);
        }
    }
    bail!("no free port among {} to {}", range.start, range.end - 1)
}

/// Where to look: below the ports of outgoing connections, if there is room.
fn range() -> Range<u16> {
    let first_outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse::<u16>().ok())
        .filter(|first| first.saturating_sub(FIRST) >= ENOUGH);
    FIRST..first_outgoing.unwrap_or(u16::MAX)
}
