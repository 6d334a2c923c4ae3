//! The relay's command line: what a user may get wrong before anything is connected to.

use std::process::Stdio;

use anyhow::{Context, Result};
use duplex_lab::{PATIENCE, relay};
use tokio::process::Command;

/// What a command of the relay printed, and how it ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The real binary with these arguments, and nothing of the relay's in its environment.
pub(crate) fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(relay::binary()?);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for name in
        ["DUPLEX_DATABASE", "DUPLEX_KAFKA", "DUPLEX_CONFIG", "DUPLEX_DATABASE_CA", "DUPLEX_LOG_FORMAT", "RUST_LOG"]
    {
        command.env_remove(name);
    }
    Ok(command)
}

/// Runs it to its end.
pub(crate) async fn run(arguments: &[&str]) -> Result<Ran> {
    let output = tokio::time::timeout(PATIENCE, command(arguments)?.output());
    let output = output.await.with_context(|| format!("{arguments:?} does not end"))??;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Ran { code: output.status.code(), out, err })
}

#[tokio::test]
async fn addresses_that_are_missing_or_malformed_are_said_in_words() -> Result<()> {
    let cases: [(&[&str], &str); 8] = [
        (&["check"], "no Kafka is given: use --kafka"),
        (&["check", "--kafka", "k:1"], "no database is given: use --database"),
        (&["check", "--kafka", "k:1", "--database", "mysql://x"], "the database address is malformed"),
        (&["tail", "chat1"], "no Kafka is given"),
        (&["check", "--config", "/nonexistent.toml"], "cannot read /nonexistent.toml"),
        (&["check", "--kafka", "k:1", "--kafka-property", "acks"], "needs the form K=V"),
        (&["check", "--kafka", "k:1", "--kafka-property", "acks=1"], "acks cannot be set"),
        (
            &["tail", "chat1", "--kafka", "k:1", "--kafka-property", "sasl.pasword=secret"],
            "Kafka property sasl.pasword",
        ),
    ];
    for (arguments, message) in cases {
        let ran = run(arguments).await?;
        assert_eq!(ran.code, Some(1), "{arguments:?}: {}", ran.err);
        assert!(ran.err.starts_with("error: ") && ran.err.contains(message), "{arguments:?}: {}", ran.err);
        assert!(!ran.err.contains("secret"), "{}", ran.err);
    }
    Ok(())
}

#[tokio::test]
async fn without_a_command_it_says_how_it_is_used() -> Result<()> {
    for arguments in [&["--help"][..], &[]] {
        let ran = run(arguments).await?;
        let text = ran.out + &ran.err;
        for word in ["run", "check", "tail", "--database", "--kafka", "--kafka-property"] {
            assert!(text.contains(word), "{arguments:?} does not mention {word}: {text}");
        }
    }
    assert!(run(&["--version"]).await?.out.contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&["tial", "chat1"]).await?.code, Some(2));
    Ok(())
}

#[tokio::test]
async fn a_settings_file_does_as_well_as_the_command_line() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(
        file.path(),
        "database = 'postgresql://nobody@127.0.0.1:1/x'\n[kafka]\nbootstrap = '127.0.0.1:1'\n",
    )?;
    let ran = run(&["check", "--config", &file.path().to_string_lossy()]).await?;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.out.contains("FAIL  cannot connect to the database") && ran.out.contains("FAIL  asking Kafka"),
        "{}",
        ran.out
    );
    Ok(())
}
