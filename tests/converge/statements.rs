//! Transactions as applications make them, on few keys and few values, so that they meet.

use anyhow::{Result, bail};
use tokio_postgres::SimpleQueryMessage;

use super::layouts::Layout;
use crate::Session;
use crate::dice::Dice;

const KEYS: u64 = 4;
/// Two of them differ in case alone.
const VALUES: [&str; 5] = ["a", "A", "b", "c", "d"];
/// What applications meet and live with: a value is taken, a parent is missing, a deadlock, a row that has moved to another
/// partition meanwhile, a TRUNCATE behind changes of the same transaction that are still to be checked.
const EXPECTED: [&str; 5] = ["23505", "23503", "40P01", "40001", "55006"];

/// A row's values but for its key; a value is a number in [`VALUES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    v: Option<u8>,
    w: Option<u8>,
    n: u8,
}

/// One thing that an application does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// INSERT.
    Insert(u64, Row),
    /// INSERT that does nothing if there is a conflict.
    Ignore(u64, Row),
    /// INSERT that updates what is there.
    Upsert(u64, Row),
    /// UPDATE of the columns whose bits are set.
    Update(u64, Row, u64),
    /// UPDATE that adds to a number, of all keys below.
    AddBelow(u64, u64),
    /// DELETE.
    Delete(u64),
    /// DELETE and INSERT of one key.
    Replace(u64, Row),
    /// UPDATE of the key.
    Rekey(u64, u64),
    /// Two rows change their values.
    Swap(u64, u64),
    /// TRUNCATE.
    Truncate,
    /// A row of the child table: INSERT or UPDATE.
    Child(u64, u64),
    /// DELETE of a row of the child table.
    Orphan(u64),
    /// Operations under a savepoint, to which the transaction may go back.
    Nested(Vec<Op>, bool),
}

/// How a transaction runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Statements in transactions of their own are one only if there is one.
    Alone,
    /// In one; the first error ends it.
    Whole,
    /// Each operation under a savepoint; one that fails is left out.
    StepByStep,
    /// With PREPARE TRANSACTION.
    Prepared,
    /// Rolled back in the end.
    TakenBack,
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    ops: Vec<Op>,
    /// How it runs.
    pub manner: Manner,
}

impl Row {
    fn random(dice: &mut Dice) -> Self {
        let cell = |dice: &mut Dice| (!dice.percent(15)).then(|| dice.below(VALUES.len() as u64) as u8);
        Self { v: cell(dice), w: cell(dice), n: dice.below(4) as u8 }
    }
}

impl Op {
    fn random(dice: &mut Dice, layout: &Layout, truncates: u64, nests: bool) -> Self {
        let (key, other, row) = (dice.below(KEYS), dice.below(KEYS), Row::random(dice));
        match dice.below(100 + truncates) {
            0..14 => Self::Insert(key, row),
            14..19 => Self::Ignore(key, row),
            19..33 => Self::Upsert(key, row),
            33..49 => Self::Update(key, row, dice.between(1, 7)),
            49..54 => Self::AddBelow(key, dice.between(1, 3)),
            54..69 => Self::Delete(key),
            69..75 => Self::Replace(key, row),
            75..85 => Self::Rekey(key, other),
            85..90 if layout.swaps => Self::Swap(key, other),
            85..92 if layout.child => Self::Child(key, other),
            92..94 if layout.child => Self::Orphan(key),
            85..94 => Self::Update(key, row, 1),
            94..100 if nests => {
                let ops = (0..dice.between(1, 2)).map(|_| Self::random(dice, layout, 0, false)).collect();
                Self::Nested(ops, dice.percent(60))
            }
            94..100 => Self::Upsert(key, row),
            _ => Self::Truncate,
        }
    }
}

impl Transaction {
    /// One that suits a table.
    pub fn random(dice: &mut Dice, layout: &Layout, truncates: u64) -> Self {
        let ops = (0..dice.pick(&[1, 1, 1, 2, 2, 3])).map(|_| Op::random(dice, layout, truncates, true)).collect();
        let manner = match dice.below(100) {
            0..40 => Manner::Alone,
            40..60 => Manner::Whole,
            60..85 => Manner::StepByStep,
            85..93 => Manner::Prepared,
            _ => Manner::TakenBack,
        };
        Self { ops, manner }
    }

    /// The same with less in it.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for (at, op) in self.ops.iter().enumerate() {
            let with = |inner: &[Op]| {
                let ops = [&self.ops[..at], inner, &self.ops[at + 1..]].concat();
                Self { ops, manner: self.manner }
            };
            if self.ops.len() > 1 {
                all.push(with(&[]));
            }
            if let Op::Nested(inner, _) = op {
                all.push(with(inner));
            }
        }
        all
    }

    /// Its statements, but for what begins and ends it.
    pub fn script(&self, layout: &Layout, table: &str) -> Vec<String> {
        self.ops.iter().flat_map(|op| lines(op, layout, table)).map(|line| line.sql().to_owned()).collect()
    }

    /// Runs it. Says whether it has committed something that its stream must hold.
    ///
    /// # Errors
    /// The server's, but for those that applications live with.
    pub async fn run(&self, session: &Session, layout: &Layout, table: &str, gid: &str) -> Result<bool> {
        let ops: Vec<Vec<Line>> = self.ops.iter().map(|op| lines(op, layout, table)).collect();
        let alone = self.manner == Manner::Alone && ops.len() == 1 && ops[0].len() == 1;
        let mut run = Running { session, written: vec![0] };
        if !alone {
            session.exec("begin").await?;
        }
        for op in &ops {
            let step = self.manner == Manner::StepByStep;
            if step {
                run.line(&Line::Save("savepoint step".into())).await?;
            }
            let mut fine = true;
            for line in op {
                fine = fine && run.line(line).await?;
            }
            match (fine, step) {
                (true, true) => fine = run.line(&Line::Keep("release step".into())).await?,
                (false, true) => {
                    run.written.truncate(2);
                    session.exec("rollback to step; release step").await?;
                    run.written.pop();
                    continue;
                }
                _ => {}
            }
            if !fine {
                if !alone {
                    session.exec("rollback").await?;
                }
                return Ok(false);
            }
        }
        let ending = match self.manner {
            _ if alone => return Ok(run.written[0] > 0),
            Manner::TakenBack => {
                session.exec("rollback").await?;
                return Ok(false);
            }
            Manner::Prepared => format!("prepare transaction '{gid}'"),
            _ => "commit".to_owned(),
        };
        // A constraint that was deferred is looked at here.
        let committed = run.line(&Line::Do(ending)).await? && run.written[0] > 0;
        if self.manner == Manner::Prepared && session.number(&prepared(gid)).await? > 0 {
            session.exec(&format!("commit prepared '{gid}'")).await?;
        }
        Ok(committed)
    }
}

