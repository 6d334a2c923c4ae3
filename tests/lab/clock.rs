//! A cluster whose clock is wrong.
//!
//! A library of one page that is loaded before the C library moves the server's wall clock by a fixed time. It is the
//! real server that reads a wrong clock, so commit timestamps, the clock guard and watermarks are what they would be on
//! a machine that is off. `libfaketime` does the same and much more, at the price of a package and of semaphores in /dev/shm.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::folder::Folder;

/// By how much a clock is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// It runs ahead.
    Ahead(Duration),
    /// It lags behind.
    Behind(Duration),
}

impl Skew {
    fn micros(self) -> i128 {
        match self {
            Self::Ahead(by) => by.as_micros().cast_signed(),
            Self::Behind(by) => -by.as_micros().cast_signed(),
        }
    }

    /// The environment in which a server has such a clock.
    ///
    /// # Errors
    /// If there is no C compiler.
    pub(crate) fn environment(self, folder: &Folder) -> Result<Vec<(String, String)>> {
        let library = folder.path().join("clock.so");
        if !library.exists() {
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library);
            let output =
                cc.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/lab/clock.c")).output().context("a C compiler")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(vec![
            ("LD_PRELOAD".into(), library.to_string_lossy().into_owned()),
            ("DUPLEX_CLOCK_OFFSET_US".into(), self.micros().to_string()),
        ])
    }
}
