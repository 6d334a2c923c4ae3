//! Whatever the order in which peers' streams arrive, the table ends up the same: transactions made by hand, so that
//! their versions are known to the microsecond and ties can be had.

use anyhow::{Context, Result, ensure};
use duplex_lab::dice::Dice;
use duplex_lab::{Lab, Node, Session};
use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{
    Column, Contribution, Delete, Entry, Format, Put, PutKind, Relation, Replaced, Resolution, Row, Truncate,
};
use duplex_protocol::record::{Header, Kind, Position};

const PEERS: [&str; 3] = ["p", "q", "r"];
const VALUES: [&str; 4] = ["a", "b", "c", "d"];

/// One change, which is a transaction of its own.
#[derive(Debug, Clone)]
enum Change {
    Put { key: i32, v: usize, w: usize, added: i64 },
    Delete { key: i32, added: i64 },
    Truncate,
}

#[derive(Debug, Clone)]
struct Transaction {
    /// Whose: an index into [`PEERS`].
    of: usize,
    commit_ts: i64,
    change: Change,
}

fn column(name: &str, type_name: &str) -> Column {
    Column { name: name.into(), type_schema: None, type_name: type_name.into(), type_modifier: -1, format: Format::Raw }
}

impl Transaction {
    /// What it adds to the counter of a key, which only tables with a delta column have.
    fn addition(&self) -> Option<(i32, i64)> {
        match self.change {
            Change::Put { key, added, .. } | Change::Delete { key, added } => Some((key, added)),
            Change::Truncate => None,
        }
    }

    fn record(&self, table: &str, counting: bool) -> Vec<u8> {
        let mut body = Vec::new();
        let mut columns = vec![column("id", "int4"), column("v", "text"), column("w", "text")];
        let mut delta_columns = Vec::new();
        if counting {
            columns.push(column("n", "int8"));
            delta_columns.push(3);
        }
        let relation = Relation {
            id: 1,
            schema: "public".into(),
            name: table.into(),
            columns,
            key: vec![0],
            resolution: Resolution::LastUpdateWins,
            delta_columns,
        };
        append_entry(&Entry::Relation(relation), &mut body);
        let amount = self.addition().map_or_else(String::new, |(_, added)| added.to_string());
        let contributions = match counting {
            true => vec![Contribution { column: 3, amount: &amount }],
            false => Vec::new(),
        };
        // What its node saw in the counter in the end: nothing hangs on that.
        let image = 7_i64.to_le_bytes();
        let key;
        let entry = match &self.change {
            Change::Put { key: k, v, w, .. } => {
                key = k.to_le_bytes();
                let mut row = Row(vec![Some(&key), Some(VALUES[*v].as_bytes()), Some(VALUES[*w].as_bytes())]);
                row.0.extend(counting.then_some(Some(&image[..])));
                let (kind, replaced) = (PutKind::Update, Replaced::Ancient);
                Entry::Put(Put { relation: 1, kind, replaced, changed: &[0b1110], contributions, row })
            }
            Change::Delete { key: k, .. } => {
                key = k.to_le_bytes();
                let row = Row(vec![Some(&key)]);
                Entry::Delete(Delete { relation: 1, replaced: Replaced::Ancient, contributions, key: row })
            }
            Change::Truncate => Entry::Truncate(Truncate { relation: 1, restart_identity: false }),
        };
        append_entry(&entry, &mut body);
        let header = Header {
            kind: Kind::Transaction,
            node: PEERS[self.of].into(),
            generation: 1,
            position: Position { lsn: self.commit_ts as u64, xid: self.commit_ts as u64 },
            chunk: 0,
            last: true,
            commit_ts: self.commit_ts,
            seen: vec![],
            settled: i64::MIN,
            held: i64::MIN,
            expanded_len: None,
        };
        header.encode_record(&body)
    }
}

/// A few transactions of each peer, each peer's in the order of its stream; some share their microsecond.
fn history(dice: &mut Dice, unique: bool) -> Vec<Transaction> {
    let mut clocks = [1_000_000; PEERS.len()];
    (0..dice.between(4, 11))
        .map(|_| {
            let of = dice.index(PEERS.len());
            clocks[of] += dice.between(1, 3).cast_signed();
            let key = dice.index(3) as i32;
            let added = dice.below(9).cast_signed() - 4;
            let change = match dice.below(10) {
                0..6 => {
                    let (v, w) = (dice.index(VALUES.len()), dice.index(if unique { 2 } else { 4 }));
                    Change::Put { key, v, w, added }
                }
                6..9 => Change::Delete { key, added },
                _ => Change::Truncate,
            };
            Transaction { of, commit_ts: clocks[of], change }
        })
        .collect()
}

/// The same transactions in another order, each peer's in its own.
fn shuffled(history: &[Transaction], dice: &mut Dice) -> Vec<Transaction> {
    let of = |peer| history.iter().filter(move |t| t.of == peer).cloned().collect::<Vec<_>>();
    let mut streams: Vec<_> = (0..PEERS.len()).map(|peer| of(peer).into_iter()).collect();
    let mut order = Vec::new();
    while order.len() < history.len() {
        order.extend(streams[dice.index(PEERS.len())].next());
    }
    order
}

/// Sessions that apply each peer's stream, and how far they are.
struct Appliers {
    sessions: Vec<Session>,
    next_offset: i64,
}