fn prepared(gid: &str) -> String {
    format!("select count(*) from pg_prepared_xacts where gid = '{gid}'")
}

/// One line of a transaction.
#[derive(Debug)]
enum Line {
    /// A statement.
    Do(String),
    /// A savepoint is set.
    Save(String),
    /// What was done since is undone.
    Back(String),
    /// It is kept.
    Keep(String),
}

impl Line {
    fn sql(&self) -> &str {
        match self {
            Self::Do(sql) | Self::Save(sql) | Self::Back(sql) | Self::Keep(sql) => sql,
        }
    }
}

/// A transaction under way: how many rows it has written, by savepoints.
struct Running<'a> {
    session: &'a Session,
    written: Vec<u64>,
}

impl Running<'_> {
    /// Runs a line; false if it failed as may happen.
    async fn line(&mut self, line: &Line) -> Result<bool> {
        let messages = match self.session.client().simple_query(line.sql()).await {
            Ok(messages) => messages,
            Err(err) if err.code().is_some_and(|state| EXPECTED.contains(&state.code())) => return Ok(false),
            Err(err) => bail!("{err:?} in: {}", line.sql()),
        };
        match line {
            Line::Do(sql) => {
                let rows: u64 = messages
                    .iter()
                    .map(|message| if let SimpleQueryMessage::CommandComplete(rows) = message { *rows } else { 0 })
                    .sum();
                let rows = if sql.starts_with("truncate") { 1 } else { rows };
                *self.written.last_mut().expect("there is always one") += rows;
            }
            Line::Save(_) => self.written.push(0),
            Line::Back(_) => *self.written.last_mut().expect("there is always one") = 0,
            Line::Keep(_) => {
                let kept = self.written.pop().unwrap_or_default();
                *self.written.last_mut().expect("there is always one") += kept;
            }
        }
        Ok(true)
    }
}

fn lines(op: &Op, layout: &Layout, t: &str) -> Vec<Line> {
    let cell = |cell: Option<u8>| match cell {
        None => "null".to_owned(),
        Some(value) if layout.long => format!("repeat('{}', 4000)", VALUES[usize::from(value)]),
        Some(value) => format!("'{}'", VALUES[usize::from(value)]),
    };
    let values = |key: &u64, row: &Row| {
        // 1 and 1.0 are one key.
        let key = if row.n % 2 == 1 { format!("{key}.0") } else { key.to_string() };
        format!("insert into {t} (id, v, w, n) values ({key}, {}, {}, {})", cell(row.v), cell(row.w), row.n)
    };
    let sql = match op {
        Op::Insert(key, row) => values(key, row),
        Op::Ignore(key, row) => format!("{} on conflict ({}) do nothing", values(key, row), layout.key.join(", ")),
        Op::Upsert(key, row) => format!(
            "{} on conflict ({}) do update set v = excluded.v, n = excluded.n",
            values(key, row),
            layout.key.join(", ")
        ),
        Op::Update(key, row, columns) => {
            let all = [format!("v = {}", cell(row.v)), format!("w = {}", cell(row.w)), format!("n = {}", row.n)];
            let set: Vec<&str> = (0..3).filter(|bit| columns >> bit & 1 == 1).map(|bit| all[bit].as_str()).collect();
            format!("update {t} set {} where id = {key}", set.join(", "))
        }
        Op::AddBelow(key, by) => format!("update {t} set n = n + {by} where id < {key}"),
        Op::Delete(key) => format!("delete from {t} where id = {key}"),
        Op::Replace(key, row) => {
            return vec![Line::Do(format!("delete from {t} where id = {key}")), Line::Do(values(key, row))];
        }
        Op::Rekey(key, other) => format!("update {t} set id = {other} where id = {key}"),
        Op::Swap(one, two) => format!(
            "update {t} a set v = (select b.v from {t} b where b.id = {} - a.id) where id in ({one}, {two})",
            one + two
        ),
        Op::Truncate => format!("truncate {t} cascade"),
        Op::Child(key, parent) => format!(
            "insert into {t}_child values ({key}, {parent}, '{key}') on conflict (id) do update set parent = excluded.parent"
        ),
        Op::Orphan(key) => format!("delete from {t}_child where id = {key}"),
        Op::Nested(ops, back) => {
            let mut all = vec![Line::Save("savepoint s".into())];
            all.extend(ops.iter().flat_map(|op| lines(op, layout, t)));
            if *back {
                all.push(Line::Back("rollback to s".into()));
            }
            all.push(Line::Keep("release s".into()));
            return all;
        }
    };
    vec![Line::Do(sql)]
}
