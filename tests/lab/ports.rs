//! Free ports on the loopback interface.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::Mutex;

use anyhow::{Context, Result};

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that nobody listens on and that this process has not been given before.
///
/// Another process can still take it first; whoever uses it tries again with another then.
///
/// # Errors
/// If the system has none.
pub fn free() -> Result<u16> {
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?.local_addr()?.port();
        let mut given = GIVEN.lock().expect("no panic while it is held");
        if given.get_or_insert_default().insert(port) {
            return Ok(port);
        }
    }
}