impl Appliers {
    async fn open(node: &Node) -> Result<Self> {
        let mut sessions = Vec::new();
        for peer in PEERS {
            node.exec(&format!("select duplex.add_peer('{peer}')")).await?;
            let session = node.connect().await?;
            session.exec(&format!("select * from duplex.apply_open('{peer}')")).await?;
            sessions.push(session);
        }
        Ok(Self { sessions, next_offset: 0 })
    }

    async fn apply(&mut self, order: &[Transaction], table: &str, counting: bool) -> Result<()> {
        for transaction in order {
            let hex: String = transaction.record(table, counting).iter().map(|byte| format!("{byte:02x}")).collect();
            let sql = format!("call duplex.apply_batch(array['\\x{hex}'::bytea], array[{}])", self.next_offset);
            self.sessions[transaction.of].exec(&sql).await?;
            self.next_offset += 1;
        }
        Ok(())
    }
}

/// The rows, and the version that each key has, there or not.
async fn state(node: &Node, table: &str) -> Result<Vec<String>> {
    let mut state = node.dump(table, &[]).await?;
    let versions = format!(
        "select k, v.commit_time, v.origin from generate_series(0, 2) k, \
         lateral duplex.row_version('{table}', k::text) v where v.standing = 'row' order by k"
    );
    state.extend(node.rows(&versions).await?.into_iter().map(|row| format!("{row:?}")));
    Ok(state)
}

/// A counter that is there is the sum of all that was ever added under its key.
async fn sums_are_right(node: &Node, table: &str, history: &[Transaction]) -> Result<()> {
    for row in node.rows(&format!("select id, n from {table}")).await? {
        let number = |i: usize| row[i].as_deref().unwrap_or_default().parse::<i64>();
        let (id, n) = (number(0)?, number(1)?);
        let of_key = history.iter().filter_map(Transaction::addition).filter(|(key, _)| i64::from(*key) == id);
        let sum: i64 = of_key.map(|(_, added)| added).sum();
        ensure!(n == sum, "the counter of {id} is {n}, and {sum} was added to it");
    }
    Ok(())
}

/// Rounds from a seed; a failure names the seed of its round.
async fn rounds(name: &str, columns: &str, unique: bool, seeds: std::ops::Range<u64>) -> Result<()> {
    let counting = columns.contains("n int8");
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    let mut appliers = Appliers::open(node).await?;
    let mut shown = 0;
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let history = history(&mut dice, unique);
        let mut first: Option<(Vec<Transaction>, Vec<String>)> = None;
        for turn in 0..4 {
            let order = shuffled(&history, &mut dice);
            let table = format!("{name}_{seed}_{turn}");
            let delta_columns = if counting { "{n}" } else { "{}" };
            node.exec(&format!(
                "create table {table} (id int primary key, {columns}); \
                 select duplex.enable('{table}', delta_columns => '{delta_columns}')"
            ))
            .await?;
            appliers.apply(&order, &table, counting).await?;
            let state = state(node, &table).await?;
            shown += state.len();
            if counting {
                sums_are_right(node, &table, &order).await.with_context(|| format!("seed {seed}: {order:#?}"))?;
            }
            match &first {
                None => first = Some((order, state)),
                Some((other, expected)) => ensure!(
                    *expected == state,
                    "seed {seed}: {other:#?}\n leads to {expected:#?}\n and {order:#?}\n leads to {state:#?}"
                ),
            }
            node.exec(&format!("drop table {table}")).await?;
        }
    }
    ensure!(shown > 0, "no row was ever left: nothing was compared");
    Ok(())
}

#[tokio::test]
async fn rows_end_up_the_same() -> Result<()> {
    rounds("plain", "v text, w text", false, 0..25).await
}

#[tokio::test]
async fn rows_with_second_unique_keys_end_up_the_same() -> Result<()> {
    rounds("uniq", "v text unique, w text", false, 0..40).await
}

#[tokio::test]
async fn rows_with_several_unique_keys_end_up_the_same() -> Result<()> {
    rounds("several", "v text unique, w text unique", true, 0..40).await
}

#[tokio::test]
async fn counters_end_up_the_same() -> Result<()> {
    rounds("counted", "v text, w text, n int8", false, 0..25).await
}

#[tokio::test]
async fn counters_in_rows_with_unique_keys_end_up_the_same() -> Result<()> {
    rounds("counted_uniq", "v text unique, w text unique, n int8", true, 100..140).await
}

#[tokio::test]
async fn a_tie_goes_by_the_name_of_the_node() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    let mut appliers = Appliers::open(node).await?;
    let put = |of, v| Transaction { of, commit_ts: 1_000_000, change: Change::Put { key: 1, v, w: v, added: 0 } };
    let delete = |of| Transaction { of, commit_ts: 1_000_000, change: Change::Delete { key: 1, added: 0 } };
    let cases = [
        ("put_put", [put(0, 0), put(1, 1)], vec!["id=1 | v=b | w=b"]),
        ("delete_put", [delete(0), put(1, 1)], vec!["id=1 | v=b | w=b"]),
        ("put_delete", [put(0, 0), delete(1)], vec![]),
    ];
    for (name, transactions, rows) in cases {
        for turned in [false, true] {
            let table = format!("{name}_{turned}");
            node.exec(&format!(
                "create table {table} (id int primary key, v text, w text); select duplex.enable('{table}')"
            ))
            .await?;
            let mut order = transactions.to_vec();
            if turned {
                order.reverse();
            }
            appliers.apply(&order, &table, false).await?;
            assert_eq!(node.dump(&table, &[]).await?, rows, "{table}");
        }
    }
    Ok(())
}
