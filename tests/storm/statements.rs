//! Transactions as applications make them, on few keys and few values, so that they meet.

use std::fmt;

use super::tables::{TALLIES, Table};
use crate::dice::Dice;

const KEYS: u64 = 40;
/// One of so many transactions is a TRUNCATE: often enough to meet everything, seldom enough that rows grow old.
const BETWEEN_TRUNCATES: u64 = 300;

/// What a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// INSERT.
    Insert,
    /// INSERT that updates what is there.
    Upsert,
    /// UPDATE.
    Update,
    /// UPDATE of a value that must be unique beside the key.
    Claim,
    /// UPDATE that adds to a counter.
    Add,
    /// UPDATE of the key, perhaps into one that another node has taken.
    Rekey,
    /// DELETE.
    Delete,
    /// DELETE and INSERT of one key.
    Reinsert,
    /// Statements of which a part is taken back.
    Savepoint,
    /// TRUNCATE.
    Truncate,
    /// Statements on several tables.
    Several,
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Insert => "insert",
            Self::Upsert => "upsert",
            Self::Update => "update",
            Self::Claim => "second unique key",
            Self::Add => "addition",
            Self::Rekey => "key change",
            Self::Delete => "delete",
            Self::Reinsert => "delete and insert",
            Self::Savepoint => "savepoint",
            Self::Truncate => "truncate",
            Self::Several => "several tables",
        })
    }
}

/// A transaction.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// What it is.
    pub kind: Kind,
    /// Its statements.
    pub sql: String,
    /// What it adds to which tallies.
    pub additions: Vec<(usize, i64)>,
}

impl Transaction {
    fn new(kind: Kind, sql: String) -> Self {
        Self { kind, sql, additions: Vec::new() }
    }

    /// One on these tables, by chance.
    pub fn random(dice: &mut Dice, tables: &[Table]) -> Self {
        let table = dice.pick(tables);
        // What the tallies must come to is told from what was added to them, so they are only ever added to.
        if table.name != "tally" && dice.below(BETWEEN_TRUNCATES) == 0 {
            return Self::new(Kind::Truncate, format!("truncate {}", table.name));
        }
        if !dice.percent(6) {
            return Self::on(table, dice);
        }
        let parts: Vec<Self> = (0..dice.between(2, 4)).map(|_| Self::on(dice.pick(tables), dice)).collect();
        // Whoever begins a transaction of its own is no part of another's.
        let parts: Vec<Self> = parts.into_iter().filter(|part| !part.sql.starts_with("begin")).collect();
        let sql: Vec<String> = parts.iter().map(|part| format!("{}; ", part.sql)).collect();
        let additions = parts.into_iter().flat_map(|part| part.additions).collect();
        Self { kind: Kind::Several, sql: format!("begin; {}commit", sql.concat()), additions }
    }

    fn on(table: Table, dice: &mut Dice) -> Self {
        let (key, other, value) = (dice.below(KEYS), dice.below(KEYS), dice.below(KEYS));
        let (kind, sql) = match table.name {
            "s" => plain(dice.below(100), key, other, value),
            "u" => unique(dice.below(100), key, other, value),
            "c" => counting(dice.below(100), key, other, value),
            "p" => merging(dice.below(100), key, other, value),
            "q" => merging_unique(dice.below(100), key, other, value),
            _ => {
                let tally = dice.index(TALLIES);
                let added = dice.below(1000).cast_signed() - 400;
                let sql = format!("update tally set n = n + {added} where id = {tally}");
                return Self { additions: vec![(tally, added)], ..Self::new(Kind::Add, sql) };
            }
        };
        Self::new(kind, sql)
    }
}

fn plain(chance: u64, key: u64, other: u64, value: u64) -> (Kind, String) {
    match chance {
        0..8 => (Kind::Insert, format!("insert into s values ({key}, 'i{value}')")),
        8..30 => (
            Kind::Upsert,
            format!("insert into s values ({key}, 'v{value}') on conflict (id) do update set v = excluded.v"),
        ),
        30..52 => (Kind::Update, format!("update s set v = left(v || '+', 20) where id = {key}")),
        52..65 => (Kind::Delete, format!("delete from s where id = {key}")),
        65..76 => (
            Kind::Reinsert,
            format!("begin; delete from s where id = {key}; insert into s values ({key}, 'again'); commit"),
        ),
        76..88 => (Kind::Rekey, format!("update s set id = {other} where id = {key}")),
        _ => (
            Kind::Savepoint,
            format!(
                "begin; update s set v = 'kept' where id = {key}; savepoint a; update s set v = 'lost' where id = {other}; \
                 delete from s where id = {value}; rollback to a; update s set v = left(v || '.', 20) where id = {value}; commit"
            ),
        ),
    }
}

