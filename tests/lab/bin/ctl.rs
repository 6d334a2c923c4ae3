//! `duplex-lab ctl`: one command for a lab that is up.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::control;

/// Arguments of `ctl`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The lab's folder; not needed while only one lab is up.
    #[arg(long, env = "DUPLEX_LAB", value_name = "FOLDER")]
    lab: Option<PathBuf>,
    /// status, quit, or one of start, stop, kill, pause, resume, restart with a part: kafka, pg1, relay1, pg2, …
    #[arg(required = true, value_names = ["WORD", "PART"], num_args = 1..=2)]
    command: Vec<String>,
}

/// Sends the command and prints the answer.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let folder = match arguments.lab {
        Some(folder) => folder,
        None => only_lab(&std::env::temp_dir())?,
    };
    let path = control::socket(&folder);
    let mut stream = UnixStream::connect(&path).await.with_context(|| format!("no lab is up at {}", path.display()))?;
    stream.write_all(format!("{}\n", arguments.command.join(" ")).as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    let shown: Value = serde_json::from_str(&answer).context("the lab ended before it answered")?;
    println!("{shown}");
    Ok(if shown.get("error").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The one lab under the temporary folder that can be controlled.
fn only_lab(temporary: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(temporary).with_context(|| format!("{}", temporary.display()))? {
        let path = entry?.path();
        let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("duplex-lab-"));
        // A socket that nobody listens on is left over from a lab that was cut off.
        if named && std::os::unix::net::UnixStream::connect(control::socket(&path)).is_ok() {
            found.push(path);
        }
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => bail!(
            "no lab is up under {}: start one with `duplex-lab up`, or name its folder with --lab",
            temporary.display()
        ),
        _ => {
            let list: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
            bail!("several labs are up, choose one with --lab: {}", list.join(", "))
        }
    }
}
