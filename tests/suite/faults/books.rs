//! Whoever checks is checked: each loss, double and tear that the fault runs look for, made by hand, has to be named.

use anyhow::{Context, Result};
use duplex_lab::faults::ledger::{self, Entry};
use duplex_lab::faults::load::Known;
use duplex_lab::faults::verdict;
use duplex_lab::session::literal;
use duplex_lab::topic::Stored;
use duplex_lab::{Lab, Session};
use duplex_protocol::record::{Header, Hello, Kind, Position};

/// What is done to the books (`{n}` is the node as a literal), and what must be said then.
const DAMAGE: [(&str, &str); 13] = [
    ("delete from posting where session = 1 and seq = 2 and leg = 0", "postings of {n}: 5 instead of 6, in sum 5"),
    (
        "update posting set amount = amount + 1 where session = 1 and seq = 2 and leg = 0",
        "postings of {n}: 6 instead of 6",
    ),
    (
        "insert into posting select node, session, seq, 2, account, 0 from posting where seq = 3 and leg = 0",
        "postings of {n}: 7 instead of 6",
    ),
    (
        "insert into bulk select node, session, n + 100, filler from bulk where n = 1",
        "bulk rows of {n}: 13 instead of 12",
    ),
    ("delete from bulk where n = 1", "bulk rows of {n}: 11 instead of 12"),
    ("update account set balance = balance + 1 where id = 7", "account 7 of {n}: 1000001 instead of 1000000"),
    // The sum is right.
    (
        "update account set balance = balance + case id when 7 then 1 else -1 end where id in (7, 8)",
        "account 8 of {n}: 999999 instead of 1000000",
    ),
    ("delete from account where id = 9", "accounts of {n}: 39, in sum 39000000"),
    ("delete from account", "accounts of {n}: 0, in sum "),
    ("update journal set seq = 4 where session = 1 and seq = 3", "session 1 of {n}: 3 rows from 1 to 4"),
    ("delete from journal where session = 1 and seq = 1", "session 1 of {n}: 2 rows from 2 to 3"),
    ("delete from journal where session = 0", "openings of {n}: 0"),
    ("delete from journal", "postings of {n}: 6 instead of 0"),
];

