//! Transactions that are larger than anybody's memory: a million rows, and single rows of many MB.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use duplex_lab::{Lab, Node};

const LONG: Duration = Duration::from_secs(300);
const MB: u64 = 1024;

/// The most that a process had of its own, in KiB, among many looks: shared buffers are everybody's and do not count.
/// The kernel keeps no such mark, so this one looks every few milliseconds.
#[derive(Debug, Default, Clone, Copy)]
struct Peak {
    own: u64,
    resident: u64,
}

impl Peak {
    fn look(&mut self, pid: i64) {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return };
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
        };
        self.own = self.own.max(field("RssAnon:"));
        self.resident = self.resident.max(field("VmHWM:"));
    }
}

/// The backend behind one of a relay's connections, by the word in its application name.
async fn backend(node: &Node, word: &str) -> Result<i64> {
    let sql = format!(
        "select pid from pg_stat_activity where datname = current_database() and usename = 'relay' \
            and application_name like '%{word}%' limit 1"
    );
    node.number(&sql).await.with_context(|| format!("the {word} session of {}", node.name()))
}

/// Runs a transaction on `a` and waits until `b` has it; prints and returns the peaks of the backends that write, drain and
/// apply it.
async fn carry(lab: &Lab, what: &str, sql: &str) -> Result<[Peak; 3]> {
    let [a, b] = lab.pair();
    let writer = a.connect().await?;
    let pids =
        [writer.number("select pg_backend_pid()").await?, backend(a, "outbound").await?, backend(b, "inbound").await?];
    let done = AtomicBool::new(false);
    let watching = async {
        let mut peaks = [Peak::default(); 3];
        while !done.load(Ordering::Relaxed) {
            peaks.iter_mut().zip(pids).for_each(|(peak, pid)| peak.look(pid));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        peaks
    };
    let started = std::time::Instant::now();
    let work = async {
        let done_well = match writer.exec(sql).await {
            Ok(()) => {
                let committed = started.elapsed();
                lab.settled_within(LONG).await.map(|()| committed)
            }
            Err(err) => Err(err),
        };
        done.store(true, Ordering::Relaxed);
        done_well
    };
    let (committed, peaks) = tokio::join!(work, watching);
    let committed = committed?;
    println!("{what}: committed after {committed:.1?}, equal after {:.1?}", started.elapsed());
    for (role, peak) in ["writing", "draining", "applying"].iter().zip(peaks) {
        println!("  {role} backend: {} KiB of its own at most, VmHWM {} KiB", peak.own, peak.resident);
    }
    for node in lab.nodes() {
        let (_, most) = node.relay().process()?.memory()?;
        println!("  relay of {}: VmHWM {most} KiB", node.name());
        assert!(most < 64 * MB, "the relay of {} had {most} KiB resident", node.name());
    }
    Ok(peaks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_rows_and_rows_of_many_mb_arrive_whole_in_bounded_memory() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text, n int not null default 0)", &["t"]).await?;
    lab.settled().await?;
    // Connections, caches and the library are there before anything is measured.
    a.exec("insert into t select i from generate_series(-10, -1) i").await?;
    lab.settled().await?;

    let insert = "insert into t select i, md5(i::text) from generate_series(1, 1000000) i";
    let [writing, draining, applying] = carry(&lab, "1,000,000 rows inserted", insert).await?;
    let sum = "select count(*) || ' ' || sum(id) || ' ' || sum(n) || ' ' || sum(hashtext(v)) from t";
    assert_eq!(a.one(sum).await?, b.one(sum).await?);
    assert_eq!(lab.transactions(a).await?, 2);
    // PostgreSQL's own list of the triggers to fire takes 10 to 20 bytes a row; the rest is ours.
    assert!(writing.own < 80 * MB, "the writing backend took {writing:?}");
    assert!(draining.own < 48 * MB, "the draining backend took {draining:?}");
    assert!(applying.own < 48 * MB, "the applying backend took {applying:?}");

    // 32 MB that do not compress, in chunks of half a MB; then left as they are by an UPDATE beside them.
    let row = "insert into t select 2000000, string_agg(md5(j::text), ''), 1 from generate_series(1, 1000000) j";
    carry(&lab, "a row of 32 MB inserted", row).await?;
    carry(&lab, "a row of 32 MB updated", "update t set n = n + 5 where id = 2000000").await?;
    let large = "select md5(v) || ' ' || length(v) || ' ' || n from t where id = 2000000";
    assert_eq!(a.one(large).await?, b.one(large).await?);
    assert!(b.one(large).await?.ends_with(" 32000000 6"));
    assert_eq!(lab.transactions(b).await?, 0);
    lab.stop_relays()
}

/// What a TRUNCATE leaves of each row in a table whose columns are merged is looked at row by row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_of_many_rows_with_a_policy_takes_memory_for_one() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.exec_everywhere(
        "create table m (id int primary key, n int not null default 0, v text, mail text unique);
         select duplex.enable('m', 'column_merge', '{n}')",
    )
    .await?;
    lab.settled().await?;
    a.exec("insert into m select i, 1, md5(i::text), 'm' || i from generate_series(1, 49999) i").await?;
    lab.settled().await?;
    // Backends of their own: what an INSERT has left behind does not count.
    b.relay().stop()?;
    b.relay().start()?;
    a.exec("insert into m values (50000, 1, 'x', 'last')").await?;
    lab.settled().await?;
    let [writing, _, applying] = carry(&lab, "50,000 rows with a policy truncated", "truncate m").await?;
    for node in lab.nodes() {
        assert_eq!(node.one("select count(*) from m").await?, "0");
        let kept =
            "select \"rows\" from duplex.registers_status where \"table\" = 'm'::regclass and kind = 'tombstones'";
        assert_eq!(node.one(kept).await?, "50000", "{}", node.name());
    }
    assert!(writing.own < 16 * MB, "the writing backend took {writing:?}");
    assert!(applying.own < 16 * MB, "the applying backend took {applying:?}");
    lab.stop_relays()
}
