//! What the documentation shows, done: every block of SQL in README.md and in docs/ runs as it stands there.
//!
//! A page's blocks run in order, in a database that has the chat service's tables and, but for README.md itself, is what
//! README.md makes of it. What is not to be run stands in a block of another kind.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use duplex_lab::{Lab, Session};

use super::relay_command::{command, run};

const TABLES: &str = "
    create table user_table (user_id varchar primary key, user_name varchar, user_status varchar);
    create table message (message_id varchar primary key, user_id varchar not null references user_table, body varchar);
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README.md and the pages beside it.
fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = vec![root().join("README.md")];
    let mut docs: Vec<PathBuf> =
        std::fs::read_dir(root().join("docs"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    docs.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    docs.sort();
    pages.extend(docs);
    Ok(pages)
}

/// The fenced blocks of one kind in a page.
fn blocks(page: &Path, kind: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let fence = format!("```{kind}");
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == fence {
            blocks.push(lines.by_ref().take_while(|line| line.trim() != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    Ok(blocks)
}

/// Statements as psql sends them: one by one. A semicolon ends one at a line's end, outside of a quoted body.
fn statements(block: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut open = String::new();
    for line in block.lines() {
        open.push_str(line);
        open.push('\n');
        let code = line.split("--").next().unwrap_or_default().trim_end();
        if code.ends_with(';') && open.matches("$$").count().is_multiple_of(2) {
            statements.push(std::mem::take(&mut open));
        }
    }
    if !open.trim().is_empty() {
        statements.push(open);
    }
    statements
}

async fn run_blocks(session: &Session, page: &Path) -> Result<usize> {
    let mut count = 0;
    for block in blocks(page, "sql")? {
        for statement in statements(&block) {
            session.exec(&statement).await.with_context(|| format!("{}", page.display()))?;
            count += 1;
        }
    }
    Ok(count)
}

#[tokio::test]
async fn the_sql_of_the_documentation_runs_as_it_stands() -> Result<()> {
    let lab = Lab::builder().nodes(1).own_clusters().without_relays().start().await?;
    let cluster = lab.node(0).cluster();
    let administrator = cluster.connect("postgres").await?;
    let pages = pages()?;
    let (readme, docs) = pages.split_first().context("no page")?;
    for (number, page) in std::iter::once(readme).chain(docs).enumerate() {
        if page != readme && blocks(page, "sql")?.is_empty() {
            continue;
        }
        // README.md makes this role, and roles belong to the whole cluster.
        administrator.exec("drop role if exists relay").await?;
        let database = format!("page{number}");
        administrator.exec(&format!("create database {database}")).await?;
        let session = cluster.connect(&database).await?;
        session.exec(TABLES).await?;
        let made = run_blocks(&session, readme).await?;
        ensure!(made == 5, "README.md promises five lines of SQL and has {made}");
        if page != readme {
            ensure!(run_blocks(&session, page).await? > 0, "{}", page.display());
        }
        drop(session);
        administrator.exec(&format!("drop database {database} with (force)")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_readme_makes_is_all_that_a_relay_needs() -> Result<()> {
    let lab = Lab::builder().own_clusters().relays_stopped().start().await?;
    let [a, b] = lab.pair();
    // The five lines as they are for chat1, and with the names swapped for chat2. The topics' names are this test's.
    let block = blocks(&root().join("README.md"), "sql")?.concat();
    let swapped = |own: &str, peer: &str| block.replace("chat1", "\0").replace("chat2", peer).replace('\0', own);
    for (node, peer) in [(a, b), (b, a)] {
        let administrator = node.cluster().connect("postgres").await?;
        administrator.exec("drop role relay").await?;
        administrator.exec("create database chat").await?;
        let session = node.cluster().connect("chat").await?;
        session.exec(TABLES).await?;
        for statement in statements(&swapped(node.name(), peer.name())) {
            session.exec(&statement).await?;
        }
    }
    let urls = [a, b].map(|node| node.cluster().url("relay", "chat"));
    let kafka = lab.kafka().bootstrap();
    for url in &urls {
        let ran = run(&["check", "--database", url, "--kafka", kafka]).await?;
        assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    }
    let mut relays = Vec::new();
    for url in &urls {
        let mut relay = command(&["run", "--database", url, "--kafka", kafka])?;
        relays.push(relay.stderr(Stdio::null()).spawn()?);
    }
    let [chat1, chat2] = [a.cluster().connect("chat").await?, b.cluster().connect("chat").await?];
    chat1.exec("insert into user_table values ('u1', '김철수', 'online')").await?;
    duplex_lab::until("the row to come over", duplex_lab::PATIENCE, async || {
        let name = chat2.rows("select user_name from user_table").await?;
        Ok(duplex_lab::wait::when(name == [[Some("김철수".to_owned())]], format!("{name:?}")))
    })
    .await?;
    for mut relay in relays {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(relay.id().context("it runs")?)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        assert!(relay.wait().await?.success());
    }
    Ok(())
}

#[tokio::test]
async fn the_settings_files_of_the_documentation_are_taken() -> Result<()> {
    let mut count = 0;
    for page in pages()? {
        for block in blocks(&page, "toml")? {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), &block)?;
            // Addresses at which nobody is: what is not taken as settings is said before anybody is asked.
            let path = file.path().to_string_lossy();
            let addresses = ["--database", "postgresql://x@127.0.0.1:1/x", "--kafka", "127.0.0.1:1"];
            let ran = run(&[&["check", "--config", &*path][..], &addresses].concat()).await?;
            assert!(ran.out.contains("FAIL  ") && ran.err.is_empty(), "{}: {}{}", page.display(), ran.out, ran.err);
            count += 1;
        }
    }
    ensure!(count > 0, "no settings file is documented");
    Ok(())
}