/// Three transactions, each with two postings and four rows more.
async fn write(session: &Session, node: &str) -> Result<()> {
    for seq in 1..=3 {
        session
            .exec(&format!(
                "begin;
                 insert into journal (node, session, seq, legs, bulk, note) values ({node}, 1, {seq}, 2, 4, 'by hand');
                 insert into posting values ({node}, 1, {seq}, 0, 1, -5), ({node}, 1, {seq}, 1, 2, 5);
                 update account set balance = balance + case id when 1 then -5 else 5 end where id in (1, 2);
                 insert into bulk select {node}, 1, {seq} * 4 + i - 4, 'filler' from generate_series(1, 4) i;
                 commit"
            ))
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn wrong_books_are_found_wrong() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    ledger::open_apart(&lab).await?;
    let session = node.connect().await?;
    write(&session, &literal(node.name())).await?;
    assert_eq!(ledger::wrong(&session).await?, None);
    for (damage, said) in DAMAGE {
        session.exec(&format!("begin; {damage}")).await?;
        let found = ledger::wrong(&session).await?;
        session.exec("rollback").await?;
        let found = found.with_context(|| format!("nobody noticed: {damage}"))?;
        let said = said.replace("{n}", node.name());
        assert!(
            found.split("; ").any(|what| what.starts_with(&said)),
            "{damage}\n  expected {said}\n  found    {found}"
        );
    }
    assert_eq!(ledger::wrong(&session).await?, None);
    ledger::audit(lab.nodes()).await
}

/// A record of a stream; its offset does not count here.
fn record(kind: Kind, generation: u64, xid: u64, chunk: u32, last: bool) -> Stored {
    let position = Position { lsn: xid * 8, xid };
    let node = "n1".to_owned();
    let header = Header {
        kind,
        node,
        generation,
        position,
        chunk,
        last,
        commit_ts: 0,
        seen: Vec::new(),
        settled: 0,
        held: 0,
        expanded_len: None,
    };
    let hello = Hello { node_id: [7; 16], extension_version: "0.1.0".to_owned() }.encode();
    let body: &[u8] = if kind == Kind::Hello { &hello } else { b"" };
    Stored { offset: 0, value: header.encode_record(body) }
}

fn whole(xid: u64) -> Stored {
    record(Kind::Transaction, 1, xid, 0, true)
}

/// Two sessions: the first has committed 11, 13 and 14, the second 12.
fn entries() -> Vec<Entry> {
    let entry = |session, seq, xid| Entry { session, seq, xid };
    vec![entry(1, 1, 11), entry(1, 2, 13), entry(1, 3, 14), entry(2, 1, 12)]
}

/// A stream that holds each once, 13 in two chunks, and with a void record of each sort.
fn stream() -> Vec<Stored> {
    vec![
        record(Kind::Hello, 1, 0, 0, true),
        whole(11),
        whole(12),
        // Torn by the take-over, and sent again.
        record(Kind::Transaction, 1, 13, 0, false),
        record(Kind::Hello, 2, 0, 0, true),
        record(Kind::Transaction, 2, 13, 0, false),
        // Late.
        record(Kind::Transaction, 1, 13, 1, true),
        record(Kind::Transaction, 2, 13, 1, true),
        record(Kind::Heartbeat, 2, 0, 0, true),
        record(Kind::Transaction, 2, 14, 0, true),
    ]
}

/// What the verdict on a stream is, once something was done to it.
fn verdict_after(damage: impl FnOnce(&mut Vec<Stored>)) -> String {
    let mut stream = stream();
    damage(&mut stream);
    let verdict = verdict::published(&stream, &entries());
    format!("{:#}", verdict.expect_err("nobody noticed"))
}

#[test]
fn a_stream_with_each_transaction_once_is_right_whatever_is_void_in_it() -> Result<()> {
    let found = verdict::published(&stream(), &entries())?;
    assert_eq!((found.transactions, found.records, found.hellos), (4, 10, 2));
    Ok(())
}

#[test]
fn a_wrong_stream_is_found_wrong() {
    let doubled = verdict_after(|stream| stream.insert(3, whole(11)));
    assert_eq!(doubled, "published more than once (transaction, how often): [(11, 2)]");
    // The second time by another relay, behind everything.
    let doubled = verdict_after(|stream| stream.push(record(Kind::Transaction, 2, 12, 0, true)));
    assert_eq!(doubled, "published more than once (transaction, how often): [(12, 2)]");
    let missing = verdict_after(|stream| drop(stream.remove(2)));
    assert_eq!(missing, "committed and not published: [Entry { session: 2, seq: 1, xid: 12 }]");
    let unknown = verdict_after(|stream| stream.insert(3, whole(15)));
    assert_eq!(unknown, "published, and its node never had it: [15]");
    let reordered = verdict_after(|stream| {
        let last = stream.pop().expect("a stream");
        stream.insert(5, last);
    });
    assert!(reordered.starts_with("out of order: Entry { session: 1, seq: 2, xid: 13 } comes after"), "{reordered}");
}

#[test]
fn a_torn_transaction_is_found_torn() {
    let hole = verdict_after(|stream| drop(stream.remove(5)));
    assert!(hole.contains("chunk 1 of"), "{hole}");
    let end = verdict_after(|stream| drop(stream.remove(7)));
    assert!(end.contains("chunk 0 of"), "{end}");
    let late_alone = verdict_after(|stream| stream.truncate(7));
    assert!(late_alone.starts_with("committed and not published"), "{late_alone}");
}

#[test]
fn what_was_acknowledged_and_is_gone_is_found() -> Result<()> {
    let mut books = entries();
    let known = |acknowledged| [Known { session: 1, acknowledged, taken_back: 0 }];
    verdict::kept(&books, &known(entries()))?;
    let lost = books.remove(1);
    let message = verdict::kept(&books, &known(entries())).expect_err("nobody noticed").to_string();
    assert_eq!(message, format!("acknowledged, and it is not there: {:?}", Some(lost)));
    // Another transaction in its place is not the same.
    books.insert(1, Entry { xid: 99, ..lost });
    verdict::kept(&books, &known(entries())).expect_err("nobody noticed");
    Ok(())
}