fn unique(chance: u64, key: u64, other: u64, value: u64) -> (Kind, String) {
    match chance {
        0..8 => (Kind::Insert, format!("insert into u values ({key}, 'm{value}', 'n{other}')")),
        8..36 => (
            Kind::Upsert,
            format!(
                "insert into u values ({key}, 'm{value}', 'n{other}') on conflict (id) do update \
                 set mail = excluded.mail, nick = excluded.nick"
            ),
        ),
        36..56 => (Kind::Claim, format!("update u set mail = 'm{value}' where id = {key}")),
        56..68 => (Kind::Claim, format!("update u set nick = 'N{value}' where id = {key}")),
        68..80 => (Kind::Delete, format!("delete from u where id = {key}")),
        80..90 => (Kind::Rekey, format!("update u set id = {other} where id = {key}")),
        _ => (
            Kind::Savepoint,
            format!(
                "begin; update u set mail = null where id = {key}; savepoint a; update u set nick = 'lost' where id = {other}; \
                 delete from u where id = {key}; rollback to a; update u set mail = 'm{value}' where id = {other}; commit"
            ),
        ),
    }
}

fn counting(chance: u64, key: u64, other: u64, value: u64) -> (Kind, String) {
    match chance {
        0..28 => (Kind::Add, format!("update c set n = n + {value}.25, m = m - {other} where id = {key}")),
        28..50 => (
            Kind::Upsert,
            format!(
                "insert into c values ({key}, 'v{value}', {value}, {other}) on conflict (id) do update \
                 set n = c.n + excluded.n, v = excluded.v"
            ),
        ),
        50..64 => (Kind::Delete, format!("delete from c where id = {key}")),
        64..68 => (
            Kind::Reinsert,
            format!("begin; delete from c where id = {key}; insert into c values ({key}, 'r{value}', 7, 7); commit"),
        ),
        68..76 => (
            Kind::Savepoint,
            format!(
                "begin; delete from c where id = {key}; insert into c values ({key}, 'w{value}', 1.5, 2); \
                 savepoint a; update c set n = n + 100 where id = {other}; rollback to a; \
                 update c set m = m + 3 where id = {other}; commit"
            ),
        ),
        76..88 => (Kind::Claim, format!("update c set v = 'v{value}' where id = {key}")),
        88..98 => (Kind::Rekey, format!("update c set id = {other}, n = n + 1 where id = {key}")),
        _ => (Kind::Add, "update c set m = m + 1".to_owned()),
    }
}

fn merging(chance: u64, key: u64, other: u64, value: u64) -> (Kind, String) {
    match chance {
        0..30 => (
            Kind::Upsert,
            format!(
                "insert into p values ({key}, {value}, 'a{value}', 'b') on conflict (id) do update set a = excluded.a"
            ),
        ),
        30..52 => (Kind::Add, format!("update p set a = left(a || '+', 20), n = n + 1 where id = {key}")),
        52..76 => (Kind::Update, format!("update p set b = 'b{value}' where id = {key}")),
        76..86 => (Kind::Delete, format!("delete from p where id = {key}")),
        86..90 => (
            Kind::Reinsert,
            format!("begin; delete from p where id = {key}; insert into p values ({key}, 5, 'r', 'r'); commit"),
        ),
        _ => (Kind::Rekey, format!("update p set id = {other} where id = {key}")),
    }
}

fn merging_unique(chance: u64, key: u64, other: u64, value: u64) -> (Kind, String) {
    match chance {
        0..24 => (
            Kind::Upsert,
            format!(
                "insert into q values ({key}, {value}, 'v{value}', 'w{other}', 'c') on conflict (id) do update \
                 set v = excluded.v, c = 'again'"
            ),
        ),
        24..38 => (Kind::Claim, format!("update q set v = 'v{value}' where id = {key}")),
        38..52 => (Kind::Claim, format!("update q set w = 'w{value}', n = n + 100 where id = {key}")),
        52..66 => (Kind::Update, format!("update q set c = left(c || '.', 20) where id = {key}")),
        66..75 => (Kind::Delete, format!("delete from q where id = {key}")),
        75..82 => (Kind::Rekey, format!("update q set id = {other}, c = 'moved' where id = {key}")),
        82..93 => (
            Kind::Savepoint,
            format!(
                "begin; update q set v = 'm{key}' where id = {key}; savepoint s; update q set c = 'lost' where id = {other}; \
                 rollback to s; update q set v = 'v{value}' where id = {other}; commit"
            ),
        ),
        _ => (
            Kind::Reinsert,
            format!(
                "begin; delete from q where id = {key}; \
                 insert into q values ({key}, 1, 'x{key}', 'y{value}', 'c'); commit"
            ),
        ),
    }
}
