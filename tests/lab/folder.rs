//! One temporary folder that goes away with the process, whatever ends it.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result};

/// Waits until its standard input closes, which happens when the process that started it ends in any way; wakes
/// processes that were paused, so that they can end, and removes the folder. Servers may still be writing for a moment.
const GUARD: &str = r#"
trap '' INT TERM HUP
pids=
while read -r pid; do pids="$pids $pid"; done
[ -z "$pids" ] || kill -CONT $pids 2>/dev/null
n=0
while [ -e "$1" ] && [ $n -lt 300 ]; do rm -rf "$1" 2>/dev/null || sleep 0.1; n=$((n + 1)); done
"#;

/// The folder, and a small process that removes it once this process is gone.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    guard: Mutex<Guard>,
}

#[derive(Debug)]
struct Guard {
    child: Child,
    input: Option<ChildStdin>,
}

impl Folder {
    /// Makes a folder under `$TMPDIR` or `/tmp`. Anybody may enter it: servers run as another user where we are root.
    ///
    /// # Errors
    /// If the folder or its guard cannot be made.
    pub fn create() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        // A short path: a Unix socket's may not be longer than 107 bytes.
        let path = tempfile::Builder::new().prefix("duplex-lab-").tempdir().context("temporary folder")?.keep();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::write(path.join("owner.pid"), std::process::id().to_string())?;
        let keep = std::env::var_os("DUPLEX_LAB_KEEP").is_some();
        let mut child = Command::new("sh")
            .args(["-c", if keep { "cat >/dev/null" } else { GUARD }, "duplex-lab-guard"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C at the terminal is for us, not for the guard.
            .process_group(0)
            .spawn()
            .context("starting the guard of the temporary folder")?;
        let input = child.stdin.take();
        Ok(Self { path, guard: Mutex::new(Guard { child, input }) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the guard wake this process in the end: one that is paused cannot die of anything but SIGKILL.
    pub fn watch(&self, pid: i32) {
        if let Ok(mut guard) = self.guard.lock()
            && let Some(input) = guard.input.as_mut()
        {
            // A guard that is gone cannot be told; the folder then stays, which `make clean-lab` mends.
            let _ = writeln!(input, "{pid}").and_then(|()| input.flush());
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Ok(mut guard) = self.guard.lock() {
            guard.input = None;
            let _ = guard.child.wait();
        }
    }
}
