//! Tables in which any loss, double or tear shows by arithmetic.
//!
//! Each node writes its own rows only, so there is no conflict and nothing excuses a difference.
//!
//! | table | what must hold in every snapshot, on every node |
//! |---|---|
//! | `account` | the balances of a node add up to what they were at the opening; each is the opening balance and its postings |
//! | `journal` | one row a committed transaction, appended only; the numbers of a session are 1, 2, 3 … without a gap; whoever has anything else has an opening |
//! | `posting` | as many as the journal's rows say; their amounts add up to nothing |
//! | `bulk` | as many rows as the journal's rows have added and removed |
//! | `memo` | rows that come, change and go; only equality is asked of them |

use crate::session::literal;
use crate::{Lab, Node, Session};
use anyhow::{Result, ensure};

/// The tables, in the order of their creation.
pub const TABLES: [&str; 5] = ["account", "journal", "posting", "bulk", "memo"];

/// Accounts of each node.
pub const ACCOUNTS: u64 = 40;
const OPENING_BALANCE: i64 = 1_000_000;

/// The session number under which a node's books are opened.
const OPENING_SESSION: u32 = 0;

const SCHEMA: &str = "
create table account (node text, id int, balance bigint not null, primary key (node, id));
create table journal (node text, session int, seq bigint, xid bigint not null default pg_current_xact_id()::text::bigint,
                      legs int not null, bulk int not null, note text not null, primary key (node, session, seq));
create table posting (node text, session int, seq bigint, leg int, account int not null, amount bigint not null,
                      primary key (node, session, seq, leg));
create table bulk (node text, session int, n bigint, filler text not null, primary key (node, session, n));
create table memo (node text, session int, id int, words text not null, primary key (node, session, id));";

/// Makes the tables everywhere, opens each node's books, and waits until they are open on every node.
///
/// # Errors
/// The server's.
pub async fn open(lab: &Lab) -> Result<()> {
    open_apart(lab).await?;
    lab.settled().await
}

/// As [`open`], and waits for nobody: for a lab without relays.
///
/// # Errors
/// The server's.
pub async fn open_apart(lab: &Lab) -> Result<()> {
    lab.create_everywhere(SCHEMA, &TABLES).await?;
    for node in lab.nodes() {
        let name = literal(node.name());
        node.exec(&format!(
            "begin;
             insert into account select {name}, i, {OPENING_BALANCE} from generate_series(1, {ACCOUNTS}) i;
             insert into journal (node, session, seq, legs, bulk, note) values ({name}, {OPENING_SESSION}, 1, 0, 0, 'opening');
             commit"
        ))
        .await?;
    }
    Ok(())
}

/// What is wrong with the books as this session sees them now, in one snapshot; nothing if all is right.
///
/// # Errors
/// The server's.
pub async fn wrong(session: &Session) -> Result<Option<String>> {
    let accounts = i64::try_from(ACCOUNTS)?;
    let sql = format!(
        "with j as (select node, session, count(*) n, max(seq) top, min(seq) low from journal group by 1, 2),
              n as (select node from account union select node from journal),
              t as (select node, coalesce(sum(legs), 0)::bigint legs, coalesce(sum(bulk), 0)::bigint bulk,
                           count(*) filter (where session = {OPENING_SESSION}) openings
                      from n left join journal using (node) group by 1),
              p as (select node, count(*) n, sum(amount)::bigint total from posting group by 1),
              b as (select node, count(*) n from bulk group by 1),
              a as (select node, count(*) n, sum(balance)::bigint total from account group by 1),
              d as (select a.node, a.id, a.balance, {OPENING_BALANCE} + coalesce(q.moved, 0) as due
                      from account a
                      left join (select node, account, sum(amount)::bigint moved from posting group by 1, 2) q
                        on q.node = a.node and q.account = a.id
                     where a.balance <> {OPENING_BALANCE} + coalesce(q.moved, 0)),
              wrong as (
           select format('session %s of %s: %s rows from %s to %s', session, node, n, low, top) as what
             from j where n <> top or low <> 1
           union all
           select format('openings of %s: %s', node, openings) from t where openings <> 1
           union all
           select format('postings of %s: %s instead of %s, in sum %s', node, coalesce(p.n, 0), t.legs, p.total)
             from t left join p using (node) where coalesce(p.n, 0) <> t.legs or coalesce(p.total, 0) <> 0
           union all
           select format('bulk rows of %s: %s instead of %s', node, coalesce(b.n, 0), t.bulk)
             from t left join b using (node) where coalesce(b.n, 0) <> t.bulk
           union all
           select format('accounts of %s: %s, in sum %s', node, coalesce(a.n, 0), a.total)
             from n left join a using (node)
            where coalesce(a.n, 0) <> {accounts} or a.total <> {accounts} * {OPENING_BALANCE}
           union all
           select format('account %s of %s: %s instead of %s', id, node, balance, due) from d)
         select string_agg(what, '; ') from (select what from wrong limit 10) w"
    );
    Ok(session.rows(&sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

/// Checks the books of every node, now.
///
/// # Errors
/// If anything is wrong with them.
pub async fn audit(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let found = wrong(&node.connect().await?).await?;
        ensure!(found.is_none(), "the books on {} are wrong: {}", node.name(), found.unwrap_or_default());
    }
    Ok(())
}

/// A row of a node's own journal: one committed transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The session that made it.
    pub session: u32,
    /// Its number in that session.
    pub seq: i64,
    /// The transaction's id.
    pub xid: u64,
}

/// The transactions that a node has committed, by its own journal.
///
/// # Errors
/// The server's.
pub async fn entries(node: &Node) -> Result<Vec<Entry>> {
    let sql = format!("select session, seq, xid from journal where node = {} order by 1, 2", literal(node.name()));
    node.rows(&sql)
        .await?
        .into_iter()
        .map(|row| {
            let field = |i: usize| row[i].clone().unwrap_or_default();
            Ok(Entry { session: field(0).parse()?, seq: field(1).parse()?, xid: field(2).parse()? })
        })
        .collect()
}
