//! Answers about the cluster that name no broker.
//!
//! Numbers on Kafka's wire are big-endian; those of variable length are seven bits a byte, the low ones first
//! (<https://kafka.apache.org/protocol.html>).

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The key of a request for metadata.
const METADATA: [u8; 2] = [0, 3];

/// The versions of that request that are understood here: the first one that writes lengths as below, and the last one.
const VERSIONS: std::ops::RangeInclusive<u16> = 9..=13;

/// Passes whole requests and answers of one connection. What is asked for while `is_forgetful` is answered without brokers, and
/// counted in `forgot`.
pub(super) async fn pass(client: TcpStream, server: TcpStream, is_forgetful: impl Fn() -> bool, forgot: &AtomicU64) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asked = Asked::default();
    let requests = async {
        loop {
            let request = receive(&mut from_client).await?;
            if is_forgetful() {
                asked.note(&request)?;
            }
            send(&mut to_server, &request).await?;
        }
    };
    let answers = async {
        loop {
            let answer = receive(&mut from_server).await?;
            let changed = asked.forget_brokers(&answer)?;
            send(&mut to_client, changed.as_ref().unwrap_or(&answer)).await?;
            if changed.is_some() {
                forgot.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let ended: Result<Infallible> = tokio::select! {
        ended = requests => ended,
        ended = answers => ended,
    };
    // That one of the two hangs up is no error.
    if let Err(err) = ended
        && !err.is::<io::Error>()
    {
        eprintln!("a connection to Kafka ends: {err:#}");
    }
}

/// What one request or answer holds; its length goes ahead of it.
async fn receive(from: &mut OwnedReadHalf) -> Result<Vec<u8>> {
    let mut bytes = vec![0; from.read_u32().await? as usize];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn send(to: &mut OwnedWriteHalf, bytes: &[u8]) -> Result<()> {
    to.write_u32(u32::try_from(bytes.len())?).await?;
    Ok(to.write_all(bytes).await?)
}

/// Requests of one connection whose answers are to be changed, by their number.
#[derive(Debug, Default)]
struct Asked(Mutex<HashSet<[u8; 4]>>);

impl Asked {
    /// Looks at a request: key and version of what is asked, number, and so on.
    fn note(&self, request: &[u8]) -> Result<()> {
        let (key, rest) = split(request)?;
        let (version, rest) = split(rest)?;
        let (number, _) = split(rest)?;
        if key == METADATA {
            let version = u16::from_be_bytes(version);
            ensure!(VERSIONS.contains(&version), "metadata is asked for in version {version}");
            self.0.lock().expect("no holder panics").insert(number);
        }
        Ok(())
    }

    /// An answer without its brokers, if it is one to such a request: number, tags, throttle time, brokers, and so on.
    fn forget_brokers(&self, answer: &[u8]) -> Result<Option<Vec<u8>>> {
        let (number, _) = split(answer)?;
        if !self.0.lock().expect("no holder panics").remove(&number) {
            return Ok(None);
        }
        let before = 4 + 1 + 4;
        let mut rest = answer.get(before..).context("an answer ends before its brokers")?;
        for _ in 1..varint(&mut rest)? {
            skip(&mut rest, 4)?; // id
            skip_text(&mut rest)?; // host
            skip(&mut rest, 4)?; // port
            skip_text(&mut rest)?; // rack
            ensure!(varint(&mut rest)? == 0, "a broker has tags");
        }
        Ok(Some([&answer[..before], &[1], rest].concat()))
    }
}

fn split<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8])> {
    let (first, rest) = bytes.split_first_chunk().context("a frame that ends too early")?;
    Ok((*first, rest))
}

fn skip(bytes: &mut &[u8], count: usize) -> Result<()> {
    *bytes = bytes.get(count..).context("a frame that ends too early")?;
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<usize> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let ([byte], rest) = split(bytes)?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    anyhow::bail!("a number that does not end")
}

/// A text's length is one more than its bytes are, and 0 if there is no text.
fn skip_text(bytes: &mut &[u8]) -> Result<()> {
    let length = varint(bytes)?;
    skip(bytes, length.saturating_sub(1))
}
