//! What was rolled back is never sent, and what was not is: savepoints and exception blocks at any depth, also while the
//! transaction's changes spill to a file, and also where the library is loaded inside one.

use std::fmt::Write as _;

use anyhow::Result;
use duplex_lab::{Drain, Lab, Node};

/// A generator of numbers that gives the same ones for the same seed.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A transaction of random statements in random nests of savepoints, on rows of its own.
fn nest(dice: &mut Dice, transaction: u64, value: &str) -> String {
    let mut sql = String::from("begin;\n");
    let mut open: Vec<u64> = Vec::new();
    let mut names = 0;
    for _ in 0..20 + dice.below(30) {
        let id = dice.below(6);
        let put = format!(
            "insert into t values ({transaction}, {id}, {value}) on conflict (tx, id) do update set v = excluded.v"
        );
        let written = match dice.below(14) {
            0..=2 => {
                names += 1;
                open.push(names);
                writeln!(sql, "savepoint s{names};")
            }
            3 | 4 if !open.is_empty() => {
                // Not always the newest: all those within it go with it.
                let depth = dice.below(open.len() as u64) as usize;
                let name = open[depth];
                let release = dice.below(3) == 0;
                open.truncate(if release { depth } else { depth + 1 });
                writeln!(sql, "{} s{name};", if release { "release" } else { "rollback to" })
            }
            5 => writeln!(sql, "do $$ begin {put}; perform 1 / 0; exception when division_by_zero then null; end $$;"),
            6 => writeln!(
                sql,
                "do $$ begin {put}; begin delete from t where tx = {transaction}; perform 1 / 0; \
                 exception when division_by_zero then {put}; end; end $$;"
            ),
            7 => writeln!(sql, "delete from t where tx = {transaction} and id = {id};"),
            8 => {
                names += 1;
                writeln!(sql, "update t set id = id + {} where tx = {transaction} and id = {id};", names * 10)
            }
            9 => writeln!(sql, "update t set v = v || '+' where tx = {transaction};"),
            _ => writeln!(sql, "{put};"),
        };
        written.expect("writing into memory");
    }
    sql + if dice.below(6) == 0 { "rollback;" } else { "commit;" }
}

/// Each transaction in a session that may be new: whether the library is loaded, and where, is left to chance, too.
async fn write_nests(node: &Node, seed: u64, transactions: u64, setting: &str, value: &str) -> Result<()> {
    let mut dice = Dice(seed);
    let mut session = node.connect().await?;
    for transaction in 0..transactions {
        if dice.below(3) == 0 {
            session = node.connect().await?;
        }
        session.exec(setting).await?;
        session.exec(&nest(&mut dice, seed * 1000 + transaction, value)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn random_nests_of_savepoints_leave_on_the_peer_what_a_plain_select_shows() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (tx int, id int, v text, primary key (tx, id))", &["t"]).await?;
    tokio::try_join!(
        write_nests(a, 17, 120, "", "md5(random()::text)"),
        write_nests(b, 42, 120, "", "md5(random()::text)")
    )?;
    lab.converges(&["t"]).await?;
    assert!(a.number("select count(distinct tx) from t").await? > 100, "the nests leave something to compare");
    lab.stop_relays()
}

#[tokio::test]
async fn savepoints_cut_back_across_spilled_chunks() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, _] = lab.pair();
    lab.create_everywhere("create table t (tx int, id int, v text, primary key (tx, id))", &["t"]).await?;
    // Rows of some 300 kB that do not compress: each chunk boundary falls somewhere inside one.
    a.exec(
        "create function noise(kb int) returns text language sql volatile as
         $$ select string_agg(encode(sha512((random() || '-' || i)::bytea), 'base64'), '') from generate_series(1, kb * 11) i $$",
    )
    .await?;
    write_nests(a, 99, 12, "set duplex.transaction_buffer = '1MB'", "noise((random() * 300)::int)").await?;
    lab.converges(&["t"]).await?;
    let log = std::fs::read_to_string(a.cluster().log())?;
    let leaks = log.lines().filter(|line| line.contains(a.database()) && line.contains("leak"));
    assert_eq!(leaks.collect::<Vec<_>>(), Vec::<&str>::new());
    lab.stop_relays()
}

#[tokio::test]
async fn a_library_first_loaded_inside_a_subtransaction_sends_nothing_that_was_rolled_back() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    let mut drain = Drain::open(node).await?;
    let scripts = [
        "begin; savepoint a; insert into t values (1); rollback to a; insert into t values (2); commit",
        "begin; savepoint a; savepoint b; insert into t values (3); release b; rollback to a; insert into t values (4); commit",
        "begin; savepoint a; savepoint b; insert into t values (5); rollback to b; insert into t values (6); release a; commit",
        "do $$ begin begin insert into t values (7); perform 1 / 0; exception when division_by_zero then null; end; \
         insert into t values (8); end $$",
        "begin; savepoint a; insert into t values (9); rollback to a; commit",
        "begin; savepoint a; insert into t values (10); rollback",
    ];
    for script in scripts {
        node.connect().await?.exec(script).await?;
    }
    let sent = drain.changes().await?;
    assert_eq!(sent, [2, 4, 6, 8].map(|id| format!("insert {{\"id\":{id}}}")));
    assert_eq!(node.number("select count(*) from t").await?, 4);
    Ok(())
}
